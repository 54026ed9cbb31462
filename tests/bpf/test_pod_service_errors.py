"""What goes wrong with services that pods ask: refusals, and errors about translated packets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent.datapath.models import ServiceConfig
from cilium_core import abi
from cilium_core.policy.ports import Protocol
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig
from scapy.layers.l2 import Ether
from scapy.packet import Padding, Raw

from tests.bpf.harness import TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import BLUE, GREEN, NODE, OTHER_NODE, RED, WORLD, drops, of_type
from tests.bpf.services import (
    HAIRPIN,
    PORT,
    SERVICE,
    TARGET,
    assert_checksums_right,
    layer3,
    ports,
    serve,
    source,
    target,
)

if TYPE_CHECKING:
    from tests.bpf.harness import Run
    from tests.bpf.scenes import Inhabitant, Scene

CLIENT = 40000
NO_BACKEND = 158


def ask(scene: Scene, kind: str = "udp", port: int = PORT, **fields: Any) -> Run:
    return scene.send(RED, getattr(scene, kind)(RED, SERVICE, CLIENT, port, **fields))


def whole_address(scene: Scene) -> None:
    """The service's address is refused where it is no frontend."""
    serve(scene, port=0)


# ---- refusals ----


@pytest.mark.parametrize("port", [PORT, 81], ids=["no-backend", "unknown-port"])
def test_a_connection_nobody_serves_is_reset(scene: Scene, port: int) -> None:
    serve(scene)
    whole_address(scene)
    run = ask(scene, "tcp", port)
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [NO_BACKEND])
    answer = Ether(run.packet)[TCP]
    assert (answer.flags, answer.seq, answer.ack) == ("RA", 0, 1)
    assert (source(run.packet), target(run.packet)) == (
        scene.address(SERVICE),
        scene.address(RED),
    )
    assert (ports(run.packet), Ether(run.packet).dst) == ((port, CLIENT), RED.mac)
    assert_checksums_right(run.packet)


def test_what_pads_a_short_frame_is_no_part_of_the_segment(scene: Scene) -> None:
    serve(scene)
    run = scene.send(RED, scene.tcp(RED, SERVICE, CLIENT, PORT) / Padding(bytes(20)))
    answer = Ether(run.packet)[TCP]
    assert (answer.flags, answer.ack) == ("RA", 1)
    assert_checksums_right(run.packet)


def test_a_segment_of_a_connection_that_nobody_serves_any_more_is_reset(scene: Scene) -> None:
    serve(scene, BLUE)
    ask(scene, "tcp")
    serve(scene)
    packet = scene.tcp(RED, SERVICE, CLIENT, PORT, flags="PA", payload=b"x" * 1000)
    packet[TCP].seq, packet[TCP].ack = 1000, 77
    run = scene.send(RED, packet)
    answer = Ether(run.packet)[TCP]
    assert (answer.flags, answer.seq, answer.ack) == ("R", 77, 0)
    assert len(answer.payload) == 0
    assert_checksums_right(run.packet)


@pytest.mark.parametrize("port", [PORT, 81], ids=["no-backend", "unknown-port"])
def test_a_datagram_nobody_serves_is_unreachable(scene: Scene, port: int) -> None:
    serve(scene, proto=Protocol.UDP)
    whole_address(scene)
    run = ask(scene, port=port)
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [NO_BACKEND])
    assert (source(run.packet), target(run.packet)) == (
        scene.address(SERVICE),
        scene.address(RED),
    )
    assert_checksums_right(run.packet)
    error = layer3(run.packet).payload
    assert (error.type, error.code) == ((3, 3) if scene.family == 4 else (1, 4))
    quoted = error.payload
    assert (quoted.src, quoted.dst) == (scene.address(RED), scene.address(SERVICE))
    assert (quoted.payload.sport, quoted.payload.dport) == (CLIENT, port)


def test_an_echo_to_a_services_address_is_not_leaked(scene: Scene) -> None:
    whole_address(scene)
    run = scene.send(RED, scene.echo(RED, SERVICE))
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [NO_BACKEND])
    assert_checksums_right(run.packet)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_nobody_is_answered_for_where_silence_is_asked(scene: Scene, kind: str) -> None:
    whole_address(scene)
    scene.configure(services=ServiceConfig(reject=False))
    run = ask(scene, kind)
    assert (run.verdict, drops(run)) == (TC_SHOT, [NO_BACKEND])


def test_a_reset_is_not_answered(scene: Scene) -> None:
    whole_address(scene)
    run = ask(scene, "tcp", flags="R")
    assert (run.verdict, drops(run)) == (TC_SHOT, [NO_BACKEND])


def test_a_refusal_is_counted_once_and_leaves_nothing(scene: Scene) -> None:
    whole_address(scene)
    ask(scene, "tcp")
    assert (scene.plane.counter(NO_BACKEND), scene.connections()) == (1, [])


# ---- errors ----


def unreachable(scene: Scene) -> Any:
    return ICMP(type=3, code=3) if scene.family == 4 else ICMPv6DestUnreach(code=4)


def too_big(scene: Scene) -> Any:
    if scene.family == 4:
        return ICMP(type=3, code=4, nexthopmtu=1280)
    return ICMPv6PacketTooBig(mtu=1280)


def error(scene: Scene, kind: Any, sender: Inhabitant, to: Inhabitant, about: bytes) -> Any:
    """Make an error about a packet as somebody has got it."""
    quoted = bytes(layer3(about))[: 28 if scene.family == 4 else 48]
    return scene.ip(sender, to) / kind / Raw(quoted)


def assert_about_the_service(scene: Scene, run: Run, sender: Inhabitant) -> None:
    """Red is told by `sender` about what it has sent to the service."""
    assert (drops(run), target(run.packet)) == ([], scene.address(RED))
    assert source(run.packet) == scene.address(sender)
    quoted = layer3(run.packet).payload.payload
    assert (quoted.src, quoted.payload.sport) == (scene.address(RED), CLIENT)
    assert (quoted.dst, quoted.payload.dport) == (scene.address(SERVICE), PORT)
    assert_errors_checksums_right(scene, run.packet)


def assert_errors_checksums_right(scene: Scene, packet: bytes) -> None:
    found = layer3(packet)
    assert_checksums_right(packet)
    if scene.family == 4:
        quoted = IP(bytes(found.payload.payload))
        wanted = quoted.chksum
        del quoted.chksum
        assert IP(bytes(quoted)).chksum == wanted


def test_a_backends_error_comes_from_the_service(scene: Scene) -> None:
    serve(scene, BLUE, proto=Protocol.UDP)
    sent = ask(scene).packet
    run = scene.send(BLUE, error(scene, unreachable(scene), BLUE, RED, sent))
    assert_about_the_service(scene, run, SERVICE)
    assert of_type(run, abi.EVENT_TRACE)[0].reason == abi.REASON_RELATED


def test_an_error_of_another_nodes_backend_comes_from_the_service(scene: Scene) -> None:
    serve(scene, GREEN, proto=Protocol.UDP)
    sent = ask(scene).packet
    run = scene.tunnel(error(scene, unreachable(scene), GREEN, RED, sent))
    assert_about_the_service(scene, run, SERVICE)


def test_a_node_on_the_way_speaks_for_itself(scene: Scene) -> None:
    serve(scene, GREEN, proto=Protocol.UDP)
    sent = ask(scene).packet
    run = scene.tunnel(error(scene, too_big(scene), OTHER_NODE, RED, sent), abi.ID_REMOTE_NODE)
    assert_about_the_service(scene, run, OTHER_NODE)


def test_an_error_of_the_node_as_backend_comes_from_the_service(scene: Scene) -> None:
    serve(scene, NODE, proto=Protocol.UDP)
    sent = ask(scene).packet
    packet = error(scene, unreachable(scene), NODE, RED, sent)
    assert_about_the_service(scene, scene.stack_sends(RED, packet, abi.MARK_HOST), SERVICE)


def test_an_error_of_the_world_about_a_masqueraded_packet_comes_from_the_service(
    scene: Scene,
) -> None:
    serve(scene, WORLD, proto=Protocol.UDP)
    sent = ask(scene)
    left = scene.leave(sent.packet, mark=sent.mark)
    run = scene.arrive(error(scene, unreachable(scene), WORLD, NODE, left.packet))
    assert_about_the_service(scene, run, SERVICE)


@pytest.mark.parametrize("where", [BLUE, GREEN], ids=["local", "remote"])
def test_a_clients_error_reaches_the_backend_about_its_own_packet(
    scene: Scene, where: Inhabitant
) -> None:
    serve(scene, where, proto=Protocol.UDP)
    ask(scene)
    answer = scene.udp(where, RED, TARGET, CLIENT)
    received = (scene.send(BLUE, answer) if where is BLUE else scene.tunnel(answer)).packet
    run = scene.send(RED, error(scene, unreachable(scene), RED, SERVICE, received))
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [])
    assert (source(run.packet), target(run.packet)) == (scene.address(RED), scene.address(where))
    quoted = layer3(run.packet).payload.payload
    assert (quoted.src, quoted.payload.sport) == (scene.address(where), TARGET)
    assert (quoted.dst, quoted.payload.dport) == (scene.address(RED), CLIENT)
    assert_errors_checksums_right(scene, run.packet)


def test_an_error_about_what_no_service_has_said_is_not_passed_on(scene: Scene) -> None:
    serve(scene, BLUE, proto=Protocol.UDP)
    told = scene.udp(SERVICE, RED, PORT, CLIENT)
    run = scene.send(RED, error(scene, unreachable(scene), RED, SERVICE, bytes(told)))
    assert (run.verdict, drops(run)) == (TC_SHOT, [NO_BACKEND])


def test_an_error_cut_short_is_not_leaked(scene: Scene) -> None:
    whole_address(scene)
    run = scene.send(RED, scene.ip(RED, SERVICE) / unreachable(scene) / Raw(b"short"))
    assert (run.verdict, drops(run)) == (TC_SHOT, [NO_BACKEND])


def test_an_error_to_the_world_goes_its_way(scene: Scene) -> None:
    asked = scene.udp(RED, WORLD, CLIENT, 53)
    scene.send(RED, asked)
    told = scene.udp(WORLD, RED, 53, CLIENT)
    run = scene.send(RED, error(scene, unreachable(scene), RED, WORLD, bytes(told)))
    assert (drops(run), target(run.packet)) == ([], scene.address(WORLD))


def test_a_pods_error_about_what_it_has_asked_itself_comes_from_the_service(
    scene: Scene,
) -> None:
    serve(scene, RED, proto=Protocol.UDP)
    sent = ask(scene).packet
    run = scene.send(RED, error(scene, unreachable(scene), RED, HAIRPIN, sent))
    assert_about_the_service(scene, run, SERVICE)


def test_a_pods_error_about_what_it_has_answered_itself_is_about_the_link(scene: Scene) -> None:
    serve(scene, RED, proto=Protocol.UDP)
    ask(scene)
    heard = scene.send(RED, scene.udp(RED, HAIRPIN, TARGET, CLIENT)).packet
    run = scene.send(RED, error(scene, unreachable(scene), RED, SERVICE, heard))
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [])
    assert (source(run.packet), target(run.packet)) == (
        scene.address(HAIRPIN),
        scene.address(RED),
    )
    quoted = layer3(run.packet).payload.payload
    assert (quoted.src, quoted.payload.sport) == (scene.address(RED), TARGET)
    assert (quoted.dst, quoted.payload.dport) == (scene.address(HAIRPIN), CLIENT)
    assert_errors_checksums_right(scene, run.packet)
