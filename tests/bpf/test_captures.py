"""Packets of pods, recorded: by filters in the kernel, up to limits, into files for others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium.flows.v1 import packets_pb2, packets_pb2_grpc
from cilium_core import abi, drops
from cilium_core.policy import PolicyEntry, PolicyKey
from cilium_core.serving.packed import PackedServer
from hubble_server.facts import NodeFacts
from hubble_server.recording import capturing
from hubble_server.recording.capturing import Capture, Packet
from hubble_server.recording.files import mend
from hubble_server.recording.filters import rows_of
from hubble_server.recording.recordings import Recordings
from hubble_server.ring.reading import Clock
from hubble_server.servicers.recorder import PACKETS, RECORDER, RecorderService, Storage
from recorder import recorder_pb2, recorder_pb2_grpc
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from tests.bpf.clusters import LIMIT_S, socket_in, wait_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.bpf.clusters import Cluster

PORT = 7001
RecordRequest = recorder_pb2.RecordRequest


class Served:
    """The services that record packets of node 1, and a client."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.folder = folder
        self.pcaps = folder / "pcaps"
        clock = Clock()
        self.recordings = Recordings(cluster.pins(), lambda: clock.offset_ns)
        service = RecorderService(
            self.recordings, Storage(self.pcaps, 1 << 20, 3), lambda: NodeFacts("node1", "default")
        )
        self.server = PackedServer()
        self.server.add(RECORDER, service.recorder_methods())
        self.server.add(PACKETS, service.packets_methods())
        self.socket = folder / "hubble.sock"

    async def __aenter__(self) -> Served:
        await self.server.listen_unix(self.socket)
        self.channel = grpc.aio.insecure_channel(f"unix://{self.socket}")
        self.recorder = recorder_pb2_grpc.RecorderStub(self.channel)
        self.packets = packets_pb2_grpc.PacketsServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await asyncio.to_thread(self.recordings.stop)
        await self.server.stop()

    async def record(self, **start: Any) -> Any:
        """Begin a recording into a file; returns the call once it runs."""
        call = self.recorder.Record()
        await call.write(RecordRequest(start=recorder_pb2.StartRecording(**start)))
        await self.running()
        return call

    async def running(self, count: int = 1) -> None:
        """Wait until so many recordings run."""
        await asyncio.to_thread(wait_for, lambda: len(self.recordings._running) == count)


@pytest.fixture
def cluster(watched_cluster: Cluster) -> Cluster:
    """The cluster that both modules about what happens on it share."""
    return watched_cluster


@pytest.fixture
async def served(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Served]:
    async with Served(cluster, tmp_path) as made:
        yield made


def to_pod(cluster: Cluster, family: int = 4, number: int = 11) -> recorder_pb2.Filter:
    """What is for a port of a pod."""
    return recorder_pb2.Filter(
        destination_cidr=cluster.pods[number].address(family),
        destination_port=PORT,
        protocol=recorder_pb2.PROTOCOL_UDP,
    )


def send(cluster: Cluster, bodies: list[bytes], family: int = 4, to: str = "local pod") -> None:
    """Have pod 10 send datagrams to the port, and as many to another one."""
    _, address = cluster.place(to, family)
    with socket_in(cluster.pods[10].namespace, family, socket.SOCK_DGRAM) as sending:
        for body in bodies:
            sending.sendto(body, (address, PORT))
            sending.sendto(body, (address, PORT + 1))


async def stopped(call: Any) -> recorder_pb2.RecordingStoppedResponse:
    """What a recording says at its end."""
    async with asyncio.timeout(LIMIT_S):
        while not (response := await call.read()).HasField("stopped"):
            pass
        assert response.node_name == "node1"
        return response.stopped  # type: ignore[no-any-return]


def bodies_in(path: str | Path) -> list[bytes]:
    """What the datagrams of a file carry."""
    return [bytes(packet[UDP].payload) for packet in rdpcap(str(path))]


async def test_a_recording_has_each_packet_of_its_filter_once_and_no_other(
    cluster: Cluster, served: Served, family: int
) -> None:
    bodies = [b"%d" % number * 50 for number in range(5)]
    call = await served.record(include=[to_pod(cluster, family)])

    await asyncio.to_thread(send, cluster, bodies, family)
    async with asyncio.timeout(LIMIT_S):
        while (await call.read()).running.stats.packets_captured < len(bodies):
            pass
    await call.write(RecordRequest(stop=recorder_pb2.StopRecording()))
    end = await stopped(call)

    assert bodies_in(end.filesink.file_path) == bodies
    assert (end.stats.packets_captured, end.stats.packets_lost) == (len(bodies), 0)
    (name,) = (path.name for path in served.pcaps.iterdir())
    assert name.startswith("hubble_")
    assert name.endswith("_node1.pcap")


async def test_packets_to_other_nodes_and_to_the_world_are_recorded_as_the_pod_sent_them(
    cluster: Cluster, served: Served
) -> None:
    source = cluster.pods[10].address(4)
    wanted = recorder_pb2.Filter(
        source_cidr=source, destination_port=PORT, protocol=recorder_pb2.PROTOCOL_UDP
    )
    condition = recorder_pb2.StopCondition(packets_captured_count=2)
    call = await served.record(include=[wanted], stop_condition=condition)

    for place in ("remote pod", "world"):
        await asyncio.to_thread(send, cluster, [place.encode()], 4, place)
    end = await stopped(call)

    assert bodies_in(end.filesink.file_path) == [b"remote pod", b"world"]
    packets = rdpcap(end.filesink.file_path)
    assert {packet["IP"].src for packet in packets} == {source}


async def test_a_recording_ends_by_itself_at_its_limits_and_keeps_what_was_asked_of_a_packet(
    cluster: Cluster, served: Served
) -> None:
    call = await served.record(
        include=[to_pod(cluster)],
        filesink=recorder_pb2.FileSinkConfiguration(file_prefix="short"),
        max_capture_length=60,
        stop_condition=recorder_pb2.StopCondition(packets_captured_count=3),
    )

    await asyncio.to_thread(send, cluster, [b"x" * 500] * 9)
    end = await stopped(call)

    packets = rdpcap(end.filesink.file_path)
    assert [(len(packet), packet.wirelen) for packet in packets] == [(60, 542)] * 3
    assert (end.stats.packets_captured, end.stats.bytes_captured) == (3, 180)
    await served.running(0)


async def test_what_policy_drops_is_captured_and_says_so(cluster: Cluster, served: Served) -> None:
    request = packets_pb2.CapturePacketsRequest(
        include=[to_pod(cluster)],
        stop_condition=recorder_pb2.StopCondition(packets_captured_count=1),
    )
    call = served.packets.CapturePackets(request)
    await served.running()

    nobody = PolicyKey(abi.DIR_INGRESS, identity=1, proto=0, port=0, prefixlen=0)
    with cluster.enforced(11, {nobody: PolicyEntry(precedence=1, deny=False)}):
        await asyncio.to_thread(send, cluster, [b"refused"])
        async with asyncio.timeout(LIMIT_S):
            packets = [each async for response in call for each in response.packets]

    (packet,) = packets
    assert (packet.point, packet.endpoint) == ("dropped", 11)
    assert packet.drop_reason == drops.DropReason["POLICY_DENIED"]
    assert bytes(Ether(packet.data)[UDP].payload) == b"refused"
    assert abs(packet.time_ns - time.time_ns()) < LIMIT_S * 1e9


async def test_two_recordings_get_their_own_packets(cluster: Cluster, served: Served) -> None:
    def start(port: int) -> packets_pb2.CapturePacketsRequest:
        return packets_pb2.CapturePacketsRequest(
            include=[
                recorder_pb2.Filter(destination_port=port, protocol=recorder_pb2.PROTOCOL_UDP)
            ],
            stop_condition=recorder_pb2.StopCondition(packets_captured_count=2),
        )

    calls = [served.packets.CapturePackets(start(port)) for port in (PORT, PORT + 1)]
    await served.running(2)

    await asyncio.to_thread(send, cluster, [b"a", b"b"])
    async with asyncio.timeout(LIMIT_S):
        ports = [
            [Ether(each.data)[UDP].dport async for response in call for each in response.packets]
            for call in calls
        ]

    assert ports == [[PORT, PORT], [PORT + 1, PORT + 1]]


async def test_hubble_record_writes_a_file_here_of_both_ways(
    cluster: Cluster, served: Served
) -> None:
    path = served.folder / "here.pcap"
    server, address = cluster.place("local pod", 4)
    words = f"any any {address} {PORT} TCP"
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hubble_cli", "record", words, "--both-ways", "-o", str(path),
        "--server", f"unix://{served.socket}", stderr=subprocess.PIPE,
    )  # fmt: skip
    await served.running()

    await asyncio.to_thread(_talk, cluster, server, address)
    await asyncio.to_thread(wait_for, lambda: _ends(path) == 2)
    program.send_signal(signal.SIGINT)
    _, said = await program.communicate()

    assert program.returncode == 0, said
    ways = {(packet["IP"].src, packet["IP"].dst) for packet in rdpcap(str(path))}
    client = cluster.pods[10].address(4)
    assert ways == {(client, address), (address, client)}
    assert b"packets, " in said


def _ends(path: Path) -> int:
    """How many segments of a file end a connection."""
    return sum("F" in packet[TCP].flags for packet in rdpcap(str(path))) if path.exists() else 0


def _talk(cluster: Cluster, server: Any, address: str) -> None:
    with (
        socket_in(server, 4, socket.SOCK_STREAM) as listening,
        socket_in(cluster.pods[10].namespace, 4, socket.SOCK_STREAM) as client,
    ):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, PORT))
        listening.listen()
        client.connect((address, PORT))
        with listening.accept()[0] as accepted:
            client.sendall(b"hello")
            assert accepted.recv(100) == b"hello"


def test_the_programs_stop_by_themselves_when_nobody_renews(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Packet] = []
    with _capture(cluster, seen) as capture:
        _until(capture, lambda: send(cluster, [b"first"]), seen)
        monkeypatch.setattr(capturing, "LEASE_S", 0.0)
        capture.renew()
        seen.clear()
        send(cluster, [b"late"] * 3)
        capture.poll(0.1)
    assert seen == []


def test_what_finds_no_room_in_the_ring_is_counted(cluster: Cluster) -> None:
    seen: list[Packet] = []
    offered = 3000
    with _capture(cluster, seen) as capture:
        send(cluster, [b"x" * 1400] * offered)
        capture.poll(0.1)
        packets, size = capture.lost()
    assert 0 < packets == offered - len(seen)
    assert size == packets * seen[0].length


@contextlib.contextmanager
def _capture(cluster: Cluster, seen: list[Packet]) -> Iterator[Capture]:
    capture = Capture(cluster.pins(), seen.append)
    try:
        capture.want(rows_of([to_pod(cluster)], 0), capturing.WHOLE)
        yield capture
    finally:
        capture.close()


def _until(capture: Capture, act: Any, seen: list[Packet]) -> None:
    act()
    end = time.monotonic() + LIMIT_S
    while not seen:
        assert time.monotonic() < end
        capture.poll(0.1)


_KILLED = """
import sys
from pathlib import Path
from hubble_server.recording.files import PcapFiles
from hubble_server.recording.recordings import Limits, Recordings
from recorder import recorder_pb2

root, path, address = sys.argv[1:]
recordings = Recordings(Path(root), lambda: 0)
wanted = recorder_pb2.Filter(destination_cidr=address)
made = recordings.begin(
    [wanted], 0, Limits(), lambda snap: PcapFiles(Path(path), snap, 1 << 30, 2), lambda: None
)
print("running", flush=True)
made.ended.wait()
"""


def test_a_file_has_whole_packets_after_kill_9(cluster: Cluster, tmp_path: Path) -> None:
    path, address = tmp_path / "killed.pcap", cluster.pods[11].address(4)
    arguments = [sys.executable, "-c", _KILLED, str(cluster.pins()), str(path), address]
    bodies = [b"%04d" % number * 300 for number in range(2000)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"running\n"
        sender = threading.Thread(target=send, args=(cluster, bodies))
        sender.start()
        wait_for(lambda: path.stat().st_size > 50_000)
        os.kill(program.pid, signal.SIGKILL)
        sender.join()

    mend(tmp_path)
    read = bodies_in(path)
    assert len(read) > 10
    assert set(read) <= set(bodies)
