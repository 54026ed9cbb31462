# SPDX-License-Identifier: Apache-2.0
"""Decides which node, and which lab, a command speaks with.

In this order: `--socket` or CILIUM_SOCKET, `--lab` and `--node` or CILIUM_LAB and CILIUM_NODE, the
only lab there is (its first node), the agent of this machine.
"""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cilium_cli.errors import InputError, NotFoundError
from cilium_cli.lab.layouts import Layout, labs, node_number

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_SOCKET = Path("/var/run/cilium/cilium.sock")


class Target(NamedTuple):
    """A node's two sockets, and what to call the node in messages."""

    agent: Path
    hubble: Path
    name: str


def lab_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--lab`; the command receives the lab's Layout as `lab`."""

    @click.option("--lab", "lab_name", envvar="CILIUM_LAB", help="Lab; the only one by default.")
    @wraps(command)
    def wrapper(lab_name: str | None, **arguments: Any) -> Any:
        return command(lab=find_lab(lab_name), **arguments)

    return wrapper


def node_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--socket`, `--lab` and `--node`; the command receives a Target as `target`."""

    @click.option("--node", "node", envvar="CILIUM_NODE", help="Node of the lab, such as node2.")
    @click.option("--lab", "lab_name", envvar="CILIUM_LAB", help="Lab; the only one by default.")
    @click.option(
        "--socket", envvar="CILIUM_SOCKET", type=click.Path(path_type=Path), help="Agent's socket."
    )
    @wraps(command)
    def wrapper(
        socket: Path | None, lab_name: str | None, node: str | None, **arguments: Any
    ) -> Any:
        return command(target=find_target(socket, lab_name, node), **arguments)

    return wrapper


def siblings(target: Target) -> list[Target]:
    """Return the other nodes of the lab that a node is of; none outside of labs."""
    for name in labs():
        lab = Layout(name)
        nodes = sorted(lab.folder.glob("node*"), key=lambda path: node_number(path.name))
        layouts = [lab.node(node_number(path.name)) for path in nodes]
        if target.agent in [layout.agent_socket for layout in layouts]:
            return [
                Target(layout.agent_socket, layout.hubble_socket, layout.name)
                for layout in layouts
                if layout.agent_socket != target.agent
            ]
    return []


def find_lab(name: str | None) -> Layout:
    """Return the lab with the name, or the only one."""
    known = labs()
    if name is not None:
        lab = Layout(name)
        if name not in known:
            raise NotFoundError(
                f"lab {name!r} does not exist",
                f"known labs: {', '.join(known)}" if known else "start one: cilium lab up",
            )
        return lab
    if not known:
        raise NotFoundError("no lab is running", "start one: cilium lab up --nodes 3")
    if len(known) > 1:
        raise InputError(
            f"there are several labs: {', '.join(known)}", "choose with --lab or CILIUM_LAB"
        )
    return Layout(known[0])


def find_target(socket: Path | None, lab_name: str | None, node: str | None) -> Target:
    """Return the node to speak with."""
    if socket is not None:
        return Target(socket, socket.with_name("hubble.sock"), str(socket))
    if lab_name is None and node is None and (not labs() or DEFAULT_SOCKET.exists()):
        return Target(DEFAULT_SOCKET, DEFAULT_SOCKET.with_name("hubble.sock"), "this machine")
    lab = find_lab(lab_name)
    layout = lab.node(node_number(node or "node1"))
    if not layout.folder.exists():
        raise NotFoundError(
            f"lab {lab.name} has no {layout.name}",
            f"its nodes: {', '.join(sorted(path.name for path in lab.folder.glob('node*')))}",
        )
    return Target(layout.agent_socket, layout.hubble_socket, layout.name)
