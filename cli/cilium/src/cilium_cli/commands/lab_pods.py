# SPDX-License-Identifier: Apache-2.0
"""`cilium lab pod`: the pods of a lab."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cilium_cli.outputs import emit, output_option, table
from cilium_cli.targets import lab_options

if TYPE_CHECKING:
    from cilium_cli.lab.layouts import Layout
    from cilium_cli.lab.runtimes import Pod


@click.group()
def pod() -> None:
    """Create, remove and list the pods of a lab, and say whether they are ready."""


@pod.command("add")
@click.argument("names", nargs=-1, metavar="[[NAMESPACE/]NAME]...")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE")
@click.option("--node", help="Node to run on; that with the fewest pods by default.")
@click.option("--port", "ports", multiple=True, metavar="[NAME=]PORT[/PROTOCOL]")
@click.option(
    "--host-port",
    "host_ports",
    multiple=True,
    metavar="[ADDRESS:]HOSTPORT:PORT[/PROTOCOL]",
    help="Port of the node that leads to a port of the pod.",
)
@click.option("--host-network", is_flag=True, help="Run in the network of the node.")
@click.option("--service-account", default="default", show_default=True)
@click.option("--command", "command", help="Command the pods run in the background.")
@click.option("-f", "--file", "file", help="YAML file of Pods and Namespaces; - is stdin.")
@output_option
@lab_options
def add_pod(
    lab: Layout,
    names: tuple[str, ...],
    namespace: str,
    labels: tuple[str, ...],
    node: str | None,
    ports: tuple[str, ...],
    host_ports: tuple[str, ...],
    service_account: str,
    command: str | None,
    file: str | None,
    output: str,
    *,
    host_network: bool,
) -> None:
    """Create pods: object in etcd, network namespace, cgroup, network from the CNI plugin.

    Containers that have a command run it in the background, in the folder of the YAML file. A pod
    is ready at once, or after its readinessProbe has succeeded.
    """
    import shlex
    from pathlib import Path

    from cilium_cli.lab import objects, runtimes
    from cilium_cli.lab.etcd import Gateway
    from cilium_cli.lab.layouts import parse_pod

    namespaces, pods = objects.read_file(file) if file else ([], [])
    for name in names:
        in_namespace, pod_name = parse_pod(name, namespace)
        pods.append(
            objects.pod_object(
                in_namespace,
                pod_name,
                labels=objects.parse_labels(labels),
                service_account=service_account,
                ports=objects.join_ports(
                    map(objects.parse_port, ports), map(objects.parse_host_port, host_ports)
                ),
                command=shlex.split(command or ""),
                host_network=host_network,
            )
        )
    if not pods and not namespaces:
        raise click.UsageError("Give the name of a pod, or a file with -f.")
    store = Gateway(lab)
    folder = Path(file).resolve().parent if file and file != "-" else Path("/")
    made = runtimes.add_all(lab, store, namespaces, pods, node, folder)
    store.close()
    _show_pods(made, output)


@pod.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="[NAMESPACE/]NAME...")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option(
    "--grace-period",
    "grace_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Time to end after SIGTERM, the pod's own or 30 by default; 0 kills at once.",
)
@lab_options
def delete_pod(lab: Layout, names: tuple[str, ...], namespace: str, grace_s: float | None) -> None:
    """End pods and remove their network.

    Services hear that a pod is terminating before its processes do.
    """
    from cilium_cli.lab import runtimes
    from cilium_cli.lab.etcd import Gateway
    from cilium_cli.lab.layouts import parse_pod

    store = Gateway(lab)
    doomed = [runtimes.find(lab, *parse_pod(name, namespace)) for name in names]
    for found in runtimes.delete_all(store, doomed, grace_s=grace_s):
        click.echo(f"pod {found.full_name} is gone")
    store.close()


@pod.command("ready")
@click.argument("names", nargs=-1, required=True, metavar="[NAMESPACE/]NAME...")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--not", "unready", is_flag=True, help="The pods are not ready.")
@lab_options
def ready_pod(lab: Layout, names: tuple[str, ...], namespace: str, *, unready: bool) -> None:
    """Say that pods are ready, or with --not that they are not, as a readiness probe would."""
    from cilium_cli.lab import runtimes
    from cilium_cli.lab.etcd import Gateway
    from cilium_cli.lab.layouts import parse_pod

    store = Gateway(lab)
    for found in [runtimes.find(lab, *parse_pod(name, namespace)) for name in names]:
        runtimes.set_ready(store, found, ready=not unready)
        click.echo(f"pod {found.full_name} is {'not ready' if unready else 'ready'}")
    store.close()


@pod.command("list")
@output_option
@lab_options
def list_pods(lab: Layout, output: str) -> None:
    """List the pods of a lab."""
    from cilium_cli.lab import runtimes

    _show_pods(runtimes.pods(lab), output)


def _show_pods(pods: list[Pod], output: str) -> None:
    found = [
        {"namespace": p.namespace, "name": p.name, "node": p.node, "addresses": p.addresses}
        for p in pods
    ]
    rows = [[p["namespace"], p["name"], p["node"], ", ".join(p["addresses"])] for p in found]
    emit(output, found, lambda: table(["NAMESPACE", "NAME", "NODE", "ADDRESSES"], rows))
