"""Direct server return: the frontend travels with the packet, and is the source of the answer."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core import abi
from cilium_core.services.models import Forwarding
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.bpf.harness import TC_OK, TC_REDIRECT
from tests.bpf.scenes import GREEN, NODE, OTHER_NODE, RED, ROUTER, WORLD, drops
from tests.bpf.services_from_outside import (
    CLIENT_PORT,
    NODE_PORT,
    TARGET_PORT,
    frontend,
    on,
    serve,
    vip,
)
from tests.bpf.test_masquerade import assert_checksums_right, nat
from tests.bpf.test_nodeport import ask, ends

if TYPE_CHECKING:
    from tests.bpf.harness import Run
    from tests.bpf.scenes import Inhabitant, Scene

KINDS = ["tcp", "udp"]


@pytest.fixture
def direct(scene: Scene) -> Scene:
    """The scene where backends elsewhere answer clients themselves."""
    on(scene, dsr_tcp=True, dsr_udp=True)
    return scene


def option(scene: Scene, address: str, port: int) -> bytes:
    """How a packet says which frontend was asked."""
    packed, number = ipaddress.ip_address(address).packed, port.to_bytes(2, "big")
    return b"\x9a\x08" + number + packed if scene.family == 4 else b"\x1b\x12" + packed + number


def layers(scene: Scene, packet: bytes) -> tuple[bytes, bytes]:
    """Options and layer 4 of a packet."""
    raw = bytes(Ether(packet)[IP if scene.family == 4 else IPv6])
    if scene.family == 4:
        header = (raw[0] & 15) * 4
        return raw[20:header], raw[header:]
    if raw[6] != 60:
        return b"", raw[40:]
    return raw[42:64], raw[64:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_packet_goes_on_with_the_clients_address_and_the_frontend(
    direct: Scene, kind: str
) -> None:
    serve(direct, frontend(direct, GREEN, proto=kind.upper()))
    run = ask(direct, kind)
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [])
    layer = Ether(run.packet)[IP if direct.family == 4 else IPv6]
    assert (layer.src, layer.dst) == (direct.address(WORLD), direct.address(GREEN))
    said, layer4 = layers(direct, run.packet)
    assert said.startswith(option(direct, direct.address(NODE), NODE_PORT))
    ports = CLIENT_PORT.to_bytes(2, "big") + TARGET_PORT.to_bytes(2, "big")
    assert layer4.startswith(ports)
    assert nat(direct, abi.NAT_OUT) == []


def test_only_the_first_segment_needs_to_say_it(direct: Scene) -> None:
    serve(direct, frontend(direct, GREEN))
    ask(direct)
    run = ask(direct, flags="A")
    assert layers(direct, run.packet)[0] == b""
    world, green = direct.address(WORLD), direct.address(GREEN)
    assert ends(direct, run.packet) == (world, CLIENT_PORT, green, TARGET_PORT)


@pytest.mark.parametrize("forwarding", [Forwarding.SNAT, Forwarding.DSR])
def test_a_service_may_want_it_otherwise(scene: Scene, forwarding: Forwarding) -> None:
    wanted = forwarding is Forwarding.DSR
    on(scene, dsr_tcp=not wanted)
    serve(scene, frontend(scene, GREEN, forwarding=forwarding))
    assert bool(layers(scene, ask(scene).packet)[0]) == wanted


def test_a_client_of_the_cluster_is_answered_the_way_it_asked(direct: Scene) -> None:
    serve(direct, frontend(direct, GREEN))
    run = direct.arrive(direct.tcp(OTHER_NODE, NODE, CLIENT_PORT, NODE_PORT))
    assert (drops(run), layers(direct, run.packet)[0]) == ([], b"")
    assert ends(direct, run.packet)[0] == direct.address(ROUTER)


def sent_on(scene: Scene, who: Inhabitant, kind: str, flags: str = "S") -> Any:
    """What the node that was asked has made of a client's packet; its frontend is another's."""
    said = option(scene, vip(scene), 80)
    fields: dict[str, Any] = {"sport": CLIENT_PORT, "dport": TARGET_PORT}
    if kind == "tcp":
        packet = scene.tcp(WORLD, who, flags=flags, **fields)
    else:
        packet = scene.udp(WORLD, who, **fields)
    raw = bytes(packet)
    if scene.family == 4:
        longer = raw[:34] + said + raw[34:]
        header = IP(longer[14:])
        header.len, header.ihl = len(longer) - 14, 7
        del header.chksum
        return longer[:14] + bytes(header)[:28] + longer[42:]
    length = int.from_bytes(raw[18:20], "big") + 24
    extension = bytes([raw[20], 2]) + said + b"\x01\x00"
    head = raw[:18] + length.to_bytes(2, "big") + bytes([60]) + raw[21:54]
    return head + extension + raw[54:]


def through_tunnel(scene: Scene, packet: Any) -> Run:
    return scene.tunnel(packet, identity=abi.ID_WORLD)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pod_gets_the_packet_without_the_option(direct: Scene, kind: str) -> None:
    run = through_tunnel(direct, sent_on(direct, RED, kind))
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [])
    assert layers(direct, run.packet)[0] == b""
    world, red = direct.address(WORLD), direct.address(RED)
    assert ends(direct, run.packet) == (world, CLIENT_PORT, red, TARGET_PORT)
    assert_checksums_right(direct, run.packet)


@pytest.mark.parametrize("kind", KINDS)
def test_its_answers_have_the_frontends_address_all_the_connection_long(
    direct: Scene, kind: str
) -> None:
    through_tunnel(direct, sent_on(direct, RED, kind))
    if kind == "tcp":
        plain = direct.tcp(WORLD, RED, CLIENT_PORT, TARGET_PORT, flags="A")
        assert through_tunnel(direct, plain).verdict == TC_REDIRECT
        answer = direct.tcp(RED, WORLD, TARGET_PORT, CLIENT_PORT, flags="A")
    else:
        answer = direct.udp(RED, WORLD, TARGET_PORT, CLIENT_PORT)
    run = direct.send(RED, answer)
    assert drops(run) == []
    assert ends(direct, run.packet) == (vip(direct), 80, direct.address(WORLD), CLIENT_PORT)
    assert_checksums_right(direct, run.packet)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_of_the_node_answers_so_too(direct: Scene, kind: str) -> None:
    serve(direct, frontend(direct, GREEN, address=vip(direct), port=80, proto=kind.upper()))
    run = direct.arrive(sent_on(direct, NODE, kind))
    assert (run.verdict, drops(run), layers(direct, run.packet)[0]) == (TC_OK, [], b"")
    if kind == "tcp":
        answer = direct.tcp(NODE, WORLD, TARGET_PORT, CLIENT_PORT, flags="SA")
    else:
        answer = direct.udp(NODE, WORLD, TARGET_PORT, CLIENT_PORT)
    back = direct.leave(answer)
    assert ends(direct, back.packet) == (vip(direct), 80, direct.address(WORLD), CLIENT_PORT)
    assert_checksums_right(direct, back.packet)


def test_the_network_cannot_make_a_frontend_up(direct: Scene) -> None:
    run = direct.arrive(sent_on(direct, NODE, "tcp"))
    assert drops(run) == [158]
    assert nat(direct, abi.NAT_OUT) == []


def test_a_pod_elsewhere_cannot_say_that_it_asked_a_frontend(direct: Scene) -> None:
    direct.tunnel(sent_on(direct, RED, "tcp"), identity=GREEN.identity)
    assert nat(direct, abi.NAT_OUT) == []


def test_other_options_stay_where_they_are(direct: Scene) -> None:
    if direct.family == 4:
        packet = bytes(sent_on(direct, RED, "udp")).replace(b"\x9a\x08", b"\x94\x08")
        packet = packet[:24] + bytes(2) + packet[26:]
        packet = packet[:14] + bytes(_with_checksum(packet[14:]))
    else:
        packet = bytes(sent_on(direct, RED, "udp")).replace(b"\x1b\x12", b"\x1e\x12")
    run = through_tunnel(direct, packet)
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [])
    assert layers(direct, run.packet)[0] != b""
    assert nat(direct, abi.NAT_OUT) == []


def _with_checksum(raw: bytes) -> bytes:
    header = IP(raw)
    del header.chksum
    return bytes(header)
