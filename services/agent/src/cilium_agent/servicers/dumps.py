"""Entries of the kernel's maps as messages. Pure, but for the clock of connection lifetimes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cilium.agent.v1 import agent_pb2
from cilium_core import abi, drops

from cilium_agent.datapath.models import EndpointFlag
from cilium_agent.servicers.messages import policy_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cilium_core.labels import LabelSet
    from cilium_core.policy import CookieTable, PolicyEntry, PolicyKey
    from cilium_core.policy.l7 import Redirect

    from cilium_agent.datapath import (
        Connection,
        Counter,
        Datapath,
        EndpointInfo,
        IpcacheEntry,
        NatEntry,
    )

_CT = abi.enum("ct_flag")
_DIRECTION = abi.enum("direction")
_FILES = abi.enum("source_file")
_FIRST_DROP = 130
_SCOPES = (int(_CT.CT_OUT) | int(_CT.CT_IN), int(_CT.CT_OUT), int(_CT.CT_IN))
_HIDDEN = {"CT_INITIATOR_HIGH", "CT_OUT", "CT_IN"}
_SHOWN = [(int(flag), _name) for flag in _CT if (_name := flag.name) not in _HIDDEN]


def connections(datapath: Datapath) -> list[agent_pb2.MapEntry]:
    """The connection tables."""
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    return [agent_pb2.MapEntry(ct=_connection(c, now)) for c in datapath.conntrack.dump()]


def _connection(item: Connection, now_s: float) -> agent_pb2.ConntrackEntry:
    both, out, _ = _SCOPES
    held = item.flags & both
    scope = "LOCAL" if held == both else "OUT" if held == out else "IN"
    return agent_pb2.ConntrackEntry(
        protocol=item.proto,
        source=str(item.source),
        destination=str(item.destination),
        source_port=item.source_port,
        destination_port=item.destination_port,
        expires_in_s=max(0, round(item.expires_s - now_s)),
        tx_packets=item.tx_packets,
        tx_bytes=item.tx_bytes,
        rx_packets=item.rx_packets,
        rx_bytes=item.rx_bytes,
        tx_flags_seen=item.tx_tcp_flags,
        rx_flags_seen=item.rx_tcp_flags,
        source_identity=item.source_identity,
        scope="SVC" if item.kind == abi.CT_SERVICE else scope,
        flags=[
            name.removeprefix("CT_").lower().replace("_", "-")
            for bit, name in _SHOWN
            if item.flags & bit
        ],
        rev_nat=item.rev_nat,
        backend=item.backend,
    )


def policies(
    dump: Mapping[int, Mapping[PolicyKey, PolicyEntry]],
    labels: Mapping[int, LabelSet],
    cookies: CookieTable,
    redirects: Mapping[int, Redirect],
) -> Iterator[agent_pb2.MapEntry]:
    """The policy maps, by endpoint and in the order in which people look for entries.

    `redirects` tells what is enforced on the ports of proxies.
    """
    for endpoint_id, entries in sorted(dump.items()):
        for key in sorted(entries, key=lambda k: (k.direction, k.identity, k.proto, k.port)):
            entry = policy_entry(key, entries[key], labels.get(key.identity), cookies, redirects)
            yield agent_pb2.MapEntry(
                policy=agent_pb2.EndpointPolicyEntry(endpoint_id=endpoint_id, entry=entry)
            )


def ipcache(rows: Iterable[IpcacheEntry]) -> Iterator[agent_pb2.MapEntry]:
    """The address table."""
    for row in _by_prefix(rows):
        flags = ["hastunnel"] if row.tunnel_ipv4 else []
        flags += ["skiptunnel"] if row.skip_tunnel else []
        yield agent_pb2.MapEntry(
            ipcache=agent_pb2.IPCacheEntry(
                prefix=str(row.prefix),
                identity=row.identity,
                tunnel_endpoint=str(row.tunnel_ipv4 or "0.0.0.0"),  # noqa: S104 - shown, not bound
                flags=flags,
            )
        )


def tunnels(rows: Iterable[IpcacheEntry]) -> Iterator[agent_pb2.MapEntry]:
    """Pod prefixes behind tunnels."""
    for row in _by_prefix(rows):
        if row.tunnel_ipv4 and row.prefix.prefixlen < row.prefix.max_prefixlen:
            yield agent_pb2.MapEntry(
                tunnel=agent_pb2.TunnelEntry(prefix=str(row.prefix), endpoint=str(row.tunnel_ipv4))
            )


def _by_prefix(rows: Iterable[IpcacheEntry]) -> list[IpcacheEntry]:
    return sorted(rows, key=lambda r: (r.prefix.version, r.prefix.network_address, r.prefix))


def endpoints(infos: Iterable[EndpointInfo]) -> Iterator[agent_pb2.MapEntry]:
    """The rows of local addresses."""
    for info in infos:
        flags = [
            flag.name.removeprefix("ENDPOINT_").lower().replace("_", "-")
            for flag in EndpointFlag
            if info.flags & int(flag)
        ]
        for address in filter(None, (info.ipv4, info.ipv6)):
            yield agent_pb2.MapEntry(
                endpoint=agent_pb2.EndpointMapEntry(
                    ip=str(address),
                    endpoint_id=info.id,
                    identity=info.identity,
                    ifindex=info.ifindex,
                    mac=info.mac,
                    node_mac=info.node_mac,
                    flags=flags,
                )
            )


def metrics(counters: Iterable[Counter]) -> Iterator[agent_pb2.MapEntry]:
    """The counters."""
    files = {int(item): f"{item.name.removeprefix('FILE_').lower()}.c" for item in _FILES}
    for item in sorted(counters, key=lambda c: (c.reason, c.direction, c.file, c.line)):
        of_kernel = item.file == abi.FILE_KERNEL
        file = f"kernel:{drops.kernel_drop(item.line).name}" if of_kernel else files.get(item.file)
        yield agent_pb2.MapEntry(
            metrics=agent_pb2.MetricsEntry(
                reason=item.reason,
                reason_text=reason_text(item.reason),
                direction=direction_text(item.direction),
                packets=item.packets,
                bytes=item.bytes,
                line=0 if of_kernel else item.line,
                file=file or "",
            )
        )


def reason_text(reason: int) -> str:
    """What a counter's reason means."""
    return "Success" if reason == 0 else drops.text(reason)


def direction_text(direction: int) -> str:
    """`INGRESS`, `EGRESS` or `SERVICE`."""
    try:
        return str(_DIRECTION(direction).name).removeprefix("DIR_")
    except ValueError:
        return "UNKNOWN"


def translations(entries: Iterable[NatEntry]) -> Iterator[agent_pb2.MapEntry]:
    """Translations of addresses, both halves of each."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    for item in entries:
        yield agent_pb2.MapEntry(
            nat=agent_pb2.NATEntry(
                protocol=item.proto,
                source=str(item.source),
                source_port=item.source_port,
                destination=str(item.destination),
                destination_port=item.destination_port,
                translated=str(item.to_address),
                translated_port=item.to_port,
                age_s=max(0, (now - item.created_ns) // 1_000_000_000),
                direction="OUT" if item.direction == abi.NAT_OUT else "IN",
                rev_nat=item.rev_nat,
            )
        )
