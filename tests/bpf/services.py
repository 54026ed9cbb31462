"""Services in the scene: frontends over its inhabitants, and packets looked at closely."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from cilium_core.policy.ports import Protocol
from cilium_core.services.models import (
    Backend,
    BackendState,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
    ServiceName,
)
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.bpf.scenes import Inhabitant

if TYPE_CHECKING:
    from tests.bpf.scenes import Scene

SERVICE = Inhabitant("service", "10.96.0.10", "fd00:96::10", 0)
"""Where the service is asked."""
HAIRPIN = Inhabitant("hairpin", "169.254.42.1", "fe80::1", 0)
"""With whose address a pod hears from itself."""
PORT, TARGET = 80, 8080
"""Of the frontend and of the backends, unless said otherwise."""
_CHECKSUMS = {"chksum", "cksum"}


def at(scene: Scene, who: Inhabitant | str, port: int, proto: Protocol = Protocol.TCP) -> L4Address:
    """A port of somebody."""
    return L4Address(ipaddress.ip_address(scene.address(who)), port, proto)


def backend(
    scene: Scene,
    who: Inhabitant | str,
    port: int = TARGET,
    proto: Protocol = Protocol.TCP,
    state: BackendState = BackendState.ACTIVE,
) -> Backend:
    """Somebody who serves."""
    return Backend(at(scene, who, port, proto), state)


def frontend(
    scene: Scene,
    *backends: Backend,
    port: int = PORT,
    proto: Protocol = Protocol.TCP,
    kind: FrontendKind = FrontendKind.CLUSTER_IP,
    address: Inhabitant | str = SERVICE,
    **fields: Any,
) -> Frontend:
    """Make a frontend that goes to its active backends."""
    return Frontend(
        at(scene, address, port, proto),
        fields.pop("scope", Scope.EXTERNAL),
        kind,
        ServiceName("default", "shop"),
        backends=backends,
        eligible=tuple(each for each in backends if each.state == BackendState.ACTIVE),
        **fields,
    )


def serve(scene: Scene, *who: Inhabitant | str | Backend, **fields: Any) -> Frontend:
    """Put a service in place, served by these, at TARGET unless they are backends."""
    proto = fields.get("proto", Protocol.TCP)
    target = fields.pop("target", TARGET)
    made = frontend(
        scene,
        *(
            each if isinstance(each, Backend) else backend(scene, each, target, proto)
            for each in who
        ),
        **fields,
    )
    assert not scene.plane.services.apply([made]).refused
    return made


def source(packet: bytes) -> str:
    """Source address."""
    return str(layer3(packet).src)


def target(packet: bytes) -> str:
    """Destination address."""
    return str(layer3(packet).dst)


def ports(packet: bytes) -> tuple[int, int]:
    """Source and destination port."""
    found: Any = Ether(packet)
    return found.sport, found.dport


def layer3(packet: bytes) -> Any:
    """The outermost IP header with what it carries."""
    found: Any = Ether(packet)
    return found[IP] if IP in found else found[IPv6]


def assert_checksums_right(packet: bytes) -> None:
    """Compare the checksums of the outer headers with those of a packet built anew."""
    fresh = layer3(packet)
    wanted = _checksums(fresh)
    for layer in (fresh, fresh.payload):
        for name in _CHECKSUMS & layer.fields.keys():
            delattr(layer, name)
    assert _checksums(type(fresh)(bytes(fresh))) == wanted


def _checksums(packet: Any) -> list[int]:
    layers = (packet, packet.payload)
    return [layer.fields[name] for layer in layers for name in _CHECKSUMS & layer.fields.keys()]
