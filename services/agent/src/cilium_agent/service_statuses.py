"""How services fare on a node, for `cilium status`. From what is known without asking anybody."""

from __future__ import annotations

from collections import Counter as CountOf
from typing import TYPE_CHECKING

from cilium_core.services.models import FrontendKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_agent.app import Agent
    from cilium_agent.datapath.models import ServiceConfig

_SHOWN = 3
"""Troubles told in a line; the rest is counted."""


def summary(agent: Agent) -> str:
    """Whether this node stands in for kube-proxy, and where it is asked from outside."""
    replaces = agent.settings.kube_proxy_replacement
    addresses = [str(one) for one in agent.services.table.node.node_port_addresses]
    devices = agent.plane.datapath.config.devices
    where = f"   [{', '.join([*devices, *addresses])}]" if replaces else ""
    return f"{replaces}{where}"


def troubles(agent: Agent) -> str:
    """What is not served as objects say; empty when everything is."""
    services = agent.services
    found = [f"{at}: {why}" for (at, _), why in sorted(services.refused().items(), key=str)]
    found += [str(remark) for remark in services.table.remarks]
    if len(found) <= _SHOWN:
        return "; ".join(found)
    return f"{'; '.join(found[:_SHOWN])}; and {len(found) - _SHOWN} more"


def details(agent: Agent) -> str:
    """How services are translated, a line each."""
    return "\n".join(f"{name + ':':<22} {text}" for name, text in _details(agent))


def _details(agent: Agent) -> Iterator[tuple[str, str]]:
    settings, config = agent.settings, agent.plane.datapath.config.services
    yield "Status", str(settings.kube_proxy_replacement)
    yield "Socket LB", _enabled(on=config.sockets)
    if config.sockets:
        yield "Socket LB Tracing", _enabled(on=config.socket_trace)
        coverage = "Hostns-only" if config.sockets_of_host_only else "Full"
        yield "Socket LB Coverage", coverage
    yield "Devices", ", ".join(agent.plane.datapath.config.devices)
    yield "Mode", _mode(config)
    yield "Backend Selection", _selection(agent)
    affinity = "Enabled" if settings.enable_session_affinity else "Disabled"
    yield "Session Affinity", affinity
    yield "No backends", "Reject" if config.reject else "Drop"
    yield "XDP Acceleration", config.acceleration.capitalize()
    yield "Local redirects", _enabled(on=settings.enable_local_redirect_policy)
    counts = CountOf(one.kind for one in agent.services.frontends() if one.at.port)
    outside = settings.kube_proxy_replacement
    for kind in FrontendKind:
        on = outside or kind in (FrontendKind.CLUSTER_IP, FrontendKind.LOCAL_REDIRECT)
        text = f"{_enabled(on=on)}, {counts[kind]} frontends"
        if kind is FrontendKind.NODE_PORT and on:
            text += f" (range {config.node_port_min}-{config.node_port_max})"
        yield kind.value, text


def _mode(config: ServiceConfig) -> str:
    if config.dsr_tcp:
        return "DSR" if config.dsr_udp else "Hybrid"
    return "SNAT"


def _selection(agent: Agent) -> str:
    algorithm = agent.settings.bpf_lb_algorithm
    if algorithm == "maglev":
        return f"Maglev (Table Size: {agent.settings.bpf_lb_maglev_table_size})"
    return str(algorithm).capitalize()


def _enabled(*, on: bool) -> str:
    return "Enabled" if on else "Disabled"
