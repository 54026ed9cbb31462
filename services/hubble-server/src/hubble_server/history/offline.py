"""Reads a history without a server: a request on standard input, responses on standard output.

A program of its own, `hubble-history DIRECTORY`, for `hubble observe --input-dir`. The request is
an encoded observer.GetFlowsRequest; of its number and direction only `first` counts here. Each
response is an encoded observer.GetFlowsResponse after its length, four bytes, little-endian. What
cannot be read is told on standard error, and as a lost event in its place.

`hubble-history --state DIRECTORY` takes a cilium.flows.v1.GetStateRequest instead and answers with
NodeState messages.
"""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cilium.flows.v1 import states_pb2
from cilium.metadata.v1 import metadata_pb2
from cilium_core.errors import InvalidError
from cilium_core.flow_filters import FilterError
from google.protobuf.message import DecodeError
from observer import observer_pb2

from hubble_server.encoding.masks import parse_mask
from hubble_server.history.layout import parts_of
from hubble_server.history.reading import Reading
from hubble_server.history.states import NOT_KEPT, answers, state_at
from hubble_server.history.walking import Asked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hubble_server.history.layout import Part

_LENGTH: Final = struct.Struct("<I")


def read(
    directory: Path, request: observer_pb2.GetFlowsRequest, warn: Callable[[str], None]
) -> Iterator[bytes]:
    """Encoded responses. Raises OSError, FilterError and InvalidError."""
    asked = Asked(
        whitelist=tuple(request.whitelist),
        blacklist=tuple(request.blacklist),
        mask=parse_mask(request.field_mask.paths),
        since_ns=request.since.ToNanoseconds() if request.HasField("since") else None,
        until_ns=request.until.ToNanoseconds() if request.HasField("until") else None,
        number=request.number if request.first else 0,
    )

    def find(number: int) -> Part | None:
        return next((part for part in parts_of(directory)[0] if part.number == number), None)

    for chunk in Reading(parts_of(directory)[0], asked, warn, find=find):
        yield from chunk.responses


def read_state(directory: Path, request: states_pb2.GetStateRequest) -> Iterator[bytes]:
    """Encoded messages of the state at a moment. Raises OSError."""
    moment = state_at(directory, request.at_ns or time.time_ns())
    name = next(iter(moment.state.of("local_node")), metadata_pb2.LocalNode()).name
    note = "" if moment.told_ns else NOT_KEPT
    for message in answers(name or str(directory), moment, note):
        yield message.SerializeToString()


def main() -> None:
    """Run hubble-history. Exits with 1 and a reason where the history cannot be read."""
    arguments = sys.argv[1:]
    of_state = arguments[:1] == ["--state"]
    del arguments[: int(of_state)]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: hubble-history [--state] DIRECTORY <request >responses", file=sys.stderr)
        sys.exit(2)
    directory, output = Path(arguments[0]), sys.stdout.buffer

    def warn(text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    try:
        asked = sys.stdin.buffer.read()
        if of_state:
            found = read_state(directory, states_pb2.GetStateRequest.FromString(asked))
        else:
            found = read(directory, observer_pb2.GetFlowsRequest.FromString(asked), warn)
        for response in found:
            output.write(_LENGTH.pack(len(response)) + response)
        output.flush()
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        sys.exit(f"{directory}: {(error.strerror or str(error)).lower()}")
    except (FilterError, InvalidError, DecodeError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
