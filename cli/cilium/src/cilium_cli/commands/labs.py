# SPDX-License-Identifier: Apache-2.0
"""`cilium lab`: clusters on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cilium_cli.commands.lab_pods import pod
from cilium_cli.commands.lab_routes import route
from cilium_cli.lab.layouts import DEFAULT_NAME, Layout
from cilium_cli.outputs import emit, output_option, table
from cilium_cli.targets import lab_options

if TYPE_CHECKING:
    from cilium_cli.lab.components import Component


@click.group(short_help="A cluster on this machine: up, down, pods, exec.")
def lab() -> None:
    """Run clusters on this machine, out of network namespaces, without containers.

    The nodes run the real agent, hubble-server and eBPF data plane; etcd, two operators and the
    relay run beside them. `down` leaves no trace.
    """


@lab.command("up")
@click.option("--name", default=DEFAULT_NAME, show_default=True, envvar="CILIUM_LAB")
@click.option("--nodes", "count", type=int, default=3, show_default=True, help="How many nodes.")
@click.option(
    "--config",
    "settings",
    multiple=True,
    metavar="[NODE/]KEY=VALUE",
    help="Setting of the agents, or of one node's; such as enable-host-firewall=true.",
)
@click.option(
    "--timeout",
    "limit_s",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long all of it may take to be ready.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing unless it fails.")
def up(name: str, count: int, settings: tuple[str, ...], limit_s: float, *, quiet: bool) -> None:
    """Create a lab and wait until all of it is ready."""
    from cilium_cli.lab import clusters

    layout = Layout(name)

    def progress(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    clusters.up(layout, count, progress, _settings(settings, count), limit_s)
    if not quiet:
        click.echo(f"lab {name} is ready. Relay: {layout.relay_address}")


@lab.command("down")
@click.option("--name", "--lab", "name", envvar="CILIUM_LAB", help="Lab; the only one by default.")
@click.option("--all", "everything", is_flag=True, help="Every lab of this machine.")
def down(name: str | None, *, everything: bool) -> None:
    """Remove a lab and every trace of it, whatever state it is in."""
    from cilium_cli.lab import clusters
    from cilium_cli.lab.layouts import labs

    names = labs() if everything else [name or _only_name()]
    for each in names:
        found = clusters.down(Layout(each))
        click.echo(f"lab {each} is gone" if found else f"there is no lab {each}")


def _settings(texts: tuple[str, ...], count: int) -> dict[str, dict[str, str]]:
    """Settings of agents, by node; "" is every node."""
    from cilium_cli.errors import InputError

    nodes = {f"node{number}" for number in range(1, count + 1)}
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        node, slash, key = name.rpartition("/")
        if not equals or not key or (slash and node not in nodes):
            raise InputError(
                f"config: {text!r} is no setting", "write KEY=VALUE, or NODE/KEY=VALUE for one node"
            )
        found.setdefault(node, {})[key] = value
    return found


def _only_name() -> str:
    from cilium_cli.errors import InputError
    from cilium_cli.lab.layouts import labs

    known = labs()
    if len(known) > 1:
        raise InputError(f"there are several labs: {', '.join(known)}", "choose with --name")
    return known[0] if known else DEFAULT_NAME


@lab.command("list")
@output_option
def list_labs(output: str) -> None:
    """List the labs of this machine."""
    from cilium_cli.lab import clusters
    from cilium_cli.lab.layouts import labs

    found = [
        {
            "name": name,
            "nodes": len(clusters.nodes(Layout(name))),
            "relay": Layout(name).relay_address,
        }
        for name in labs()
    ]
    rows = [list(item.values()) for item in found]
    emit(output, found, lambda: table(["NAME", "NODES", "RELAY"], rows))


@lab.command("status")
@output_option
@lab_options
def status(lab: Layout, output: str) -> None:
    """Show whether each service runs and is ready; the exit code is 1 unless all are."""
    from cilium_cli.lab import clusters

    rows = []
    for part, trouble in clusters.examine(lab):
        pid = part.pid()
        state = "dead" if pid is None else ("not ready" if trouble else "ready")
        rows.append({"component": part.name, "state": state, "pid": pid, "trouble": trouble})

    def render() -> None:
        table(
            ["COMPONENT", "STATE", "PID", "TROUBLE"],
            [[row["component"], row["state"], row["pid"] or "", row["trouble"]] for row in rows],
        )

    emit(output, rows, render)
    if any(row["state"] != "ready" for row in rows):
        raise click.exceptions.Exit(1)


@lab.command("wait")
@click.option("--timeout", "limit_s", type=click.FloatRange(min=0), default=60.0, show_default=True)
@lab_options
def wait(lab: Layout, limit_s: float) -> None:
    """Return once every service of the lab is ready."""
    from cilium_cli.lab import clusters

    clusters.wait(lab, limit_s)


@lab.command("kill")
@click.argument("component")
@lab_options
def kill(lab: Layout, component: str) -> None:
    """Kill a component with SIGKILL: etcd, operator1, relay, node1/agent, or all of node1."""
    for part in _find(lab, component):
        part.kill()
        click.echo(f"{part.name} is dead")


@lab.command("start")
@click.argument("component")
@lab_options
def start(lab: Layout, component: str) -> None:
    """Start a component that does not run."""
    for part in _find(lab, component):
        click.echo(f"{part.name} is process {part.start()}")


@lab.command("restart")
@click.argument("component")
@click.option("--graceful", is_flag=True, help="SIGTERM first, instead of SIGKILL at once.")
@lab_options
def restart(lab: Layout, component: str, *, graceful: bool) -> None:
    """Kill a component as a crash would, and start it again."""
    for part in _find(lab, component):
        if graceful:
            part.stop()
        else:
            part.kill()
        click.echo(f"{part.name} is process {part.start()}")


def _find(layout: Layout, name: str) -> list[Component]:
    from cilium_cli.lab import clusters, components

    return components.find(clusters.parts(layout), name)


@lab.command("logs")
@click.argument("component", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written.")
@click.option("--tail", type=click.IntRange(0), help="Only that many last lines.")
@lab_options
def logs(lab: Layout, component: str | None, tail: int | None, *, follow: bool) -> None:
    """Print what a component or a pod wrote: node1/agent, default/web; all without a name."""
    from cilium_cli.lab import logs as reading

    reading.show(lab, component, follow=follow, tail=tail)


@lab.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--lab", "lab_name", envvar="CILIUM_LAB", help="Lab; the only one by default.")
@click.argument("pod")
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND...")
def execute(lab_name: str | None, namespace: str, pod: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in the network of POD ([NAMESPACE/]NAME, or node1, fabric, world).

    The world lies outside the cluster: what runs there is a client like any other.
    """
    from cilium_cli.lab import places
    from cilium_cli.targets import find_lab

    words = command[1:] if command[0] == "--" else command
    places.find(find_lab(lab_name), pod, namespace).run(words)


lab.add_command(pod)
lab.add_command(route)
