"""Services asked from outside: to a pod here, to one elsewhere and back, and refusals."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent.datapath.models import ServiceConfig
from cilium_core import abi
from cilium_core.policy.ports import Protocol
from cilium_core.services import maglev
from cilium_core.services.hashing import flow_hash, read_seed
from cilium_core.services.models import Algorithm, L4Address
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from tests.bpf.harness import TC_OK, TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import (
    ALLOW,
    BLUE,
    GREEN,
    NODE,
    RED,
    ROUTER,
    TCP_PROTO,
    WORLD,
    drops,
    of_type,
    port_rule,
    traces,
)
from tests.bpf.services_from_outside import (
    CLIENT_PORT,
    NODE_PORT,
    TARGET_PORT,
    frontend,
    on,
    serve,
    vip,
)
from tests.bpf.test_masquerade import assert_checksums_right, layer3, nat, ones_sum, quote_of

if TYPE_CHECKING:
    from tests.bpf.harness import Run
    from tests.bpf.scenes import Scene

ICMP_UNREACHABLE = {4: ICMP(type=3, code=3), 6: ICMPv6DestUnreach(code=4)}


@pytest.fixture
def served(scene: Scene) -> Scene:
    """The scene with services from outside switched on."""
    on(scene)
    return scene


def ask(scene: Scene, kind: str = "tcp", flags: str = "S", **fields: Any) -> Run:
    """The world asks the NodePort."""
    return scene.arrive(request(scene, kind, flags, **fields))


def request(
    scene: Scene, kind: str = "tcp", flags: str = "S", target: Any = NODE, **fields: Any
) -> Any:
    where = {"sport": CLIENT_PORT, "dport": NODE_PORT, **fields}
    if kind == "tcp":
        return scene.tcp(WORLD, target, flags=flags, **where)
    return scene.udp(WORLD, target, **where)


def ends(scene: Scene, packet: bytes) -> tuple[str, int, str, int]:
    layer = layer3(scene, packet)
    return layer.src, layer.payload.sport, layer.dst, layer.payload.dport


# ---- a backend of this node ----


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_pod_here_gets_the_packet_with_the_clients_address(served: Scene, kind: str) -> None:
    serve(served, frontend(served, RED, proto=kind.upper()))
    run = ask(served, kind)
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [])
    world, red = served.address(WORLD), served.address(RED)
    assert ends(served, run.packet) == (world, CLIENT_PORT, red, TARGET_PORT)
    assert Ether(run.packet).dst == RED.mac
    assert_checksums_right(served, run.packet)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_the_pods_answer_has_the_address_that_was_asked(served: Scene, kind: str) -> None:
    serve(served, frontend(served, RED, proto=kind.upper()))
    ask(served, kind)
    answer: Any = {"sport": TARGET_PORT, "dport": CLIENT_PORT}
    if kind == "tcp":
        run = served.send(RED, served.tcp(RED, WORLD, flags="SA", **answer))
    else:
        run = served.send(RED, served.udp(RED, WORLD, **answer))
    node, world = served.address(NODE), served.address(WORLD)
    assert drops(run) == []
    assert ends(served, run.packet) == (node, NODE_PORT, world, CLIENT_PORT)
    assert_checksums_right(served, run.packet)
    assert served.leave(run.packet, mark=run.mark).packet == run.packet


def test_the_pods_policy_is_asked_about_the_world(served: Scene) -> None:
    serve(served, frontend(served, RED))
    served.rules(RED, {port_rule(abi.DIR_INGRESS, GREEN, TCP_PROTO, TARGET_PORT): ALLOW})
    run = ask(served)
    assert (run.verdict, drops(run)) == (TC_SHOT, [133])
    served.rules(RED, {port_rule(abi.DIR_INGRESS, WORLD, TCP_PROTO, TARGET_PORT): ALLOW})
    assert ask(served).verdict == TC_REDIRECT


def test_nothing_happens_while_it_is_switched_off(scene: Scene) -> None:
    on(scene, nodes=False)
    serve(scene, frontend(scene, RED))
    packet = request(scene)
    run = scene.arrive(packet)
    assert (run.verdict, run.packet) == (TC_OK, bytes(packet))


# ---- a backend of another node ----


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_pod_elsewhere_gets_the_packet_through_the_tunnel_from_this_node(
    served: Scene, kind: str
) -> None:
    serve(served, frontend(served, GREEN, proto=kind.upper()))
    run = ask(served, kind)
    assert (run.verdict, drops(run), traces(run)) == (TC_REDIRECT, [], [abi.TRACE_TO_OVERLAY])
    router, green = served.address(ROUTER), served.address(GREEN)
    assert ends(served, run.packet) == (router, CLIENT_PORT, green, TARGET_PORT)
    (event,) = of_type(run, abi.EVENT_TRACE)
    assert event.src_identity == abi.ID_WORLD
    assert event.orig_saddr.startswith(ipaddress.ip_address(served.address(WORLD)).packed)
    assert_checksums_right(served, run.packet)


def back_from_green(scene: Scene, sent: bytes, kind: str, flags: str = "SA") -> Run:
    source, sport, target, dport = ends(scene, sent)
    if kind == "tcp":
        packet = scene.tcp(target, source, dport, sport, flags=flags)
    else:
        packet = scene.udp(target, source, dport, sport)
    return scene.tunnel(packet)


@pytest.mark.parametrize("port", [CLIENT_PORT, 1024])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_its_answer_goes_to_the_client_with_the_address_that_was_asked(
    served: Scene, kind: str, port: int
) -> None:
    serve(served, frontend(served, GREEN, proto=kind.upper()))
    run = back_from_green(served, ask(served, kind, sport=port).packet, kind)
    node, world = served.address(NODE), served.address(WORLD)
    assert drops(run) == []
    assert ends(served, run.packet) == (node, NODE_PORT, world, port)
    assert_checksums_right(served, run.packet)


def test_two_clients_with_one_port_are_told_apart(served: Scene) -> None:
    serve(served, frontend(served, GREEN))
    other = "198.51.100.8" if served.family == 4 else "2001:db8::8"
    packets = [
        served.arrive(served.tcp(client, NODE, CLIENT_PORT, NODE_PORT)).packet
        for client in (served.address(WORLD), other)
    ]
    clients = [ends(served, back_from_green(served, sent, "tcp").packet)[2] for sent in packets]
    assert clients == [served.address(WORLD), other]
    assert len({ends(served, sent)[1] for sent in packets}) == 2


def test_two_frontends_asked_from_one_port_are_told_apart(served: Scene) -> None:
    serve(served, frontend(served, GREEN), frontend(served, GREEN, address=vip(served), port=80))
    first = ask(served).packet
    second = ask(served, target=vip(served), dport=80).packet
    asked = [
        ends(served, back_from_green(served, sent, "tcp").packet)[:2] for sent in (first, second)
    ]
    assert asked == [(served.address(NODE), NODE_PORT), (vip(served), 80)]


def test_a_mapping_is_mended_when_half_of_it_is_lost(served: Scene) -> None:
    serve(served, frontend(served, GREEN))
    sent = ask(served, sport=1024).packet
    table = served.plane.maps["SNAT4" if served.family == 4 else "SNAT6"]
    name = f"nat_key{served.family}"
    for direction in (abi.NAT_IN, abi.NAT_OUT):
        (key,) = [key for key, _ in table.items() if abi.unpack(name, key).direction == direction]
        table.delete(key)
        if direction == abi.NAT_OUT:
            back_from_green(served, sent, "tcp")
        again = ask(served, flags="A", sport=1024).packet
        assert ends(served, again) == ends(served, sent)
        assert len(list(served.plane.nat.dump())) == 2


@pytest.mark.parametrize("who", [GREEN, NODE], ids=["elsewhere", "node"])
def test_a_mapping_lives_as_long_as_the_clients_connection(served: Scene, who: Any) -> None:
    serve(served, frontend(served, who))
    ask(served)
    held = len(list(served.plane.nat.dump()))
    assert held
    now = int(time.monotonic())
    assert served.plane.conntrack.gc(now + 30).nat_deleted == 0
    assert served.plane.conntrack.gc(now + 10_000).nat_deleted == held


def test_an_error_about_the_clients_packet_comes_back_as_one_about_the_frontend(
    served: Scene,
) -> None:
    serve(served, frontend(served, GREEN, proto="UDP"))
    sent = ask(served, "udp", sport=1024).packet
    error = served.ip(GREEN, ROUTER) / ICMP_UNREACHABLE[served.family] / Raw(quote_of(served, sent))
    run = served.tunnel(error)
    received = served.parse(run.packet)
    assert drops(run) == []
    assert received[1].src == served.address(NODE)
    assert received[1].dst == served.address(WORLD)
    inner = received[3]
    assert (inner.src, inner.payload.sport) == (served.address(WORLD), 1024)
    assert (inner.dst, inner.payload.dport) == (served.address(NODE), NODE_PORT)
    if served.family == 4:
        assert ones_sum(bytes(received[IP])[20:]) == 0xFFFF


@pytest.mark.parametrize("who", [RED, GREEN], ids=["here", "elsewhere"])
def test_an_error_about_an_answer_goes_to_the_backend(served: Scene, who: Any) -> None:
    serve(served, frontend(served, who, proto="UDP"))
    asked = ask(served, "udp", sport=1024).packet
    source, sport, target, dport = ends(served, asked)
    answer = served.udp(NODE, WORLD, NODE_PORT, 1024)
    error = ICMP_UNREACHABLE[served.family]
    run = served.arrive(served.ip(WORLD, NODE) / error / Raw(quote_of(served, bytes(answer))))
    received = served.parse(run.packet)
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [])
    assert (received[1].src, received[1].dst) == (source, target)
    inner = received[3]
    assert (inner.src, inner.payload.sport) == (target, dport)
    assert (inner.dst, inner.payload.dport) == (source, sport)


def test_sctp_goes_with_its_ports_or_not_at_all(served: Scene) -> None:
    serve(served, frontend(served, GREEN, proto="SCTP", target=NODE_PORT))
    packet = served.ip(WORLD, NODE) / SCTP(sport=1024, dport=NODE_PORT) / Raw(bytes(8))
    run = served.arrive(packet)
    assert (run.verdict, layer3(served, run.packet).dst) == (TC_REDIRECT, served.address(GREEN))
    assert bytes(layer3(served, run.packet).payload) == bytes(layer3(served, packet).payload)
    serve(served, frontend(served, GREEN, proto="SCTP"))
    other = served.ip(WORLD, NODE) / SCTP(sport=1025, dport=NODE_PORT) / Raw(bytes(8))
    assert drops(served.arrive(other)) == [168]


# ---- who is asked ----


def test_a_connection_keeps_its_backend(served: Scene) -> None:
    serve(served, frontend(served, RED, BLUE, GREEN))
    first = ends(served, ask(served).packet)[2]
    serve(served, frontend(served, BLUE, RED, GREEN))
    assert {ends(served, ask(served, flags="A").packet)[2] for _ in range(20)} == {first}


def test_new_connections_are_spread(served: Scene) -> None:
    serve(served, frontend(served, RED, BLUE))
    got = Counter(ends(served, ask(served, sport=port).packet)[2] for port in range(2000, 2060))
    assert set(got) == {served.address(RED), served.address(BLUE)}


def test_a_client_with_affinity_keeps_its_backend(served: Scene) -> None:
    serve(served, frontend(served, RED, BLUE, affinity_timeout=100))
    got = {ends(served, ask(served, sport=port).packet)[2] for port in range(2000, 2030)}
    assert len(got) == 1


def test_a_table_chooses_the_same_for_the_same_flow(served: Scene) -> None:
    serve(served, frontend(served, RED, BLUE, algorithm=Algorithm.MAGLEV))
    first = [ends(served, ask(served, sport=port).packet)[2] for port in range(2000, 2030)]
    served.plane.conntrack.delete_for([ipaddress.ip_address(served.address(WORLD))])
    again = [ends(served, ask(served, sport=port).packet)[2] for port in range(2000, 2030)]
    assert first == again
    assert len(set(first)) == 2


def test_a_table_is_entered_where_python_says(served: Scene) -> None:
    made = frontend(served, RED, BLUE, algorithm=Algorithm.MAGLEV)
    serve(served, made)
    seed = ServiceConfig().maglev_seed
    positions = maglev.table(made.eligible, 251, seed)
    for port in range(2000, 2020):
        client = L4Address(ipaddress.ip_address(served.address(WORLD)), port, Protocol.TCP)
        place = flow_hash(client, made.at, read_seed(seed).flows) % 251
        expected = made.eligible[positions[place]].at.address
        assert ends(served, ask(served, sport=port).packet)[2] == str(expected)


# ---- refusals ----


def test_an_address_that_is_not_for_the_world_is_refused(served: Scene) -> None:
    serve(served, frontend(served, RED, address=vip(served), port=80, routable=False))
    run = ask(served, target=vip(served), dport=80)
    assert (run.verdict, drops(run)) == (TC_SHOT, [174])
    on(served, external_clusterip=True)
    assert ask(served, target=vip(served), dport=80).verdict == TC_REDIRECT


@pytest.mark.parametrize("deny", [False, True])
def test_a_source_outside_the_ranges_is_refused(served: Scene, deny: bool) -> None:
    prefix = "203.0.113.0/24" if served.family == 4 else "2001:db8:99::/48"
    if deny:
        prefix = f"{served.address(WORLD)}/{32 if served.family == 4 else 128}"
    ranges = (ipaddress.ip_network(prefix),)
    serve(served, frontend(served, RED, source_ranges=ranges, source_ranges_deny=deny))
    assert drops(ask(served)) == [177]
    serve(served, frontend(served, RED, source_ranges=ranges, source_ranges_deny=not deny))
    assert ask(served).verdict == TC_REDIRECT


def test_where_nobody_serves_the_client_is_told(served: Scene) -> None:
    serve(served, frontend(served))
    run = ask(served)
    node, world = served.address(NODE), served.address(WORLD)
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [158])
    assert ends(served, run.packet) == (node, NODE_PORT, world, CLIENT_PORT)
    assert str(Ether(run.packet)[TCP].flags) == "RA"
    assert_checksums_right(served, run.packet)


def test_where_nobody_serves_a_datagram_is_answered_by_an_error(served: Scene) -> None:
    serve(served, frontend(served, proto="UDP"))
    run = ask(served, "udp")
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [158])
    assert layer3(served, run.packet).dst == served.address(WORLD)


def test_silence_may_be_the_answer(served: Scene) -> None:
    on(served, reject=False)
    serve(served, frontend(served))
    run = ask(served)
    assert (run.verdict, drops(run)) == (TC_SHOT, [158])


def test_an_unknown_port_of_a_known_address_is_refused_and_of_the_node_is_not(
    served: Scene,
) -> None:
    whole = frontend(served, address=vip(served), port=0)
    serve(served, frontend(served, RED, address=vip(served), port=80), whole)
    assert drops(ask(served, target=vip(served), dport=81)) == [158]
    packet = request(served, dport=22)
    run = served.arrive(packet)
    assert (run.verdict, run.packet) == (TC_OK, bytes(packet))


def test_a_pods_address_does_not_come_from_the_network(served: Scene) -> None:
    serve(served, frontend(served, GREEN))
    assert drops(served.arrive(served.tcp(RED, NODE, CLIENT_PORT, NODE_PORT))) == [132]


# ---- a process of the node serves ----


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_process_of_the_node_serves_under_the_address_that_was_asked(
    served: Scene, kind: str
) -> None:
    serve(served, frontend(served, NODE, proto=kind.upper()))
    run = ask(served, kind)
    node, world = served.address(NODE), served.address(WORLD)
    assert (run.verdict, drops(run)) == (TC_OK, [])
    assert ends(served, run.packet) == (world, CLIENT_PORT, node, TARGET_PORT)
    if kind == "tcp":
        answer = served.tcp(NODE, WORLD, TARGET_PORT, CLIENT_PORT, flags="SA")
    else:
        answer = served.udp(NODE, WORLD, TARGET_PORT, CLIENT_PORT)
    back = served.leave(answer)
    assert (back.verdict, drops(back)) == (TC_OK, [])
    assert ends(served, back.packet) == (node, NODE_PORT, world, CLIENT_PORT)
    assert_checksums_right(served, back.packet)


def test_what_the_node_sends_otherwise_stays_as_it_is(served: Scene) -> None:
    serve(served, frontend(served, NODE))
    ask(served)
    packet = served.tcp(NODE, WORLD, TARGET_PORT, CLIENT_PORT + 1, flags="SA")
    assert served.leave(packet).packet == bytes(packet)


# ---- dry runs ----


@pytest.mark.parametrize("who", [RED, GREEN], ids=["here", "elsewhere"])
def test_a_dry_run_tells_who_would_serve_and_leaves_nothing(served: Scene, who: Any) -> None:
    serve(served, frontend(served, who, affinity_timeout=100))
    run = served.plane.run("cil_from_netdev", request(served), device="eth0", mark=0x100)
    assert run.verdict == TC_SHOT
    assert run.field("cb", abi.DRY_RUN_OUTCOMES) >> 16
    assert run.field("cb", abi.DRY_RUN_MATCHES) >> 16
    assert run.field("cb", abi.DRY_RUN_REASON) == 0
    assert served.connections() == []
    assert nat(served, abi.NAT_OUT) == []
    assert list(served.plane.maps["LB_AFFINITY"].items()) == []
