"""What the user has set: flag before environment before configuration file before default.

The environment variable of a flag is `HUBBLE_` and its name in capitals with `_` for `-`. The file
is YAML with the names of flags as keys; it need not exist. Only the flags of the server section,
the global ones and the raw filter lists can be set outside the command line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubble_cli import arguments
from hubble_cli.arguments import Flag, Section
from hubble_cli.errors import HubbleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubble_cli.arguments import Parsed, Value

SERVER_TLS_PREFIX = "tls://"


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the configuration file is when nobody says otherwise."""
    if base := environ.get("XDG_CONFIG_HOME"):
        return Path(base, "hubble", "config.yaml")
    home = environ.get("HOME")
    return Path(home, ".config", "hubble", "config.yaml") if home else Path("config.yaml")


GLOBAL = Section(
    "Global",
    (
        Flag("config", "string", "configuration file", default=str(default_file())),
        Flag(
            "debug",
            "bool",
            "tell what happens, and print every node status",
            short="D",
            default=False,
            implied="true",
        ),
    ),
)
SERVER = Section(
    "Server",
    (
        Flag("server", "string", "address of a Hubble server or relay", default="localhost:4245"),
        Flag(
            "timeout",
            "duration",
            "kept for old scripts; connections are made on first use",
            default=5_000_000_000,
        ),
        Flag(
            "request-timeout",
            "duration",
            "time limit of a single question (status, lists); streams have none",
            default=12_000_000_000,
        ),
        Flag(
            "tls",
            "bool",
            "speak TLS with the server; an address that begins with tls:// implies it",
            default=False,
            implied="true",
        ),
        Flag(
            "tls-allow-insecure",
            "bool",
            "accept any server certificate; not recommended, anybody may listen in",
            default=False,
            implied="true",
        ),
        Flag("tls-ca-cert-files", "list", "PEM files of certificate authorities", default=[]),
        Flag("tls-client-cert-file", "string", "PEM file of the client's certificate"),
        Flag("tls-client-key-file", "string", "PEM file of the client certificate's key"),
        Flag("tls-server-name", "string", "name expected in the server's certificate"),
        Flag("basic-auth-username", "string", "user name for basic authentication"),
        Flag("basic-auth-password", "string", "password for basic authentication"),
    ),
)
RAW_FILTERS = Section(
    "Raw filter",
    (
        Flag("allowlist", "array", "allowed flows, as JSON of FlowFilters", default=[]),
        Flag("denylist", "array", "denied flows, as JSON of FlowFilters", default=[]),
    ),
)
KEYS: dict[str, Flag] = {flag.name: flag for flag in (*GLOBAL.flags, *SERVER.flags)}
"""What `hubble config` knows."""
_SETTABLE = KEYS | {flag.name: flag for flag in RAW_FILTERS.flags}


class Settings:
    """The merged view of one command line."""

    def __init__(self, parsed: Parsed, environ: Mapping[str, str] = os.environ) -> None:
        self._flags = parsed.values
        self._environ = environ
        self._file: dict[str, Any] = {}
        self._file = read_file(self.path)

    @property
    def path(self) -> Path:
        """The configuration file."""
        return Path(self.text("config"))

    def get(self, name: str) -> Value:
        """A setting as its flag's kind says. Raises UsageError on a value that does not fit."""
        flag = _SETTABLE[name]
        if name in self._flags:
            return self._flags[name]
        if text := self._environ.get(f"HUBBLE_{name.upper().replace('-', '_')}"):
            if flag.kind in ("list", "array"):
                return text.split()
            return self._converted(flag, text, "environment")
        if name in self._file:
            value = self._file[name]
            if flag.kind in ("list", "array"):
                return [str(one) for one in value] if isinstance(value, list) else [str(value)]
            if flag.kind == "bool" and isinstance(value, bool):
                return value
            return self._converted(flag, str(value), str(self.path))
        return flag.default

    @staticmethod
    def _converted(flag: Flag, text: str, origin: str) -> Value:
        try:
            return arguments.convert(flag.kind, text)
        except ValueError as error:
            raise UsageError(
                f'invalid value "{text}" for {flag.name} ({origin}): {error}'
            ) from error

    def text(self, name: str) -> str:
        """A setting of kind string."""
        return str(self.get(name))

    def enabled(self, name: str) -> bool:
        """A setting of kind bool."""
        return bool(self.get(name))

    def duration_ns(self, name: str) -> int:
        """A setting of kind duration."""
        value = self.get(name)
        assert isinstance(value, int)  # noqa: S101  kinds are fixed by the table above
        return value

    def strings(self, name: str) -> list[str]:
        """A setting of kind list or array."""
        value = self.get(name)
        assert isinstance(value, list)  # noqa: S101  kinds are fixed by the table above
        return value

    @property
    def tls(self) -> bool:
        """Whether connections are to be encrypted."""
        return self.enabled("tls") or self.text("server").startswith(SERVER_TLS_PREFIX)

    def check(self) -> None:
        """Raise UsageError when settings contradict each other."""
        if bool(self.text("basic-auth-username")) != bool(self.text("basic-auth-password")):
            raise UsageError(
                "invalid flag(s): must specify both basic-auth-username and basic-auth-password"
            )
        certificate, key = self.text("tls-client-cert-file"), self.text("tls-client-key-file")
        if bool(certificate) != bool(key):
            raise UsageError(
                "invalid flag(s): certificate and private key are both required,"
                " but only one was provided"
            )
        if certificate and not self.tls:
            raise UsageError("invalid flag(s): transport layer security required")


def read_file(path: Path) -> dict[str, Any]:
    """The keys of a configuration file, none if there is no file.

    Raises HubbleError on a file that cannot be read or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise HubbleError(f"cannot read configuration file {path}: {error.strerror}") from error
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise HubbleError(f"configuration file {path} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise HubbleError(f"configuration file {path} must hold keys and values")
    return {str(key).lower(): value for key, value in content.items()}
