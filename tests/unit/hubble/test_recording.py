"""Recordings of packets without a kernel: filters, files, limits, and what is refused."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium.flows.v1 import packets_pb2, packets_pb2_grpc
from cilium_core import abi, pcap
from hubble_server.errors import RecordingError
from hubble_server.recording.capturing import Packet
from hubble_server.recording.files import PcapFiles, mend
from hubble_server.recording.filters import rows_of
from hubble_server.recording.recordings import Limits, Recording
from recorder import recorder_pb2, recorder_pb2_grpc
from scapy.utils import rdpcap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.unit.hubble.conftest import Server

TCP = recorder_pb2.PROTOCOL_TCP


def packet(size: int = 60, second: int = 1) -> Packet:
    data = bytes(12) + b"\x08\x00" + b"x" * (size - 14)
    return Packet(second * 1_000_000_000 + 5, size, data, 1, 0, 0, 0)


class Kept:
    """A sink that remembers, and refuses what is beyond its room."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.packets: list[Packet] = []
        self._room = room

    def write(self, packets: Sequence[Packet], clock_offset_ns: int) -> int:
        taken = packets[: self._room - len(self.packets)]
        self.packets += taken
        return len(taken)

    def close(self) -> None: ...


def recording(sink: Any, **limits: Any) -> Recording:
    return Recording(0, [b"row"], 1500, Limits(**limits), sink)


def test_a_filter_becomes_a_row_as_the_programs_read_it() -> None:
    wanted = recorder_pb2.Filter(
        source_cidr="10.0.1.7/24", destination_port=80, destination_cidr="10.0.2.9", protocol=TCP
    )
    (row,) = (abi.unpack("capture_filter", row) for row in rows_of([wanted], 3))
    assert bytes(abi.ffi.buffer(row.saddr))[:4] == socket.inet_aton("10.0.1.0")
    assert bytes(abi.ffi.buffer(row.smask))[:4] == socket.inet_aton("255.255.255.0")
    assert bytes(abi.ffi.buffer(row.daddr))[:4] == socket.inet_aton("10.0.2.9")
    assert (row.sport, row.dport, row.proto) == (0, socket.htons(80), 6)
    assert (row.family, row.recording) == (abi.FAMILY_IPV4, 3)


def test_a_filter_without_addresses_is_one_for_each_ip_version() -> None:
    rows = rows_of([recorder_pb2.Filter(protocol=TCP)], 0)
    assert [abi.unpack("capture_filter", row).family for row in rows] == [
        abi.FAMILY_IPV4,
        abi.FAMILY_IPV6,
    ]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (recorder_pb2.Filter(source_cidr="10.0.0"), "include[0].source_cidr: '10.0.0'"),
        (
            recorder_pb2.Filter(source_cidr="10.0.0.1", destination_cidr="fd00::1"),
            "different IP versions",
        ),
        (recorder_pb2.Filter(source_port=70000, protocol=TCP), "70000 is no port"),
        (recorder_pb2.Filter(destination_port=80), "needs a protocol that has ports"),
        (recorder_pb2.Filter(protocol=99), "protocol: 99 is none"),  # type: ignore[arg-type]
    ],
)
def test_filters_that_make_no_sense_are_refused_by_name(
    wanted: recorder_pb2.Filter, said: str
) -> None:
    with pytest.raises(RecordingError) as caught:
        rows_of([wanted], 0)
    assert said in str(caught.value)


def test_files_go_on_in_the_next_and_the_oldest_go(tmp_path: Path) -> None:
    files = PcapFiles(tmp_path / "made" / "a.pcap", 1500, max_bytes=24 + 3 * 76, max_files=2)
    for number in range(4):
        assert files.write([packet(second=2 * number), packet(second=2 * number + 1)], 7) == 2
    files.close()
    seconds = {
        path.name: [int(each.time) for each in rdpcap(str(path))]
        for path in (tmp_path / "made").iterdir()
    }
    assert seconds == {"a.1.pcap": [3, 4, 5], "a.2.pcap": [6, 7]}
    assert files.path.name == "a.2.pcap"


def test_what_was_cut_short_by_a_kill_goes_at_the_next_start(tmp_path: Path) -> None:
    whole, cut = (PcapFiles(tmp_path / f"{name}.pcap", 1500, 1 << 20, 1) for name in ("a", "b"))
    for files in (whole, cut):
        files.write([packet(), packet()], 0)
    whole.close()
    sizes = [(tmp_path / f"{name}.pcap").stat().st_size for name in ("a", "b")]
    with (tmp_path / "b.pcap").open("ab") as torn:
        torn.write(pcap.record(0, 60, bytes(60))[:40])

    mend(tmp_path)

    assert [path.stat().st_size for path in sorted(tmp_path.iterdir())] == sizes
    assert len(rdpcap(str(tmp_path / "b.pcap"))) == 2


def test_a_file_on_a_full_disk_ends_with_a_whole_packet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "full.pcap"
    files = PcapFiles(path, 1500, 1 << 20, 1)
    made = recording(files)
    made.take(packet())
    made.hand_on(0)
    room, write = [30], os.write

    def short(fd: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[: room.pop()])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        made.take(packet())
        made.hand_on(0)
    assert made.over
    assert made.failure == "packets cannot be kept: No space left on device"
    assert (made.statistics.packets, made.statistics.packets_lost) == (1, 1)
    assert len(rdpcap(str(path))) == 1


def test_a_recording_is_over_at_its_limit_of_packets() -> None:
    sink = Kept()
    made = recording(sink, packets=3)
    for _ in range(5):
        made.take(packet())
    assert made.over
    made.hand_on(0)
    assert len(sink.packets) == 3


def test_a_recording_is_over_at_its_limit_of_bytes() -> None:
    sink = Kept()
    made = recording(sink, bytes=150)
    for _ in range(5):
        made.take(packet(60))
    made.hand_on(0)
    assert (made.over, made.statistics.bytes) == (True, 120)


def test_a_recording_is_over_after_its_time() -> None:
    assert recording(Kept(), seconds=1e-9).over
    assert not recording(Kept(), seconds=1000).over


def test_what_a_slow_client_has_no_room_for_is_counted() -> None:
    made = recording(Kept(room=2))
    for _ in range(5):
        made.take(packet(60))
    made.hand_on(0)
    done = made.statistics
    assert (done.packets, done.packets_lost, done.bytes_lost) == (2, 3, 180)


async def test_without_an_agent_a_recording_is_refused_with_the_reason(server: Server) -> None:
    stub = packets_pb2_grpc.PacketsServiceStub(server.channel)
    wanted = recorder_pb2.Filter(source_cidr="10.0.0.1")
    call = stub.CapturePackets(packets_pb2.CapturePacketsRequest(include=[wanted]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "is the agent running?" in str(caught.value.details())


async def test_a_recording_that_begins_with_its_end_is_refused(server: Server) -> None:
    call = recorder_pb2_grpc.RecorderStub(server.channel).Record()
    await call.write(recorder_pb2.RecordRequest(stop=recorder_pb2.StopRecording()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_prefix_that_leads_elsewhere_is_refused(server: Server) -> None:
    start = recorder_pb2.StartRecording(include=[recorder_pb2.Filter(source_cidr="10.0.0.1")])
    start.filesink.file_prefix = "../etc"
    call = recorder_pb2_grpc.RecorderStub(server.channel).Record()
    await call.write(recorder_pb2.RecordRequest(start=start))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "small letter" in str(caught.value.details())
