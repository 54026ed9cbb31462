# SPDX-License-Identifier: Apache-2.0
"""The `cilium` command: finds the subcommand, runs it, prints errors, sets the exit code.

Subcommands are imported when they run or ask for their own help, so that `cilium --help` and
completion stay quick however much a subcommand needs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click
from cilium_core import traces

from cilium_cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from click.shell_completion import CompletionItem


class LazyGroup(click.Group):
    """A group that knows its commands by name and one line of help until one is needed."""

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any
    ) -> None:
        """Take `lazy`: "module:attribute" and the line of help by command name."""
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order they were declared."""
        return [
            *self._lazy,
            *(name for name in super().list_commands(ctx) if name not in self._lazy),
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name in self._lazy:
            module, _, attribute = self._lazy[cmd_name][0].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        rows = [(name, line) for name, (_, line) in self._lazy.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the names without importing any command."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=line)
            for name, (_, line) in self._lazy.items()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


_COMMANDS = {
    "status": ("cilium_cli.commands.status:status", "Health of a node's agent and its components."),
    "endpoint": ("cilium_cli.commands.endpoints:endpoint", "Pods of a node: list, get, config."),
    "identity": ("cilium_cli.commands.identities:identity", "Security identities: list, get."),
    "ip": ("cilium_cli.commands.ips:ip", "Addresses and the identities behind them: list."),
    "node": ("cilium_cli.commands.nodes:node", "Nodes of the cluster: list."),
    "policy": (
        "cilium_cli.commands.policies:policy",
        "Policies: list, get, explain, validate.",
    ),
    "proxy": ("cilium_cli.commands.proxies:proxy", "Proxies for rules above L4: status."),
    "fqdn": ("cilium_cli.commands.names:fqdn", "DNS names that pods looked up: cache, names."),
    "service": ("cilium_cli.commands.services:service", "Services: list, get, explain."),
    "lrp": ("cilium_cli.commands.redirects:lrp", "Local redirect policies: list."),
    "bpf": ("cilium_cli.commands.bpf:bpf", "Maps of the data plane, read from the kernel."),
    "prefilter": ("cilium_cli.commands.prefilters:prefilter", "XDP deny list and rate limit."),
    "monitor": ("cilium_cli.commands.monitor:monitor", "Data plane events as they happen."),
    "config": ("cilium_cli.commands.config:config", "Options of a running agent: show, change."),
    "apply": (
        "cilium_cli.commands.resources:apply",
        "Store Kubernetes YAML in the cluster's etcd.",
    ),
    "get": ("cilium_cli.commands.resources:get", "Show stored objects."),
    "delete": ("cilium_cli.commands.resources:delete", "Remove stored objects."),
    "lab": ("cilium_cli.commands.labs:lab", "A cluster on this machine: up, down, pods, exec."),
    "completion": ("cilium_cli.commands.completion:completion", "Shell completion script."),
    "version": ("cilium_cli.commands.version:version", "Version of this command and of the agent."),
}


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def cli() -> None:
    """Look at and steer cilium-py: its nodes, its policies, its data plane, and labs to try it in.

    Commands about a node ask the agent given by --socket (or CILIUM_SOCKET), or by --lab and
    --node; without any, the first node of the only lab on this machine.
    """


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        with traces.command("cilium", _span_name(sys.argv[1:])):
            cli.main(prog_name="cilium", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except CommandError as error:
        _complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; nothing is left to say
        return 0
    return 0


def _span_name(words: Sequence[str]) -> str:
    """What a command line is called in traces: without what differs from one to the next."""
    return f"cilium {words[0]}" if words and words[0] in _COMMANDS else "cilium"


def _complain(error: CommandError) -> None:
    click.echo(f"{click.style('error:', fg='red')} {error.message}", err=True)
    if error.remedy:
        click.echo(f"  {error.remedy}", err=True)


if __name__ == "__main__":
    sys.exit(main())
