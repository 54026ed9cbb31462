# SPDX-License-Identifier: Apache-2.0
"""`cilium bpf lb`, `maglev` and `affinity`: services, as the kernel has them now."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.addresses import service_address_text
from cilium_cli.errors import NotFoundError
from cilium_cli.map_dumps import dump, emit_entries
from cilium_cli.outputs import output_option, table
from cilium_cli.targets import Target, node_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TYPES = {
    "external-ip": "ExternalIPs",
    "node-port": "NodePort",
    "host-port": "HostPort",
    "load-balancer": "LoadBalancer",
    "local-redirect": "LocalRedirect",
}
_FLAGS = {
    "external-local": "Local",
    "internal-local": "InternalLocal",
    "affinity": "sessionAffinity",
    "source-range": "check source-range",
    "source-range-deny": "deny source-range",
    "dsr": "dsr",
    "snat": "snat",
    "maglev": "maglev",
    "two-scopes": "two-scopes",
    "skip-own": "skip own backends",
    "wildcard": "whole address",
}
_IDS_A_LINE = 16


@click.group(short_help="Services: frontends, backends, who may ask.")
def lb() -> None:
    """Print the frontends and backends of services."""


@click.group(short_help="Tables by which clients from outside are spread.")
def maglev() -> None:
    """Print the tables of services with the algorithm maglev."""


@click.group(short_help="Clients that keep their backend.")
def affinity() -> None:
    """Print who served the clients of services with session affinity."""


lb.add_command(maglev)


@lb.command("list")
@click.option("--frontends", "what", flag_value="frontends", help="Frontends only.")
@click.option("--backends", "what", flag_value="backends", help="Backends only, by id.")
@click.option("--revnat", "what", flag_value="revnat", help="The source that answers get, by id.")
@click.option("--source-ranges", "what", flag_value="ranges", help="Who may ask, or may not.")
@output_option
@node_options
def list_lb(target: Target, output: str, what: str | None) -> None:
    """List frontends with the backends in their slots.

    Slot 0 is the frontend itself. `/i` after the protocol stands for what pods and nodes get, where
    that differs from what the outside gets.
    """
    match what:
        case "backends":
            _list_backends(target, output)
        case "revnat":
            _list_reverse(target, output)
        case "ranges":
            _list_ranges(target, output)
        case _:
            _list_frontends(target, output, slots=what is None)


def _list_frontends(target: Target, output: str, *, slots: bool) -> None:
    entries = [entry.lb_frontend for entry in dump(target, agent_pb2.MAP_KIND_LB_FRONTENDS)]

    def render() -> None:
        headers = ["SERVICE ADDRESS", "BACKEND ADDRESS (REVNAT_ID) (SLOT)"]
        table(headers, [row for entry in entries for row in _frontend_rows(entry, slots=slots)])

    emit_entries(output, entries, render)


def _frontend_rows(entry: agent_pb2.LBFrontendEntry, *, slots: bool) -> Iterator[list[str]]:
    address = service_address_text(entry.address)
    if entry.scope == "internal":
        address += "/i"
    nobody = "[::]:0" if ":" in entry.address.ip else "0.0.0.0:0"
    yield [f"{address} (0)", f"{nobody} ({entry.rev_nat}) (0) [{_flags_text(entry.flags)}]"]
    for slot, backend in enumerate(entry.backends if slots else (), start=1):
        served = service_address_text(backend.address) if backend.address.ip else "nobody"
        state = "" if backend.state == "active" else f" ({backend.state or 'gone'})"
        yield [f"{address} ({slot})", f"{served} ({entry.rev_nat}) ({slot}){state}"]


def _flags_text(flags: Sequence[str]) -> str:
    kind = next((_TYPES[flag] for flag in flags if flag in _TYPES), "ClusterIP")
    marks = [_FLAGS[flag] for flag in flags if flag in _FLAGS]
    return ", ".join([kind, *marks, *(() if "routable" in flags else ("non-routable",))])


def _list_backends(target: Target, output: str) -> None:
    entries = [entry.lb_backend for entry in dump(target, agent_pb2.MAP_KIND_LB_BACKENDS)]

    def render() -> None:
        table(
            ["ID", "BACKEND ADDRESS", "STATE", "NODE"],
            [
                [
                    entry.id,
                    service_address_text(entry.address),
                    entry.state,
                    "local" if entry.local else "remote",
                ]
                for entry in entries
            ],
        )

    emit_entries(output, entries, render)


def _list_reverse(target: Target, output: str) -> None:
    entries = [entry.lb_reverse_nat for entry in dump(target, agent_pb2.MAP_KIND_LB_REVERSE_NAT)]

    def render() -> None:
        rows = [[entry.rev_nat, service_address_text(entry.address)] for entry in entries]
        table(["ID", "SERVICE ADDRESS"], rows)

    emit_entries(output, entries, render)


def _list_ranges(target: Target, output: str) -> None:
    entries = [entry.lb_source_range for entry in dump(target, agent_pb2.MAP_KIND_LB_SOURCE_RANGES)]

    def render() -> None:
        table(["REVNAT_ID", "SOURCE RANGE"], [[entry.rev_nat, entry.prefix] for entry in entries])

    emit_entries(output, entries, render)


@maglev.command("list")
@output_option
@node_options
def list_maglev(target: Target, output: str) -> None:
    """List the tables, with how many of the entries each backend has."""
    entries = [entry.lb_maglev for entry in dump(target, agent_pb2.MAP_KIND_LB_MAGLEV)]

    def render() -> None:
        rows = [
            [
                entry.rev_nat,
                entry.size,
                "\n".join(
                    f"{backend}: {entry.shares[backend]}" for backend in sorted(entry.shares)
                ),
            ]
            for entry in entries
        ]
        table(["REVNAT_ID", "SIZE", "BACKEND ID: ENTRIES"], rows)

    emit_entries(output, entries, render)


@maglev.command("get")
@click.argument("rev_nat", type=click.IntRange(1, 65535), metavar="REVNAT_ID")
@output_option
@node_options
def get_maglev(target: Target, output: str, rev_nat: int) -> None:
    """Print the whole table of one frontend: the id of the backend of each entry."""
    entries = dump(target, agent_pb2.MAP_KIND_LB_MAGLEV, rev_nat=rev_nat)
    if not entries:
        raise NotFoundError(
            f"the frontend with the id {rev_nat} has no table",
            "those that have one: cilium bpf lb maglev list",
        )
    found = entries[0].lb_maglev

    def render() -> None:
        numbered = list(enumerate(found.table))
        for _, line in groupby(numbered, key=lambda one: one[0] // _IDS_A_LINE):
            ids = list(line)
            click.echo(f"{ids[0][0]:>6}: {' '.join(str(backend) for _, backend in ids)}")

    emit_entries(output, [found], render)


@affinity.command("list")
@output_option
@node_options
def list_affinity(target: Target, output: str) -> None:
    """List the clients, with the backend that each keeps while it goes on asking."""
    entries = [entry.lb_affinity for entry in dump(target, agent_pb2.MAP_KIND_LB_AFFINITY)]

    def render() -> None:
        table(
            ["CLIENT", "REVNAT_ID", "BACKEND ID", "LAST USED"],
            [
                [entry.client, entry.rev_nat, entry.backend, f"{entry.age_s}s ago"]
                for entry in entries
            ],
        )

    emit_entries(output, entries, render)
