"""The text of `--help`, made from the declarations."""

from __future__ import annotations

import textwrap
from typing import Any

from cilium_core.settings._fields import Field, fields_of

_WIDTH = 96
_INDENT = 6


def describe(model: type[Any], *, program: str, about: str, prefix: str) -> str:
    """A page that teaches: what the program is, how settings are read, then each by topic."""
    # What is special to the program comes before what it shares with others.
    fields = sorted(fields_of(model), key=lambda field: field.name not in model.__annotations__)
    example = fields[0]
    variable = prefix + example.key.upper().replace("-", "_")
    lines = [
        f"{program}: {about}",
        "",
        f"Usage: {program} [--config-dir DIR] [--KEY VALUE]…",
        "",
        *textwrap.wrap(
            "Each setting below is read from, strongest first: the flag "
            f"(--{example.key} VALUE), the environment ({variable}), the file DIR/{example.key} "
            "whose content is the value, and the default. Lists are separated by commas; "
            "durations are written 5s or 1m30s; sizes 64Mi.",
            _WIDTH,
        ),
        "",
        "  --config-dir DIR    directory with one file per key, such as a mounted ConfigMap",
        "  --print-config      print every setting with its value and source, and exit",
        "  --version, --help",
    ]
    groups: dict[str, list[Field]] = {}
    for field in fields:
        groups.setdefault(field.group, []).append(field)
    for group, members in groups.items():
        lines += ["", f"{group}:"]
        for field in members:
            lines += _entry(field)
    return "\n".join(lines) + "\n"


def _entry(field: Field) -> list[str]:
    default = field.codec.show(field.default)
    bounds = ""
    if field.low is not None and field.high is not None:
        bounds = f" Between {field.codec.show(field.low)} and {field.codec.show(field.high)}."
    elif field.low is not None:
        bounds = f" At least {field.codec.show(field.low)}."
    elif field.high is not None:
        bounds = f" At most {field.codec.show(field.high)}."
    shown = f" [{default}]" if default else ""
    margin = " " * _INDENT
    return [
        f"  --{field.key} {field.codec.placeholder}{shown}",
        *textwrap.wrap(
            field.help + bounds, _WIDTH, initial_indent=margin, subsequent_indent=margin
        ),
    ]
