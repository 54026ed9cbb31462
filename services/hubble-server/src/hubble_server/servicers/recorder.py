"""Recording packets: recorder.Recorder of Hubble, into a file here, and our own way to the client.

For clients on the unix socket, and for those that show a certificate: packets are what everybody
else said, in full.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cilium.flows.v1 import packets_pb2
from cilium_core import abi
from cilium_core.errors import ForbiddenError
from cilium_core.serving.packed import Call, Method, stream
from cilium_core.serving.packed.calls import dialogue
from flow import flow_pb2
from recorder import recorder_pb2

from hubble_server.errors import CaptureError, RecordingError
from hubble_server.recording.files import PcapFiles
from hubble_server.recording.recordings import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hubble_server.facts import NodeFacts
    from hubble_server.recording.capturing import Packet
    from hubble_server.recording.recordings import Recording, Recordings

RECORDER: Final = "recorder.Recorder"
PACKETS: Final = "cilium.flows.v1.PacketsService"

_REPORT_S = 1.0
_PREFIX = re.compile(r"[a-z][a-z0-9]{0,19}")
_DROPPED = abi.constants["CAPTURE_DROPPED"]
_MOST_UNSENT = 8 << 20
"""Bytes of packets that wait for a slow client; more are lost."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where files of packets go."""

    folder: Path
    max_bytes: int
    """Of a file, after which the next one is begun."""
    max_files: int
    """Of a recording; the oldest go first."""


class RecorderService:
    """Methods of both services. Used on the event loop."""

    def __init__(
        self, recordings: Recordings, storage: Storage, node: Callable[[], NodeFacts]
    ) -> None:
        self._recordings = recordings
        self._storage = storage
        self._node = node

    def recorder_methods(self) -> dict[str, Method]:
        """Methods of recorder.Recorder."""
        return {"Record": dialogue(self.record)}

    def packets_methods(self) -> dict[str, Method]:
        """Methods of our own service."""
        return {"CapturePackets": stream(self.capture_packets, packets_pb2.CapturePacketsRequest)}

    # ---- into a file ----

    async def record(self, call: Call) -> None:
        """Record from the first request on, until the client stops it or a limit is reached."""
        _check(call)
        request = await call.receive(recorder_pb2.RecordRequest)
        if request is None or not request.HasField("start"):
            raise RecordingError("the first request of a recording must be its start")
        start = request.start
        path = self._path(start.filesink.file_prefix)
        files: list[PcapFiles] = []

        def make_sink(snap_length: int) -> PcapFiles:
            sink = PcapFiles(path, snap_length, self._storage.max_bytes, self._storage.max_files)
            files.append(sink)
            return sink

        ended = asyncio.Event()
        recording = self._recordings.begin(
            start.include,
            start.max_capture_length,
            _limits(start.stop_condition),
            make_sink,
            _from_thread(ended.set),
        )
        stopping = asyncio.ensure_future(_until_stopped(call, recording))
        try:
            while not ended.is_set():
                running = recorder_pb2.RecordingRunningResponse(stats=_statistics(recording))
                await call.send(self._response(running=running))
                await _within(_REPORT_S, ended)
            stopped = recorder_pb2.RecordingStoppedResponse(stats=_statistics(recording))
            stopped.filesink.file_path = str(files[0].path)
            await call.send(self._response(stopped=stopped))
        finally:
            recording.end()
            stopping.cancel()
            with suppress(asyncio.CancelledError):
                await stopping
        if recording.failure:
            raise CaptureError(f"{files[0].path}: {recording.failure}")

    def _path(self, prefix: str) -> Path:
        prefix = prefix or "hubble"
        if not _PREFIX.fullmatch(prefix):
            raise RecordingError(
                f"filesink.file_prefix: {prefix!r} is not a small letter and up to 19 small "
                "letters and digits"
            )
        node = re.sub(r"[^A-Za-z0-9.-]", "-", self._node().name)
        name = f"{prefix}_{int(time.time())}_{secrets.token_hex(4)}_{node}.pcap"
        return self._storage.folder / name

    def _response(
        self,
        running: recorder_pb2.RecordingRunningResponse | None = None,
        stopped: recorder_pb2.RecordingStoppedResponse | None = None,
    ) -> recorder_pb2.RecordResponse:
        response = recorder_pb2.RecordResponse(
            node_name=self._node().qualified_name, running=running, stopped=stopped
        )
        response.time.FromNanoseconds(time.time_ns())
        return response

    # ---- to the client ----

    async def capture_packets(self, request: packets_pb2.CapturePacketsRequest, call: Call) -> None:
        """Send packets until the client ends the call or a limit is reached."""
        _check(call)
        sink = _ClientSink()
        recording = self._recordings.begin(
            request.include,
            request.max_capture_length,
            _limits(request.stop_condition),
            lambda _snap_length: sink,
            _from_thread(sink.news.set),
        )
        node = self._node().qualified_name
        try:
            sink.news.set()  # the first response says that it runs
            while True:
                await _within(_REPORT_S, sink.news)
                sink.news.clear()
                over = recording.ended.is_set()
                packets, size = sink.collect()
                response = packets_pb2.CapturePacketsResponse(
                    node_name=node, packets=packets, stats=_statistics(recording)
                )
                await call.send(response)
                sink.sent(size)
                if over and not sink.news.is_set():
                    break
        finally:
            recording.end()


class _ClientSink:
    """Packets on their way from the thread of recordings to a client."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self._tell = _from_thread(self.news.set)
        self._lock = threading.Lock()
        self._packets: list[packets_pb2.CapturedPacket] = []
        self._unsent = 0

    def write(self, packets: Sequence[Packet], clock_offset_ns: int) -> int:
        """Take what there is room for."""
        taken = 0
        with self._lock:
            for packet in packets:
                if self._unsent + len(packet.data) > _MOST_UNSENT:
                    break
                self._unsent += len(packet.data)
                self._packets.append(_message(packet, clock_offset_ns))
                taken += 1
        self._tell()
        return taken

    def close(self) -> None:
        """Nothing to give back."""

    def collect(self) -> tuple[list[packets_pb2.CapturedPacket], int]:
        """Take what waits for the client, some of it, and its bytes."""
        with self._lock:
            packets, size = [], 0
            for packet in self._packets:
                packets.append(packet)
                size += len(packet.data)
                if size >= _MOST_UNSENT // 8:
                    self.news.set()
                    break
            del self._packets[: len(packets)]
        return packets, size

    def sent(self, size: int) -> None:
        """Note that bytes have gone to the client."""
        with self._lock:
            self._unsent -= size


def _message(packet: Packet, clock_offset_ns: int) -> packets_pb2.CapturedPacket:
    if packet.point == _DROPPED:
        point = "dropped"
    else:
        number = packet.point or flow_pb2.TO_ENDPOINT
        point = flow_pb2.TraceObservationPoint.Name(number)
    return packets_pb2.CapturedPacket(
        time_ns=packet.time_ns + clock_offset_ns,
        length=packet.length,
        data=packet.data,
        point=point,
        endpoint=packet.endpoint,
        drop_reason=packet.reason,
    )


def _check(call: Call) -> None:
    """Raise ForbiddenError for who may not have packets; limited clients never come here."""
    if not call.is_local and not call.certificate:
        raise ForbiddenError(
            "packets are recorded for clients on the node's unix socket, and for those with a "
            "certificate; use either"
        )


def _limits(condition: recorder_pb2.StopCondition) -> Limits:
    elapsed = condition.time_elapsed
    if elapsed.seconds < 0 or elapsed.nanos < 0:
        raise RecordingError("stop_condition.time_elapsed: it is below 0; use 0 for no limit")
    return Limits(
        packets=condition.packets_captured_count,
        bytes=condition.bytes_captured_count,
        seconds=elapsed.seconds + elapsed.nanos / 1e9,
    )


def _statistics(recording: Recording) -> recorder_pb2.RecordingStatistics:
    done = recording.statistics
    return recorder_pb2.RecordingStatistics(
        bytes_captured=done.bytes,
        packets_captured=done.packets,
        packets_lost=done.packets_lost,
        bytes_lost=done.bytes_lost,
    )


def _from_thread(function: Callable[[], None]) -> Callable[[], None]:
    """What calls a function on this event loop, from another thread; not at all once it ended."""
    loop = asyncio.get_running_loop()

    def call() -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(function)

    return call


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Wait for an event, for a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def _until_stopped(call: Call, recording: Recording) -> None:
    """End a recording when the client says so, or says nothing more."""
    while (request := await call.receive(recorder_pb2.RecordRequest)) is not None:
        if request.HasField("stop"):
            break
    recording.end()
