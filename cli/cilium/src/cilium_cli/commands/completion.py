# SPDX-License-Identifier: Apache-2.0
"""`cilium completion`: the script a shell sources to complete this command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Shell completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script: `source <(cilium completion bash)`."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - the choice above names only shells click knows
    click.echo(kind(ctx.find_root().command, {}, "cilium", "_CILIUM_COMPLETE").source())
