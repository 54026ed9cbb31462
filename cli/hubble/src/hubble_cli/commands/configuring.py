"""`hubble config`: look at the settings, and edit the configuration file.

Nothing but the file is ever written, and only what the user set stands in it.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from hubble_cli import arguments, times
from hubble_cli.arguments import Command
from hubble_cli.commands.asking import group
from hubble_cli.errors import HubbleError, UsageError
from hubble_cli.settings import KEYS, Settings, read_file

if TYPE_CHECKING:
    from pathlib import Path

    from hubble_cli.arguments import Parsed, Value


def view(parsed: Parsed) -> None:
    """Print the merged settings."""
    settings = Settings(parsed)
    lines = [f"{key}: {_yaml(key, settings.get(key))}\n" for key in sorted(KEYS)]
    sys.stdout.write("".join(lines))


def get(parsed: Parsed) -> None:
    """Print one merged setting."""
    if not parsed.operands:
        view(parsed)
        return
    key = _known(parsed.operands[0])
    sys.stdout.write(_yaml(key, Settings(parsed).get(key)) + "\n")


def set_(parsed: Parsed) -> None:
    """Write one setting to the file."""
    _write(parsed, parsed.operands[0], parsed.operands[1] if len(parsed.operands) > 1 else "")


def reset(parsed: Parsed) -> None:
    """Write the default of one setting, or of all, to the file."""
    for key in parsed.operands or sorted(KEYS):
        _write(parsed, key, "")


def _known(key: str) -> str:
    if key not in KEYS:
        raise UsageError(f"unknown key: {key}")
    return key


def _yaml(key: str, value: Value) -> str:
    if KEYS[key].kind == "duration":
        return times.format_duration_ns(int(value))  # type: ignore[arg-type]
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 30, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...")
    return '""' if text == "''" else text


def _write(parsed: Parsed, key: str, text: str) -> None:
    import yaml

    flag = KEYS[_known(key)]
    value: Any = flag.default
    if text:
        try:
            listed = text.removeprefix("[").removesuffix("]") if flag.kind == "list" else text
            value = arguments.convert(flag.kind, listed)
        except ValueError as error:
            raise UsageError(
                f"cannot assign value={text} for key={key}, expected type={flag.kind}: {error}"
            ) from error
    if flag.kind == "duration":
        value = times.format_duration_ns(value)
    path = Settings(parsed).path
    content = read_file(path)
    content[key] = value
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _replace(path, yaml.safe_dump(content, indent=4, sort_keys=True))
    except OSError as error:
        raise HubbleError(
            f"cannot write configuration file {path}: {error.strerror};"
            " choose another with --config"
        ) from error


def _replace(path: Path, text: str) -> None:
    """Write so that a crash leaves the old or the new file. Passwords may stand in it: 0600."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


_TEXT = """\
A setting comes from its flag, else from the environment (HUBBLE_ and the flag's name in capitals,
with _ for -, as HUBBLE_TLS_SERVER_NAME), else from the configuration file, else it has its default.
"""
COMMAND = Command(
    "config",
    "View or modify the settings",
    group,
    commands=(
        Command("get", "Show one setting, or all", get, operands=(0, 1), usage="[KEY]"),
        Command(
            "reset",
            "Set one setting, or all, to its default",
            reset,
            operands=(0, 1),
            usage="[KEY]",
        ),
        Command(
            "set",
            "Set a setting in the configuration file",
            set_,
            operands=(1, 2),
            usage="KEY [VALUE]",
        ),
        Command("view", "Show all settings as they are in force", view),
    ),
    text=_TEXT,
)
