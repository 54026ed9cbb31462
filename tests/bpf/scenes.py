"""One small cluster that every data plane case plays in, and the packets of its inhabitants.

On this node live the pods red and blue; green lives on another node, world anywhere else. A `Scene`
has them in one address family, so that a case is written once and holds for both.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from cilium_agent.datapath.models import EndpointInfo, NodeConfig
from cilium_core import abi
from cilium_core.policy import PolicyEntry, PolicyKey
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.bpf.harness import Plane

if TYPE_CHECKING:
    from cilium_agent.datapath.models import Connection

    from tests.bpf.harness import Event, Run

TCP_PROTO, UDP_PROTO, SCTP_PROTO = 6, 17, 132
ALLOW: Final = PolicyEntry(precedence=1, deny=False, redirect=0, audit=False, cookie=0)
DENY: Final = PolicyEntry(precedence=255, deny=True, redirect=0, audit=False, cookie=0)
INGRESS, EGRESS = abi.DIR_INGRESS, abi.DIR_EGRESS
TUNNEL_IFINDEX = 4242
"""Of a device that need not exist: prog-test-run redirects nothing."""


@dataclass(frozen=True)
class Inhabitant:
    """Somebody who sends and receives."""

    name: str
    ipv4: str
    ipv6: str
    identity: int
    endpoint: int = 0
    mac: str = "02:00:00:00:ff:01"
    node_mac: str = "02:00:00:00:ff:02"


RED = Inhabitant(
    "red", "10.244.0.1", "fd00:244::1", 1001, 1, "02:00:00:00:00:01", "02:00:00:00:01:01"
)
BLUE = Inhabitant(
    "blue", "10.244.0.2", "fd00:244::2", 1002, 2, "02:00:00:00:00:02", "02:00:00:00:01:02"
)
GREEN = Inhabitant("green", "10.244.1.3", "fd00:244:0:1::3", 1003)
NODE = Inhabitant("node", "172.30.0.11", "fd00:30::11", abi.ID_HOST)
ROUTER = Inhabitant("router", "10.244.0.254", "fd00:244::fe", abi.ID_HOST)
OTHER_NODE = Inhabitant("other", "172.30.0.12", "fd00:30::12", abi.ID_REMOTE_NODE)
WORLD = Inhabitant("world", "198.51.100.7", "2001:db8::7", abi.ID_WORLD)
NOBODY = Inhabitant("nobody", "10.244.0.77", "fd00:244::77", abi.ID_WORLD)


@dataclass(frozen=True)
class Scene:
    """The cluster in one address family."""

    plane: Plane
    family: int
    """4 or 6."""

    def build(self) -> Scene:
        """Put everybody in place, without any policy."""
        self.plane.configure(
            self.config, tunnel_ifindex=TUNNEL_IFINDEX, host_ifindex=self.plane.device("hostside")
        )
        for pod in (RED, BLUE):
            self.enforce(pod, 0)
        for address in (NODE, ROUTER):
            self.plane.endpoints.upsert(
                EndpointInfo(
                    id=0,
                    identity=abi.ID_HOST,
                    flags=abi.ENDPOINT_HOST,
                    ipv4=ipaddress.IPv4Address(address.ipv4),
                    ipv6=ipaddress.IPv6Address(address.ipv6),
                )
            )
        other = ipaddress.IPv4Address(OTHER_NODE.ipv4)
        for text in ("10.244.1.0/24", "fd00:244:0:1::/64"):
            self.plane.ipcache.upsert(ipaddress.ip_network(text), abi.ID_WORLD, other)
        for text in (GREEN.ipv4, GREEN.ipv6):
            self.plane.ipcache.upsert(ipaddress.ip_network(text), GREEN.identity, other)
        for text in (OTHER_NODE.ipv4, OTHER_NODE.ipv6):
            self.plane.ipcache.upsert(ipaddress.ip_network(text), abi.ID_REMOTE_NODE)
        return self

    @property
    def config(self) -> NodeConfig:
        return NodeConfig(
            node_ipv4=ipaddress.IPv4Address(NODE.ipv4),
            node_ipv6=ipaddress.IPv6Address(NODE.ipv6),
            router_ipv4=ipaddress.IPv4Address(ROUTER.ipv4),
            router_ipv6=ipaddress.IPv6Address(ROUTER.ipv6),
        )

    def configure(self, **changed: Any) -> None:
        """Change the node's configuration, by fields of NodeConfig."""
        self.plane.configure(
            replace(self.config, **changed),
            tunnel_ifindex=TUNNEL_IFINDEX,
            host_ifindex=self.plane.device("hostside"),
        )

    def enforce(self, pod: Inhabitant, flags: int) -> EndpointInfo:
        """Write a pod's rows with these endpoint flags."""
        return self.plane.endpoints.upsert(
            EndpointInfo(
                id=pod.endpoint,
                identity=pod.identity,
                ifindex=self.plane.device(pod.name),
                ipv4=ipaddress.IPv4Address(pod.ipv4),
                ipv6=ipaddress.IPv6Address(pod.ipv6),
                mac=pod.mac,
                node_mac=pod.node_mac,
                flags=flags,
            )
        )

    def rules(self, pod: Inhabitant, rules: dict[PolicyKey, PolicyEntry], flags: int = 0) -> None:
        """Enforce these rules on a pod, in the directions that they speak of or that flags say."""
        directions = {
            abi.DIR_INGRESS: abi.ENDPOINT_ENFORCE_INGRESS,
            abi.DIR_EGRESS: abi.ENDPOINT_ENFORCE_EGRESS,
        }
        for key in rules:
            flags |= directions[key.direction]
        self.plane.policy.replace(pod.endpoint, rules)
        self.enforce(pod, flags)

    # ---- packets (Any: scapy's types know neither indices nor attributes) ----

    def address(self, who: Inhabitant | str) -> str:
        if isinstance(who, str):
            return who
        return who.ipv4 if self.family == 4 else who.ipv6

    def ip(self, source: Inhabitant | str, target: Inhabitant | str, **fields: Any) -> Any:
        """Headers up to layer 3, as the sender's device has them."""
        mac = source if isinstance(source, Inhabitant) else RED
        ethernet = Ether(src=mac.mac, dst=mac.node_mac)
        layer = IP if self.family == 4 else IPv6
        return ethernet / layer(src=self.address(source), dst=self.address(target), **fields)

    def tcp(
        self,
        source: Inhabitant | str,
        target: Inhabitant | str,
        sport: int = 40000,
        dport: int = 80,
        flags: str = "S",
        payload: bytes = b"",
        **fields: Any,
    ) -> Any:
        ports = TCP(sport=sport, dport=dport, flags=flags)
        return self.ip(source, target, **fields) / ports / Raw(payload)

    def udp(
        self,
        source: Inhabitant | str,
        target: Inhabitant | str,
        sport: int = 40000,
        dport: int = 53,
        payload: bytes = b"question",
        **fields: Any,
    ) -> Any:
        return self.ip(source, target, **fields) / UDP(sport=sport, dport=dport) / Raw(payload)

    def echo(
        self,
        source: Inhabitant | str,
        target: Inhabitant | str,
        number: int = 7,
        *,
        reply: bool = False,
        payload: bytes = b"ping",
        **fields: Any,
    ) -> Any:
        layer: Any
        if self.family == 4:
            layer = ICMP(type=0 if reply else 8, id=number, seq=1)
        else:
            layer = (ICMPv6EchoReply if reply else ICMPv6EchoRequest)(id=number, seq=1)
        return self.ip(source, target, **fields) / layer / Raw(payload)

    # ---- running them ----

    def send(self, pod: Inhabitant, packet: Any, **context: Any) -> Run:
        """A pod sends a packet."""
        return self.plane.run("cil_from_container", packet, device=pod.name, **context)

    def stack_sends(self, pod: Inhabitant, packet: Any, mark: int = 0) -> Run:
        """The stack of the node sends a packet to a pod's device."""
        return self.plane.run("cil_to_container", packet, device=pod.name, mark=mark)

    def tunnel(self, packet: Any, identity: int = GREEN.identity) -> Run:
        """A packet comes out of the tunnel; the program behind the one that reads the key."""
        peer = int.from_bytes(ipaddress.IPv4Address(OTHER_NODE.ipv4).packed, "little")
        program = f"tail_from_overlay_ipv{self.family}"
        return self.plane.run(program, packet, device="vxlan", cb=[identity, peer])

    def arrive(self, packet: Any) -> Run:
        """A packet arrives from the network."""
        return self.plane.run("cil_from_netdev", packet, device="eth0")

    def leave(self, packet: Any, mark: int = 0) -> Run:
        """A packet leaves to the network."""
        return self.plane.run("cil_to_netdev", packet, device="eth0", mark=mark)

    def host_sends(self, packet: Any) -> Run:
        """A process of the node sends a packet to a pod."""
        return self.plane.run("cil_from_host", packet, device="hostside")

    # ---- what became of them ----

    def parse(self, packet: bytes) -> Any:
        return Ether(packet)

    @property
    def icmp(self) -> int:
        """Protocol number of ICMP."""
        return 1 if self.family == 4 else 58

    @property
    def request(self) -> int:
        """Type of an echo request."""
        return 8 if self.family == 4 else 128

    def connections(self) -> list[Connection]:
        return list(self.plane.conntrack.dump())

    def connection(self) -> Connection:
        """The only connection there is."""
        (found,) = self.connections()
        return found


def of_type(run: Run, kind: int) -> list[Event]:
    """The run's events of one type."""
    return [event for event in run.events if event.type == kind]


def drops(run: Run) -> list[int]:
    """Reasons of the run's drop events."""
    return [event.subtype for event in of_type(run, abi.EVENT_DROP)]


def traces(run: Run) -> list[int]:
    """Trace points of the run's trace events."""
    return [event.subtype for event in of_type(run, abi.EVENT_TRACE)]


def verdicts(run: Run) -> list[tuple[int, int]]:
    """Endpoint and verdict of the run's policy verdict events."""
    return [(event.endpoint, event.verdict) for event in of_type(run, abi.EVENT_POLICY_VERDICT)]


def port_rule(
    direction: int, peer: Inhabitant | int, proto: int = TCP_PROTO, port: int = 80, bits: int = 24
) -> PolicyKey:
    """Key of a rule; fewer than 24 bits make it wider: 8 is the protocol, 0 anything."""
    identity = peer.identity if isinstance(peer, Inhabitant) else peer
    return PolicyKey(direction, identity, proto if bits else 0, port if bits > 8 else 0, bits)
