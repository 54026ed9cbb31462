"""The relay's settings: flags, environment (`RELAY_…`), a YAML file, a directory, defaults.

The YAML file (`--config FILE`, else /etc/hubble-relay/config.yaml if there is one) has flag names
as keys, as operators of Hubble know it; it counts less than the environment and more than a file of
`--config-dir`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilium_core.errors import InvalidError
from cilium_core.settings import Problem, Seconds, TelemetrySettings, setting

from hubble_relay.connections import STREAMS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping, Sequence

PREFIX = "RELAY_"
DEFAULT_FILE = Path("/etc/hubble-relay/config.yaml")


@dataclass(frozen=True)
class RelaySettings(TelemetrySettings):
    """Settings of hubble-relay."""

    cluster_name: str = setting(
        "default",
        "Name of the cluster, part of the name that peers' certificates bear.",
        group="Peers",
    )
    peer_service: tuple[str, ...] = setting(
        ("unix:///var/run/cilium/hubble.sock",),
        "Where peers are learnt: hubble-servers or peer services, unix:///path or host:port."
        " Several may be given; one that answers is enough.",
        group="Peers",
    )
    retry_timeout: Seconds = setting(
        Seconds(2.0),
        "Longest wait before a lost peer service is tried again.",
        group="Peers",
        low=0.1,
        high=3600,
    )
    peer_streams_max: int = setting(
        STREAMS_MAX,
        "Streams that are open to one node at once, for all clients together; what is beyond that"
        " is told as an error of the node. Our servers take 1,024 calls of one relay.",
        group="Peers",
        low=1,
    )
    listen_address: tuple[str, ...] = setting(
        (":4245",), "Where clients connect: host:port, :port or unix:///path.", group="Listeners"
    )
    health_listen_address: str = setting(
        ":4222",
        "Address of a plain listener for health checks only; empty for none.",
        group="Listeners",
    )
    metrics_listen_address: str = setting(
        "", "Address of the metrics and /healthz over HTTP; empty for none.", group="Listeners"
    )
    sort_buffer_len_max: int = setting(
        100,
        "Flows that may wait for those of slower nodes, per node, before a node is asked to pause;"
        " when following, before the oldest are sent all the same.",
        group="Sorting",
        low=1,
        high=1_000_000,
    )
    sort_buffer_drain_timeout: Seconds = setting(
        Seconds(1.0),
        "Longest wait of a flow for those of slower nodes.",
        group="Sorting",
        low=0.01,
        high=60,
    )
    disable_client_tls: bool = setting(False, "Speak plainly with peers.", group="TLS")
    tls_hubble_client_cert_file: Path | None = setting(
        None, "Certificate shown to peers.", group="TLS"
    )
    tls_hubble_client_key_file: Path | None = setting(None, "Key of that certificate.", group="TLS")
    tls_hubble_server_ca_files: tuple[Path, ...] = setting(
        (), "Authorities of peers' certificates; none means those of the system.", group="TLS"
    )
    disable_server_tls: bool = setting(False, "Speak plainly with clients.", group="TLS")
    tls_relay_server_cert_file: Path | None = setting(
        None, "Certificate shown to clients.", group="TLS"
    )
    tls_relay_server_key_file: Path | None = setting(None, "Key of that certificate.", group="TLS")
    tls_relay_client_ca_files: tuple[Path, ...] = setting(
        (), "Authorities of clients' certificates; given, every client must show one.", group="TLS"
    )
    access_file: Path | None = setting(
        None,
        "File of rules that limit clients to namespaces by their certificates; changes count within"
        " 2 s. Without it they may see everything.",
        group="TLS",
    )

    def check(self) -> Iterator[Problem]:
        """What does not fit together."""
        tcp = [one for one in self.listen_address if not one.startswith("unix:")]
        given = self.tls_relay_server_cert_file and self.tls_relay_server_key_file
        if tcp and not self.disable_server_tls and not given:
            yield Problem(
                "tls-relay-server-cert-file",
                "certificate and key are needed to listen on"
                f" {', '.join(tcp)}; give both or set --disable-server-tls",
            )
        if bool(self.tls_hubble_client_cert_file) != bool(self.tls_hubble_client_key_file):
            yield Problem(
                "tls-hubble-client-cert-file", "certificate and key go together: give both or none"
            )
        if (
            self.access_file
            and tcp
            and (self.disable_server_tls or not self.tls_relay_client_ca_files)
        ):
            yield Problem(
                "access-file",
                "needs to know its clients by certificates: give --tls-relay-client-ca-files, and "
                "leave out --disable-server-tls",
            )
        if not self.listen_address:
            yield Problem("listen-address", "at least one address is needed")
        if not self.peer_service:
            yield Problem("peer-service", "at least one is needed")


def take_file(argv: Sequence[str], environ: MutableMapping[str, str]) -> list[str]:
    """Put the keys of the YAML file where only they are missing; tell the flags that are left.

    Raises InvalidError on a file that cannot be used.
    """
    rest: list[str] = []
    path: Path | None = None
    words = iter(argv)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            path = Path(word.partition("=")[2] or next(words, ""))
        elif word in ("-D", "--debug"):
            rest += ["--log-level", "debug"]
        else:
            rest.append(word)
    if path is None and not DEFAULT_FILE.is_file():
        return rest
    for key, value in _read(path or DEFAULT_FILE).items():
        text = ",".join(map(str, value)) if isinstance(value, list) else _text(value)
        environ.setdefault(f"{PREFIX}{str(key).upper().replace('-', '_')}", text)
    return rest


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidError(f"configuration file {path}: {os.strerror(error.errno or 0)}") from error
    except yaml.YAMLError as error:
        raise InvalidError(f"configuration file {path} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidError(f"configuration file {path} must hold keys and values")
    return content
