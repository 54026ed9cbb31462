"""How the agent and its parts fare: one line each, from what is known without asking anybody."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from cilium_core.policy import PolicyRef

from cilium_agent import service_statuses
from cilium_agent.endpoints.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_core.records import PolicyFinding

    from cilium_agent.app import Agent

OPTIONAL_FEATURES = frozenset({"compiler bcc", "kernel headers", "program type xdp"})
"""Needed only when programs must be compiled, or when the prefilter is used."""


class Health(Enum):
    """Health of a component."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    DISABLED = "disabled"


@dataclass(frozen=True)
class Component:
    """One line of `cilium status`."""

    name: str
    health: Health
    message: str


def collect(agent: Agent) -> list[Component]:
    """The state of every component, in the order in which it is shown."""
    return list(_components(agent))


def failures(agent: Agent) -> str:
    """What makes the agent unhealthy, in one line; empty while nothing does."""
    bad = [c for c in _components(agent) if c.health is Health.FAILURE]
    return "; ".join(f"{c.name}: {c.message}" for c in bad)


def _components(agent: Agent) -> Iterator[Component]:
    yield _store(agent)
    yield Component("Kubernetes", Health.DISABLED, "objects are kept in etcd")
    if agent.ready:
        yield from _services(agent)
    yield _cni(agent)
    yield _agent(agent)
    yield _features(agent)
    yield _ipam(agent)
    if agent.ready:
        yield _routing(agent)
        yield _masquerading(agent)
        yield _monitor(agent)
    yield _endpoints(agent)
    yield _policy(agent)
    yield _proxies(agent)
    yield _controllers(agent)


def _store(agent: Agent) -> Component:
    status = agent.store.status()
    if status.connected:
        return Component("KVStore", Health.OK, f"etcd: connected to {status.endpoint}")
    error = status.error or "not connected yet"
    return Component("KVStore", Health.FAILURE, f"etcd: {error}; the node enforces what it knows")


def _cni(agent: Agent) -> Component:
    name = "CNI Config file"
    if agent.settings.cni_conf_dir is None:
        return Component(name, Health.DISABLED, "cni-conf-dir is empty")
    if agent.cni_error:
        return Component(name, Health.FAILURE, agent.cni_error)
    if agent.cni_file is None:
        return Component(name, Health.WARNING, "written when the node is ready")
    return Component(name, Health.OK, f"wrote {agent.cni_file}")


def _agent(agent: Agent) -> Component:
    text = f"{agent.version} on {agent.settings.node_name}"
    if agent.ready:
        return Component("Cilium", Health.OK, text)
    return Component("Cilium", Health.WARNING, f"{text}, {agent.phase}")


def _features(agent: Agent) -> Component:
    missing = sorted(name for name, works in agent.features.items() if not works)
    if not missing:
        return Component("Kernel features", Health.OK, f"all {len(agent.features)} present")
    return Component("Kernel features", Health.WARNING, f"missing: {', '.join(missing)}")


def _ipam(agent: Agent) -> Component:
    pool = agent.addresses.pool
    if not agent.addresses.complete:
        text = agent.pod_cidrs.error or "waiting for the operator to assign pod CIDRs"
        return Component("IPAM", Health.WARNING, text)
    parts = []
    for version in (4, 6):
        cidrs = [str(cidr) for cidr in pool.pod_cidrs if cidr.version == version]
        if cidrs:
            used, capacity = pool.used(version), pool.capacity(version)
            parts.append(f"IPv{version}: {used}/{capacity} allocated from {', '.join(cidrs)}")
    return Component("IPAM", Health.OK, "; ".join(parts))


def _routing(agent: Agent) -> Component:
    settings = agent.settings
    tunnel = f"Network: Tunnel [{settings.tunnel_protocol}]   Host: BPF"
    others = max(len(agent.nodes.all()) - 1, 0)
    return Component("Routing", Health.OK, f"{tunnel}   Other nodes: {others}")


def _masquerading(agent: Agent) -> Component:
    config = agent.plane.datapath.config
    families = ", ".join(
        f"{name}: {'Enabled' if on else 'Disabled'}"
        for name, on in (("IPv4", config.masquerade_ipv4), ("IPv6", config.masquerade_ipv6))
    )
    return Component("Masquerading", Health.OK, f"BPF   [{', '.join(config.devices)}]   {families}")


def _monitor(agent: Agent) -> Component:
    config = agent.plane.datapath.config
    if not config.hubble:
        return Component("Hubble", Health.DISABLED, "enable-hubble is false")
    return Component("Hubble", Health.OK, f"{agent.hub.watchers} readers of metadata")


def _services(agent: Agent) -> Iterator[Component]:
    name = "KubeProxyReplacement"
    text, troubles = service_statuses.summary(agent), service_statuses.troubles(agent)
    if troubles:
        yield Component(name, Health.WARNING, f"{text}; not served as written: {troubles}")
    else:
        yield Component(name, Health.OK, text)
    yield Component(f"{name} Details", Health.OK, service_statuses.details(agent))


def _endpoints(agent: Agent) -> Component:
    endpoints = [e for e in agent.table if e.alive]
    ready = sum(e.state is State.READY and not e.error for e in endpoints)
    text = f"{ready}/{len(endpoints)} ready"
    troubles = [f"endpoint {e.id}: {e.error}" for e in endpoints if e.error]
    troubles += [str(item.error) for item in agent.restorer.broken.values()]
    if troubles:
        return Component("Endpoints", Health.WARNING, f"{text}; {'; '.join(troubles)}")
    return Component("Endpoints", Health.OK, text)


def _policy(agent: Agent) -> Component:
    policies = agent.policies
    text = f"{len(policies.engine.repository)} policies, revision {policies.engine.revision}"
    findings = sorted(agent.findings.present)
    if findings:
        described = "; ".join(f"{_ref(one)} ({one.reason}): {one.message}" for one in findings)
        return Component("Policy", Health.WARNING, f"{text}; not enforced as written: {described}")
    return Component("Policy", Health.OK, text)


def _ref(finding: PolicyFinding) -> str:
    return str(PolicyRef(finding.kind, finding.namespace, finding.name))


def _proxies(agent: Agent) -> Component:
    name = "Proxy Status"
    if not agent.settings.enable_l7_proxy:
        return Component(name, Health.DISABLED, "enable-l7-proxy is false")
    status = agent.proxies.status()
    health = Health.WARNING if status.problems else Health.OK
    return Component(name, health, status.line.removeprefix("OK, "))


def _controllers(agent: Agent) -> Component:
    everyone = list(agent.controllers)
    failing = agent.controllers.failing()
    text = f"{len(everyone) - len(failing)}/{len(everyone)} healthy"
    if failing:
        details = "; ".join(f"{status.name}: {status.last_error}" for status in failing)
        return Component("Controller Status", Health.WARNING, f"{text}; {details}")
    return Component("Controller Status", Health.OK, text)
