# SPDX-License-Identifier: Apache-2.0
"""Options that a running agent can be given, as they are written and shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cilium_cli.errors import InputError
from cilium_cli.outputs import emit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def parse_options(changes: Iterable[str]) -> dict[str, str]:
    """Read OPTION=VALUE texts; raises InputError for anything else."""
    options = {}
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator or not name:
            raise InputError(
                f"option: {change!r} is not OPTION=VALUE", "such as monitor-aggregation=none"
            )
        options[name] = value
    return options


def emit_options(output: str, options: Mapping[str, str]) -> None:
    """Print options by name."""

    def render() -> None:
        width = max((len(name) for name in options), default=0)
        for name, value in sorted(options.items()):
            click.echo(f"{name:<{width}}   {value}")

    emit(output, dict(sorted(options.items())), render)
