"""A service that the world asks, on the cluster of scenes.py: its frontend and its backends."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath.models import ServiceConfig
from cilium_core.policy.ports import Protocol
from cilium_core.services.models import (
    Backend,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
    ServiceName,
)

from tests.bpf.scenes import BLUE, NODE, RED

if TYPE_CHECKING:
    from tests.bpf.scenes import Inhabitant, Scene

NODE_PORT, TARGET_PORT, CLIENT_PORT = 30080, 8080, 50123
VIP = ("203.0.113.80", "2001:db8:80::80")


def on(scene: Scene, **changed: Any) -> None:
    """Serve what comes from outside, with these fields of ServiceConfig."""
    services = ServiceConfig(**{"nodes": True, "maglev_size": 251, **changed})
    scene.configure(services=services)


def backend(scene: Scene, who: Inhabitant, port: int = TARGET_PORT, proto: str = "TCP") -> Backend:
    at = L4Address(ipaddress.ip_address(scene.address(who)), port, Protocol[proto])
    return Backend(at, local=who in (RED, BLUE, NODE), node=who.name)


def frontend(
    scene: Scene,
    *who: Inhabitant,
    address: str | None = None,
    port: int = NODE_PORT,
    proto: str = "TCP",
    target: int = TARGET_PORT,
    **changed: Any,
) -> Frontend:
    """A NodePort of the node, or a frontend at another address, that these serve."""
    backends = tuple(backend(scene, each, target, proto) for each in who)
    made = Frontend(
        L4Address(ipaddress.ip_address(address or scene.address(NODE)), port, Protocol[proto]),
        Scope.EXTERNAL,
        FrontendKind.NODE_PORT if address is None else FrontendKind.LOAD_BALANCER,
        ServiceName("default", "web"),
        backends=backends,
        eligible=backends,
    )
    return replace(made, **changed)


def vip(scene: Scene) -> str:
    return VIP[0] if scene.family == 4 else VIP[1]


def serve(scene: Scene, *frontends: Frontend) -> None:
    assert not scene.plane.services.apply(frontends).refused
