"""`hubble record`: whole packets of a node, into a file there or here."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING

from hubble_cli.arguments import Command, Flag, Section
from hubble_cli.errors import HubbleError, UsageError
from hubble_cli.settings import SERVER, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from recorder import recorder_pb2

    from hubble_cli.arguments import Parsed
    from hubble_cli.connecting import Connection

_RECORD = Section(
    "Recorder",
    (
        Flag("file-prefix", "string", "how the name of the node's file begins", default="hubble"),
        Flag("max-capture-len", "uint", "bytes kept of a packet, 0 for whole packets", default=0),
        Flag("packet-limit", "uint", "end after that many packets, 0 for no limit", default=0),
        Flag("bytes-limit", "uint", "end after that many bytes, 0 for no limit", default=0),
        Flag("time-limit", "duration", "end after that time, 0 for no limit", default=0),
        Flag(
            "both-ways",
            "bool",
            "also what goes the other way, from destination to source",
            default=False,
            implied="true",
        ),
    ),
)
_OUTPUT = Section(
    "Output",
    (
        Flag(
            "output",
            "string",
            "file here in place of one of the node; - for the output, to be read by a program",
            "o",
        ),
    ),
)

_FIELDS = 5
_ANY = frozenset({"0", "*", "any"})
_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_WHOLE = 0xFFFF
_BEGUN = "Started recording. Press CTRL+C to stop."


def parse_filter(text: str) -> recorder_pb2.Filter:
    """A filter of five words. Raises UsageError naming the word that is wrong."""
    from recorder import recorder_pb2

    words = text.split()
    if len(words) != _FIELDS:
        raise UsageError(
            f"filter {text!r}: expected 'SOURCE PORT DESTINATION PORT PROTOCOL', five words, such "
            "as '0.0.0.0/0 0 10.0.1.15 80 TCP'"
        )
    protocol = words[4].upper()
    if protocol not in _PROTOCOLS and protocol.lower() not in _ANY:
        raise UsageError(f"filter {text!r}: protocol {words[4]!r} is none of TCP, UDP, SCTP, any")
    return recorder_pb2.Filter(
        source_cidr=_address(words[0]),
        source_port=_port(text, words[1]),
        destination_cidr=_address(words[2]),
        destination_port=_port(text, words[3]),
        protocol=_PROTOCOLS.get(protocol, 0),  # type: ignore[arg-type]
    )


def _address(word: str) -> str:
    return "" if word.lower() in _ANY else word


def _port(text: str, word: str) -> int:
    if word.lower() in _ANY:
        return 0
    if not word.isdecimal() or int(word) > 0xFFFF:
        raise UsageError(f"filter {text!r}: port {word!r} is not between 1 and 65535, 0 or any")
    return int(word)


def turned(wanted: recorder_pb2.Filter) -> recorder_pb2.Filter:
    """The filter of what goes the other way."""
    from recorder import recorder_pb2

    return recorder_pb2.Filter(
        source_cidr=wanted.destination_cidr,
        source_port=wanted.destination_port,
        destination_cidr=wanted.source_cidr,
        destination_port=wanted.source_port,
        protocol=wanted.protocol,
    )


def record(parsed: Parsed) -> None:
    """Record until a limit is reached or the user ends it."""
    from recorder import recorder_pb2

    from hubble_cli.connecting import Connection

    settings = Settings(parsed)
    settings.check()
    filters = [parse_filter(text) for text in parsed.operands]
    if parsed.values.get("both-ways"):
        filters += [turned(each) for each in filters]
    condition = recorder_pb2.StopCondition(
        bytes_captured_count=int(str(parsed.values.get("bytes-limit", 0))),
        packets_captured_count=int(str(parsed.values.get("packet-limit", 0))),
    )
    if limit_ns := int(str(parsed.values.get("time-limit", 0))):
        condition.time_elapsed.FromNanoseconds(limit_ns)
    snap_length = int(str(parsed.values.get("max-capture-len", 0)))
    with Connection(settings) as connection:
        if output := str(parsed.values.get("output", "")):
            _record_here(connection, output, filters, snap_length, condition)
            return
        start = recorder_pb2.StartRecording(
            include=filters, max_capture_length=snap_length, stop_condition=condition
        )
        start.filesink.file_prefix = str(parsed.values.get("file-prefix", ""))
        _record_there(connection, start)


def _record_there(connection: Connection, start: recorder_pb2.StartRecording) -> None:
    from recorder import recorder_pb2

    send, answers = connection.dialogue("/recorder.Recorder/Record", recorder_pb2.RecordResponse)
    stop = recorder_pb2.RecordRequest(stop=recorder_pb2.StopRecording())
    with _on_interrupt(lambda: send(stop)):
        send(recorder_pb2.RecordRequest(start=start))
        for number, answer in enumerate(answers):
            if not number:
                _say(_BEGUN)
            elif answer.HasField("running"):
                _say(f"Recording: {_told(answer.running.stats)}")
            else:
                stopped = answer.stopped
                _say(f"Recorded: {_told(stopped.stats)}, on node {answer.node_name}")
                sys.stdout.write(f"{stopped.filesink.file_path}\n")


def _record_here(
    connection: Connection,
    output: str,
    filters: Sequence[recorder_pb2.Filter],
    snap_length: int,
    condition: recorder_pb2.StopCondition,
) -> None:
    from cilium.flows.v1 import packets_pb2
    from cilium_core import pcap

    request = packets_pb2.CapturePacketsRequest(
        include=filters, max_capture_length=snap_length, stop_condition=condition
    )
    interrupted: list[bool] = []
    stats: recorder_pb2.RecordingStatistics | None = None
    answers = connection.stream(
        "/cilium.flows.v1.PacketsService/CapturePackets",
        request,
        packets_pb2.CapturePacketsResponse,
    )
    first = next(answers, None)
    if first is None:
        raise HubbleError("the server ended the recording before it began")
    with _opened(output) as write, _on_interrupt(lambda: interrupted.append(True)):
        write(pcap.header(snap_length or _WHOLE))
        _say(_BEGUN)
        for answer in chain([first], answers):
            write(
                b"".join(
                    pcap.record(each.time_ns, each.length, each.data) for each in answer.packets
                )
            )
            stats = answer.stats
            if interrupted:
                break
    if stats is not None:
        _say(f"Recorded: {_told(stats)}, in {'the output' if output == '-' else output}")


@contextmanager
def _opened(output: str) -> Iterator[Callable[[bytes], None]]:
    """What writes to a new file, or to the output, with nothing held back. Raises HubbleError."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        fd = os.dup(sys.stdout.fileno()) if output == "-" else os.open(output, flags, 0o600)
    except OSError as error:
        raise HubbleError(f"--output {output}: {error.strerror}") from error

    def write(data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise HubbleError(f"--output {output}: {error.strerror}") from error

    try:
        yield write
    finally:
        os.close(fd)


@contextmanager
def _on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C do something once; the second time it ends the program."""

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        act()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, before)


def _told(stats: recorder_pb2.RecordingStatistics) -> str:
    many = "s" * (stats.packets_captured != 1)
    text = f"{stats.packets_captured} packet{many}, {stats.bytes_captured} bytes"
    return f"{text}, {stats.packets_lost} packets lost" if stats.packets_lost else text


def _say(text: str) -> None:
    """Tell the user, beside the output."""
    sys.stderr.write(f"{text}\n")


COMMAND = Command(
    "record",
    "Record the packets of a node",
    record,
    (_RECORD, _OUTPUT, SERVER),
    operands=(1, 16),
    usage="FILTER [FILTER...] [flags]",
    text="""\
Records whole packets as they leave the data plane of a node or are dropped there, in the format of
tcpdump and Wireshark: into a file of the node, whose name is printed at the end, or with --output
into one here. A filter says which packets, in five words: source, its port, destination, its port
and protocol. Addresses are prefixes; 0, * or any fit all. Each packet is there once, with the
addresses that pods see. A recording ends with Ctrl-C or when a limit is reached.

The server must be that of a node. Over TCP it wants a client certificate that may see all
namespaces.

Examples:
  hubble record '0.0.0.0/0 0 10.0.1.15 80 TCP' --both-ways --time-limit 30s
  hubble record 'any any 10.0.0.10 53 UDP' --packet-limit 100 -o dns.pcap
  hubble record '10.0.1.15 0 any 0 any' -o - | tcpdump -n -r -
""",
)
