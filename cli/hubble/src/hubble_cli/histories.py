"""Flows from the history that a server left on disk, instead of a server.

Only the server's own programs know its files, so `hubble-history`, which comes with it, reads them.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TypeVar

from cilium.flows.v1 import states_pb2
from google.protobuf.message import Message
from observer import observer_pb2

from hubble_cli.errors import HubbleError

if TYPE_CHECKING:
    from collections.abc import Iterator

Answer = TypeVar("Answer", bound=Message)

_PROGRAM: Final = "hubble-history"
_LENGTH: Final = struct.Struct("<I")
_ALL: Final = (1 << 64) - 1
_MAX_LAST: Final = 1_000_000


def read(
    directory: str, request: observer_pb2.GetFlowsRequest
) -> Iterator[observer_pb2.GetFlowsResponse]:
    """Answers out of a directory that the request asks for, in order.

    Raises HubbleError where the directory cannot be read or its reader is not installed.
    """
    number = 0 if request.first or request.number == _ALL else request.number
    if number > _MAX_LAST:
        raise HubbleError(f"--last must be <= 1_000_000, got {number}")
    found = _responses(directory, request, observer_pb2.GetFlowsResponse)
    return iter(deque(found, maxlen=number)) if number else found


def read_state(
    directory: str, request: states_pb2.GetStateRequest
) -> Iterator[states_pb2.NodeState]:
    """What held at a moment, out of a directory. Raises HubbleError as `read` does."""
    return _responses(directory, request, states_pb2.NodeState, "--state")


def _responses(
    directory: str, request: Message, answer: type[Answer], *options: str
) -> Iterator[Answer]:
    beside = Path(sys.executable).with_name(_PROGRAM)
    program = str(beside) if beside.exists() else shutil.which(_PROGRAM)
    if program is None:
        raise HubbleError(
            f"--input-dir needs {_PROGRAM}, which comes with hubble-server; install it"
        )
    path = str(Path(directory).absolute())
    with subprocess.Popen(
        [program, *options, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        if reader.stdin is None or reader.stdout is None:
            raise HubbleError(f"{_PROGRAM} has no standard input or output")
        try:
            reader.stdin.write(request.SerializeToString())
            reader.stdin.close()
            while head := _exactly(reader.stdout, _LENGTH.size):
                body = _exactly(reader.stdout, _LENGTH.unpack(head)[0])
                yield answer.FromString(body)
        except GeneratorExit:
            reader.kill()
            raise
    if reader.returncode:
        raise HubbleError(f"cannot read the history in {directory}")


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    return data if len(data) == size else b""
