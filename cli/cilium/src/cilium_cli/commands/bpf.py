# SPDX-License-Identifier: Apache-2.0
"""`cilium bpf`: the data plane's maps, as the kernel has them now."""

from __future__ import annotations

import click
from cilium.agent.v1 import agent_pb2
from cilium_core.verdict_texts import identity_text, port_text, protocol_text

from cilium_cli.addresses import address_text
from cilium_cli.commands.bpf_services import affinity, lb, maglev
from cilium_cli.map_dumps import dump, emit_entries
from cilium_cli.outputs import output_option, table
from cilium_cli.targets import Target, node_options


@click.group(short_help="Maps of the data plane, read from the kernel.")
def bpf() -> None:
    """Print the data plane's maps, read from the kernel."""


def _group(name: str, help_text: str) -> click.Group:
    group = click.Group(name, help=help_text)
    bpf.add_command(group)
    return group


ct = _group("ct", "Tracked connections.")
policy = _group("policy", "Policy entries of the endpoints.")
ipcache = _group("ipcache", "Prefixes, their identities and tunnels.")
endpoint = _group("endpoint", "Local addresses.")
tunnel = _group("tunnel", "Remote pod prefixes and the nodes they are on.")
metrics = _group("metrics", "Counters of forwarded and dropped packets.")
nat = _group("nat", "Translations of addresses of what leaves and comes back.")
for _command in (lb, maglev, affinity):
    bpf.add_command(_command)


@ct.command("list")
@click.argument("scope", required=False, type=click.Choice(["global"]))
@output_option
@node_options
def list_ct(target: Target, output: str, scope: str | None) -> None:
    """List the tracked connections, each once, from its initiator's side."""
    del scope  # accepted for those used to `ct list global`; there is one table
    entries = [entry.ct for entry in dump(target, agent_pb2.MAP_KIND_CT)]
    lines = "\n".join(connection_text(entry) for entry in entries)
    emit_entries(output, entries, lambda: click.echo(lines))


def connection_text(entry: agent_pb2.ConntrackEntry) -> str:
    """Return the line of one connection."""
    return (
        f"{protocol_text(entry.protocol)} {entry.scope} "
        f"{address_text(entry.source, entry.source_port)} -> "
        f"{address_text(entry.destination, entry.destination_port)} "
        f"expires={entry.expires_in_s}s "
        f"TxPackets={entry.tx_packets} TxBytes={entry.tx_bytes} "
        f"TxFlagsSeen=0x{entry.tx_flags_seen:02x} "
        f"RxPackets={entry.rx_packets} RxBytes={entry.rx_bytes} "
        f"RxFlagsSeen=0x{entry.rx_flags_seen:02x} "
        f"Flags=[ {' '.join(entry.flags)} ] RevNAT={entry.rev_nat} "
        f"SourceSecurityID={entry.source_identity} BackendID={entry.backend}"
    )


@policy.command("list")
@output_option
@node_options
def list_policy(target: Target, output: str) -> None:
    """List the policy entries of all endpoints."""
    _policy(target, output, 0)


@policy.command("get")
@click.argument("endpoint_id", type=click.IntRange(1, 65535), metavar="ENDPOINT")
@output_option
@node_options
def get_policy(target: Target, output: str, endpoint_id: int) -> None:
    """List the policy entries of one endpoint."""
    _policy(target, output, endpoint_id)


def _policy(target: Target, output: str, endpoint_id: int) -> None:
    entries = [entry.policy for entry in dump(target, agent_pb2.MAP_KIND_POLICY, endpoint_id)]

    def render() -> None:
        table(
            [
                "ENDPOINT",
                "POLICY",
                "DIRECTION",
                "IDENTITY",
                "PORT/PROTO",
                "PROXY PORT",
                "PRECEDENCE",
                "COOKIE",
                "RULES",
            ],
            [
                [
                    item.endpoint_id,
                    "Deny" if item.entry.deny else "Allow",
                    item.entry.direction.capitalize(),
                    identity_text(item.entry),
                    port_text(item.entry),
                    item.entry.proxy_port or "NONE",
                    item.entry.precedence,
                    item.entry.cookie,
                    "\n".join(item.entry.derived_from),
                ]
                for item in entries
            ],
        )

    emit_entries(output, entries, render)


@ipcache.command("list")
@output_option
@node_options
def list_ipcache(target: Target, output: str) -> None:
    """List prefixes, the identities they stand for and the nodes they are tunnelled to."""
    entries = [entry.ipcache for entry in dump(target, agent_pb2.MAP_KIND_IPCACHE)]

    def render() -> None:
        table(
            ["IP PREFIX/ADDRESS", "IDENTITY"],
            [
                [
                    item.prefix,
                    (
                        f"identity={item.identity} encryptkey=0 "
                        f"tunnelendpoint={item.tunnel_endpoint or '0.0.0.0'} "  # noqa: S104
                        f"flags={','.join(item.flags) or '<none>'}"
                    ),
                ]
                for item in entries
            ],
        )

    emit_entries(output, entries, render)


@endpoint.command("list")
@output_option
@node_options
def list_endpoint(target: Target, output: str) -> None:
    """List the addresses that are delivered on the node."""
    entries = [entry.endpoint for entry in dump(target, agent_pb2.MAP_KIND_ENDPOINT)]

    def render() -> None:
        table(
            ["IP ADDRESS", "LOCAL ENDPOINT INFO"],
            [
                [
                    item.ip,
                    f"id={item.endpoint_id} sec_id={item.identity} "
                    f"flags={','.join(item.flags) or '<none>'} ifindex={item.ifindex} "
                    f"mac={item.mac} nodemac={item.node_mac}"
                    if item.endpoint_id
                    else "(localhost)",
                ]
                for item in entries
            ],
        )

    emit_entries(output, entries, render)


@tunnel.command("list")
@output_option
@node_options
def list_tunnel(target: Target, output: str) -> None:
    """List remote pod prefixes and the nodes they are tunnelled to."""
    entries = [entry.tunnel for entry in dump(target, agent_pb2.MAP_KIND_TUNNEL)]

    def render() -> None:
        table(["TUNNEL", "VALUE"], [[item.prefix, item.endpoint] for item in entries])

    emit_entries(output, entries, render)


@metrics.command("list")
@output_option
@node_options
def list_metrics(target: Target, output: str) -> None:
    """List the counters: why packets were dropped, and how many were forwarded."""
    entries = [entry.metrics for entry in dump(target, agent_pb2.MAP_KIND_METRICS)]

    def render() -> None:
        table(
            ["REASON", "DIRECTION", "PACKETS", "BYTES", "LINE", "FILE"],
            [
                [e.reason_text, e.direction, e.packets, e.bytes, e.line or "", e.file]
                for e in entries
            ],
        )

    emit_entries(output, entries, render)


@nat.command("list")
@output_option
@node_options
def list_nat(target: Target, output: str) -> None:
    """List the translations of addresses.

    OUT is the source of what leaves, IN the destination of what comes back. An answer to a
    service's client gets the address of the frontend with the id REVNAT besides.
    """
    entries = [entry.nat for entry in dump(target, agent_pb2.MAP_KIND_NAT)]

    def render() -> None:
        table(
            ["PROTO", "DIRECTION", "SOURCE", "DESTINATION", "TRANSLATED TO", "REVNAT", "AGE"],
            [
                [
                    protocol_text(item.protocol),
                    item.direction,
                    address_text(item.source, item.source_port),
                    address_text(item.destination, item.destination_port),
                    address_text(item.translated, item.translated_port),
                    item.rev_nat or "",
                    f"{item.age_s}s",
                ]
                for item in entries
            ],
        )

    emit_entries(output, entries, render)
