"""Thousands of broken packets: each a drop with a reason or a sound delivery, never in between."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest
from cilium_core import abi
from scapy.layers.l2 import Ether

from tests.bpf.harness import TC_OK, TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import BLUE, GREEN, NODE, RED, ROUTER, WORLD, drops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.harness import Run
    from tests.bpf.scenes import Scene

ROUNDS = 1500
HANDLED = (199, 201)


def seeds(scene: Scene) -> list[bytes]:
    """Sound packets to break: every protocol, to every kind of target."""
    return [
        bytes(packet)
        for target in (BLUE, GREEN, WORLD, NODE, ROUTER)
        for packet in (
            scene.tcp(RED, target, payload=b"x" * 20),
            scene.udp(RED, target),
            scene.echo(RED, target),
        )
    ]


def mutated(rng: random.Random, packet: bytes) -> bytes:
    """A packet with some headers' bytes changed, cut or grown."""
    data = bytearray(packet)
    for _ in range(rng.randint(1, 4)):
        match rng.randrange(6):
            case 0:
                data[rng.randrange(12, min(len(data), 74))] ^= 1 << rng.randrange(8)
            case 1:
                data[rng.randrange(12, min(len(data), 74))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                at = rng.randrange(14, min(len(data), 74) - 1)
                data[at : at + 2] = rng.randbytes(2)
            case 3:
                del data[rng.randrange(34, len(data) + 1) :]
            case 4:
                data += rng.randbytes(rng.randrange(64))
            case 5:
                data[14] = rng.randrange(256)
        if len(data) < 60:
            data += bytes(60 - len(data))
    if rng.random() < 0.7 and data[12:14] == b"\x08\x00":
        # a right checksum lets the packet get further
        data[24:26] = b"\0\0"
        total = sum(struct.unpack("!10H", data[14:34]))
        total = (total & 0xFFFF) + (total >> 16)
        data[24:26] = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
    return bytes(data)


def is_sound(scene: Scene, packet: bytes, sender: bytes) -> bool:
    """An opinion of its own on whether a packet may be let by."""
    kind = packet[12:14]
    if kind == b"\x08\x00":
        header = (packet[14] & 15) * 4
        length = int.from_bytes(packet[16:18], "big")
        if packet[14] >> 4 != 4 or header < 20 or not header <= length <= len(packet) - 14:
            return False
        if packet[26:30] != sender:
            return False
        proto, offset = packet[23], int.from_bytes(packet[20:22], "big") & 0x3FFF
        body = packet[14 + header : 14 + length]
    elif kind == b"\x86\xdd":
        length = int.from_bytes(packet[18:20], "big")
        if packet[14] >> 4 != 6 or length > len(packet) - 54 or packet[22:38] != sender:
            return False
        proto, offset = packet[20], 0
        body = packet[54 : 54 + length]
    else:
        return False
    if offset:
        return True
    if proto == 6:
        size = body[12] >> 4 if len(body) >= 20 else 0
        return size >= 5 and size * 4 <= len(body) and body[13] & 3 != 3 and body[13] & 6 != 6
    if proto == 17:
        return len(body) >= 8 and 8 <= int.from_bytes(body[4:6], "big") <= len(body)
    return True


def check(scene: Scene, run: Run, packet: bytes, sender: bytes) -> None:
    if run.verdict == TC_SHOT:
        counted = scene.plane.metrics.dump()
        assert drops(run) or any(row.reason in HANDLED for row in counted)
        assert all(130 <= reason <= 205 for reason in drops(run))
        return
    assert run.verdict in (TC_OK, TC_REDIRECT)
    assert drops(run) == []
    assert is_sound(scene, packet, sender), Ether(packet).summary()


def broken(scene: Scene, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    sound = seeds(scene)
    for _ in range(ROUNDS):
        yield mutated(rng, rng.choice(sound))


def sender_of(scene: Scene) -> bytes:
    import ipaddress

    return ipaddress.ip_address(scene.address(RED)).packed


@pytest.mark.parametrize("seed", range(3))
def test_no_broken_packet_of_a_pod_gets_by(scene: Scene, seed: int) -> None:
    from cilium_agent.datapath.errors import BpfError

    judged = 0
    for packet in broken(scene, seed):
        try:
            run = scene.send(RED, packet)
        except BpfError:
            continue  # prog-test-run itself refuses to make a packet of it
        check(scene, run, packet, sender_of(scene))
        judged += 1
    assert judged > ROUNDS * 0.9


def test_no_spoofed_packet_of_a_pod_gets_by(scene: Scene) -> None:
    rng = random.Random(7)
    at, size = (26, 4) if scene.family == 4 else (22, 16)
    for packet in seeds(scene) * 20:
        data = bytearray(packet)
        data[at + rng.randrange(size)] ^= 1 << rng.randrange(8)
        if scene.family == 4:
            data[24:26] = b"\0\0"
            total = sum(struct.unpack("!10H", data[14:34]))
            total = (total & 0xFFFF) + (total >> 16)
            data[24:26] = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
        run = scene.send(RED, bytes(data))
        assert (run.verdict, drops(run)) == (TC_SHOT, [132])


def test_broken_packets_are_only_delivered_where_policy_allows(scene: Scene) -> None:
    # given pods that may speak with nobody
    both = abi.ENDPOINT_ENFORCE_INGRESS | abi.ENDPOINT_ENFORCE_EGRESS
    for pod in (RED, BLUE):
        scene.rules(pod, {}, both)
    rng = random.Random(11)
    sound = seeds(scene)
    for _ in range(ROUNDS):
        packet = mutated(rng, rng.choice(sound))
        if packet[12:14] not in (b"\x08\x00", b"\x86\xdd"):
            continue
        run = scene.send(RED, packet)
        # then only the messages that path MTU discovery needs pass
        if run.verdict != TC_SHOT:
            kind = packet[34:36] if scene.family == 4 else packet[54:55]
            assert kind in (b"\x03\x04", b"\x02"), packet.hex()


@pytest.mark.parametrize("program", ["tunnel", "arrive", "leave", "host_sends"])
def test_no_broken_packet_upsets_the_other_programs(scene: Scene, program: str) -> None:
    from cilium_agent.datapath.errors import BpfError

    source = {"tunnel": GREEN, "arrive": WORLD, "leave": RED, "host_sends": ROUTER}[program]
    sound = [
        bytes(packet)
        for target in (RED, BLUE, NODE, WORLD, GREEN)
        for packet in (
            scene.tcp(source, target, payload=b"x" * 20),
            scene.udp(source, target),
            scene.echo(source, target),
        )
    ]
    rng = random.Random(23)
    for _ in range(ROUNDS):
        packet = mutated(rng, rng.choice(sound))
        try:
            run = getattr(scene, program)(packet)
        except BpfError:
            continue
        assert run.verdict in (TC_OK, TC_REDIRECT, TC_SHOT)
        assert bool(drops(run)) == (run.verdict == TC_SHOT)
        if run.verdict == TC_REDIRECT and program != "tunnel":
            assert packet[12:14] in (b"\x08\x00", b"\x86\xdd")
