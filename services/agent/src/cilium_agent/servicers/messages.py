"""Domain values as messages of the agent's API. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium.agent.v1 import agent_pb2
from cilium_core.records import CILIUM_INTERNAL_IP

from cilium_agent.endpoints import options
from cilium_agent.proxies import encoding
from cilium_agent.statuses import Component, Health

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cilium_core.labels import LabelSet
    from cilium_core.policy import CookieTable, PolicyEntry, PolicyKey
    from cilium_core.policy.l7 import Redirect
    from cilium_core.records import NodeRecord

    from cilium_agent.datapath import PrefilterState
    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.fqdn.names import NameRow
    from cilium_agent.ipcaches import Entry, Source

_HEALTH = {
    Health.OK: agent_pb2.COMPONENT_STATE_OK,
    Health.WARNING: agent_pb2.COMPONENT_STATE_WARNING,
    Health.FAILURE: agent_pb2.COMPONENT_STATE_FAILURE,
    Health.DISABLED: agent_pb2.COMPONENT_STATE_DISABLED,
}
_DIRECTIONS = {1: "ingress", 2: "egress"}
_PORT_BITS = 16
_PROTOCOL_BITS = 8
_VERDICT_BYTE = 0xFF
_ICMP = (1, 58)


def component(item: Component) -> agent_pb2.ComponentStatus:
    """A line of the status."""
    return agent_pb2.ComponentStatus(
        name=item.name, state=_HEALTH[item.health], message=item.message
    )


def _enforcement(*, enforced: bool, audit: bool) -> agent_pb2.Enforcement:
    if not enforced:
        return agent_pb2.ENFORCEMENT_DISABLED
    return agent_pb2.ENFORCEMENT_AUDIT if audit else agent_pb2.ENFORCEMENT_ENABLED


def endpoint(item: Endpoint, *, audit: bool) -> agent_pb2.Endpoint:
    """An endpoint; `audit` when denials are reported and passed."""
    link = item.link
    audit = audit or item.audit
    return agent_pb2.Endpoint(
        id=item.id,
        identity=item.identity,
        labels=item.labels.texts(),
        ipv4=item.ipv4,
        ipv6=item.ipv6,
        state=item.state.value,
        namespace=item.namespace,
        pod_name=item.pod_name,
        container_id=item.attachment.container_id,
        interface=link.interface if link else "",
        ifindex=link.ifindex if link else 0,
        mac=link.mac if link else "",
        ingress=_enforcement(enforced=item.ingress_enforced, audit=audit),
        egress=_enforcement(enforced=item.egress_enforced, audit=audit),
        policy_revision=item.policy_revision,
        named_ports=[
            agent_pb2.NamedPort(name=port.name, port=port.port, protocol=port.protocol)
            for port in item.named_ports
        ],
        error=item.error,
        conflicts=map(str, item.conflicts),
        options=options.current(item),
    )


def add_default_denies(
    message: agent_pb2.Endpoint, entries: Mapping[PolicyKey, PolicyEntry], cookies: CookieTable
) -> None:
    """Say which policies close the directions of an endpoint."""
    found = {1: message.ingress_default_deny, 2: message.egress_default_deny}
    for key, entry in entries.items():
        if is_default_deny(key, entry):
            found[int(key.direction)].extend(origins(entry.cookie, cookies))


def is_default_deny(key: PolicyKey, entry: PolicyEntry) -> bool:
    """Whether an entry only names who closes a direction to all that nothing allows."""
    wide = not key.identity and not key.prefixlen
    return wide and entry.deny and not entry.precedence & _VERDICT_BYTE


def redirect(item: Redirect) -> agent_pb2.Redirect:
    """What a proxy enforces."""
    return agent_pb2.Redirect(
        kind=item.kind.value,
        ingress=item.ingress,
        allow_all=item.allow_all,
        audit=item.audit,
        rules=encoding.rules(item),
        server_names=sorted(item.server_names),
        terminating="/".join(item.terminating.secret) if item.terminating else "",
        originating="/".join(item.originating.secret) if item.originating else "",
    )


def name(row: NameRow) -> agent_pb2.NameEntry:
    """A name that was looked up."""
    message = agent_pb2.NameEntry(
        endpoint_id=row.endpoint,
        source=row.source,
        name=row.name,
        ttl_s=row.ttl_s,
        addresses=row.addresses,
    )
    message.looked_up.FromNanoseconds(int(row.looked_up_s * 1e9))
    message.expires.FromNanoseconds(int(row.expires_s * 1e9))
    return message


def endpoint_log(item: Endpoint) -> list[agent_pb2.EndpointLogEntry]:
    """An endpoint's log, oldest first."""
    entries = []
    for entry in item.log:
        message = agent_pb2.EndpointLogEntry(state=entry.state.value, message=entry.message)
        message.time.FromNanoseconds(int(entry.time_s * 1e9))
        entries.append(message)
    return entries


def policy_entry(
    key: PolicyKey,
    entry: PolicyEntry,
    labels: LabelSet | None,
    cookies: CookieTable,
    redirects: Mapping[int, Redirect],
) -> agent_pb2.PolicyEntry:
    """An entry of an endpoint's policy with who it is about and where it comes from.

    `redirects` tells what is enforced on the ports of proxies.
    """
    first, last = port_range(key)
    message = agent_pb2.PolicyEntry(
        direction=_DIRECTIONS[int(key.direction)],
        identity=key.identity,
        protocol=key.proto,
        port=first,
        end_port=last,
        deny=entry.deny,
        precedence=entry.precedence,
        cookie=entry.cookie,
        proxy_port=max(entry.redirect, 0),
        derived_from=origins(entry.cookie, cookies),
        labels=labels.texts() if labels is not None and key.identity else [],
        audit=entry.audit,
        redirect=bool(entry.redirect),
    )
    if (enforced := redirects.get(entry.redirect)) is not None:
        message.l7.CopyFrom(redirect(enforced))
    return message


def origins(cookie: int, cookies: CookieTable) -> list[str]:
    """The policies behind an entry, "kind namespace/name"."""
    found = cookies.origins(cookie)
    names = {
        f"{o.kind} {o.namespace}/{o.name}" if o.namespace else f"{o.kind} {o.name}"
        for o in found
        if o.kind
    }
    names |= {label for o in found if not o.kind for label in o.labels}
    return sorted(names)


def port_range(key: PolicyKey) -> tuple[int, int]:
    """First and last port that a key covers, 0 and 0 for any."""
    bits = key.prefixlen - _PROTOCOL_BITS
    if bits <= 0:
        return 0, 0
    return key.port, key.port | ((1 << (_PORT_BITS - bits)) - 1)


def ip_entry(
    prefix: str, source: Source, entry: Entry, labels: LabelSet | None
) -> agent_pb2.IPEntry:
    """A row of the address table."""
    return agent_pb2.IPEntry(
        prefix=prefix,
        identity=entry.identity,
        labels=labels.texts() if labels is not None else [],
        host_ip=entry.host_ip,
        source=source.label,
        namespace=entry.namespace,
        pod_name=entry.pod_name,
    )


def node(record: NodeRecord, *, local: bool) -> agent_pb2.Node:
    """A node."""
    inside = {v: record.address(v, CILIUM_INTERNAL_IP) for v in (4, 6)}
    return agent_pb2.Node(
        name=record.name,
        cluster=record.cluster,
        ipv4=str(record.address(4) or ""),
        ipv6=str(record.address(6) or ""),
        pod_cidrs=[str(cidr) for cidr in record.pod_cidrs],
        cilium_ipv4=str(inside[4] or ""),
        cilium_ipv6=str(inside[6] or ""),
        source="local" if local else "kvstore",
    )


def prefilter(state: PrefilterState, revision: int) -> agent_pb2.Prefilter:
    """The prefilter."""
    return agent_pb2.Prefilter(
        cidrs=sorted(str(cidr) for cidr in state.cidrs),
        rate_limit_pps=state.rate_limit_pps,
        rate_limit_burst=state.rate_limit_burst,
        devices=[f"{name} ({mode})" for name, mode in sorted(state.attached.items())],
        revision=revision,
    )
