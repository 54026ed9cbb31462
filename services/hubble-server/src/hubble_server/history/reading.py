"""Reads a history: parts in order, filters on columns, encoded responses out.

Of a complete part only the row groups in range are looked at, and of these only the columns that
the filters ask for, until something passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import pyarrow as pa
from cilium_core.telemetry import get_logger
from flow import flow_pb2
from observer import observer_pb2

from hubble_server.encoding.encoder import Encoder
from hubble_server.encoding.masks import Mask
from hubble_server.facts import NodeFacts
from hubble_server.filters import FilterContext, Filters, compile_filters
from hubble_server.filters.columns import Columns
from hubble_server.flows.columns import KIND_FLOW, KIND_LOST, KIND_RECORD, SCHEMA
from hubble_server.history.files import Opened
from hubble_server.history.journals import DamagedError, Frame, read_frames
from hubble_server.history.layout import Part
from hubble_server.history.tables import add_rows, decode_node
from hubble_server.metadata.directory import Directory
from hubble_server.servicers.streaming import Chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


_log = get_logger()
_MOST: Final = 1024
"""Most responses encoded at once."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a history. Times are nanoseconds since the epoch, both ends inclusive."""

    whitelist: Sequence[flow_pb2.FlowFilter] = ()
    blacklist: Sequence[flow_pb2.FlowFilter] = ()
    mask: Mask | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    number: int = 0
    """Flows to hand out, the oldest ones; 0 is no limit."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a history: everything before a row of a part."""

    part: int = 0
    row: int = 0


class _Rows(Protocol):
    """Rows of a part that are read together."""

    count: int

    def __getitem__(self, name: str, /) -> NDArray[Any]: ...

    def messages(self, rows: NDArray[np.intp], /) -> list[bytes]: ...


class _FrameRows:
    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self.count = frame.count

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._frame.columns[name]

    def messages(self, rows: NDArray[np.intp]) -> list[bytes]:
        return [self._frame.messages[row] for row in rows.tolist()]


class _Chosen:
    """Some rows, whose columns are read when they are asked for."""

    def __init__(self, rows: _Rows, chosen: NDArray[np.intp]) -> None:
        self._rows = rows
        self._chosen = chosen

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._rows[name][self._chosen]


class Reading:
    """One pass over parts of a history, from a place on.

    `find` tells what has become of a journal that is not there any more.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        asked: Asked,
        on_damage: Callable[[str], None],
        *,
        start: Place | None = None,
        find: Callable[[int], Part | None] = lambda _: None,
    ) -> None:
        self._parts = parts
        self._asked = asked
        self._start = start or Place()
        self._on_damage = on_damage
        self._find = find
        self.remaining = asked.number
        """Flows that may still be handed out, where there is a limit."""
        self.ended = False
        """Whether the limit is reached."""

    def __iter__(self) -> Iterator[Chunk]:
        for part in self._parts:
            if self.ended:
                return
            if part.number >= self._start.part:
                yield from self._part(part)

    def _part(self, part: Part) -> Iterator[Chunk]:
        asked = self._asked
        if not part.may_hold(asked.since_ns, asked.until_ns):
            return
        read = self._start.row if part.number == self._start.part else 0
        try:
            rows = self._journal(part) if part.is_journal else self._file(part)
            for first, stretch, tools in rows:
                end = part.rows - first if part.rows else stretch.count
                yield from self._stretch(stretch, tools, max(0, read - first), end)
                if self.ended or (part.rows and end <= stretch.count):
                    return
        except FileNotFoundError:
            now = self._find(part.number)
            if now is None or now.path == part.path:
                _log.debug("a part of the history was removed while it was read", part=part.number)
            else:
                # the same rows in the same order, and those written since
                limited = Part(now.number, now.path, now.first_ns, now.last_ns, part.rows)
                yield from self._part(limited)
        except (DamagedError, OSError, pa.ArrowException) as error:
            self._on_damage(str(error))
            yield _loss(part)

    def _file(self, part: Part) -> Iterator[tuple[int, _Rows, _Tools]]:
        opened = Opened(part.path)
        try:
            tools = self._tools(opened.directory, opened.node)
            for first, group in opened.groups(self._asked.since_ns, self._asked.until_ns):
                yield first, group, tools
        finally:
            opened.close()

    def _journal(self, part: Part) -> Iterator[tuple[int, _Rows, _Tools]]:
        directory, first = Directory(), 0
        tools: _Tools | None = None
        for frame in read_frames(part.path):
            add_rows(directory, frame.added)
            if tools is None:
                tools = self._tools(directory, decode_node(frame.node))
            yield first, _FrameRows(frame), tools
            first += frame.count

    def _tools(self, directory: Directory, node: NodeFacts) -> _Tools:
        asked = self._asked
        filters = compile_filters(
            FilterContext(directory, node), asked.whitelist, asked.blacklist
        )  # fmt: skip
        return _Tools(filters, Encoder(node, directory, asked.mask), node)

    def _stretch(self, rows: _Rows, tools: _Tools, start: int, end: int) -> Iterator[Chunk]:
        asked = self._asked
        mask = np.ones(rows.count, dtype=np.bool_)
        mask[:start] = False
        mask[max(0, end) :] = False
        if asked.since_ns is not None:
            mask &= rows["time_ns"] >= asked.since_ns
        if asked.until_ns is not None:
            mask &= rows["time_ns"] <= asked.until_ns
        if not mask.any():
            return
        found = np.flatnonzero(_passing(rows, tools.filters, mask))
        kinds = rows["kind"]
        if self._asked.number:
            counts = np.cumsum(kinds[found] != KIND_LOST)
            if len(counts) and counts[-1] >= self.remaining:
                found = found[: int(np.searchsorted(counts, self.remaining)) + 1]
                self.remaining, self.ended = 0, True
            elif len(counts):
                self.remaining -= int(counts[-1])
        for at in range(0, len(found), _MOST):
            yield _encode(rows, found[at : at + _MOST], kinds, tools)


@dataclass(frozen=True, slots=True)
class _Tools:
    """What the rows of one part are read with."""

    filters: Filters
    encoder: Encoder
    node: NodeFacts


def _passing(rows: _Rows, filters: Filters, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the rows wanted, those that pass, and losses, which bypass filters."""
    kinds = rows["kind"]
    lost: NDArray[np.bool_] = wanted & (kinds == KIND_LOST)
    mask: NDArray[np.bool_] = wanted & (kinds <= KIND_RECORD)
    if not filters.pass_all and mask.any():
        mask &= filters.mask(Columns(rows, rows.count))
        if filters.matches is not None:
            records = np.flatnonzero(mask & (kinds == KIND_RECORD))
            for row, message in zip(records.tolist(), rows.messages(records), strict=True):
                mask[row] = filters.matches(flow_pb2.Flow.FromString(message))
            if filters.messages is not None:
                flows = np.flatnonzero(mask & (kinds == KIND_FLOW))
                batch = {name: rows[name][flows] for name in SCHEMA}
                mask[flows] = [filters.matches(flow) for flow in filters.messages(batch)]
    mask |= lost
    return mask


def _encode(
    rows: _Rows, chosen: NDArray[np.intp], kinds: NDArray[np.uint8], tools: _Tools
) -> Chunk:
    times: list[int] = rows["time_ns"][chosen].tolist()
    are_flows = kinds[chosen] == KIND_FLOW
    flows: Any = _Chosen(rows, chosen[are_flows])
    made = iter(tools.encoder.responses(flows))
    others = iter(rows.messages(chosen[~are_flows]) if not are_flows.all() else ())
    responses = []
    for kind, time_ns in zip(kinds[chosen].tolist(), times, strict=True):
        if kind == KIND_FLOW:
            responses.append(next(made))
        elif kind == KIND_RECORD:
            responses.append(tools.encoder.record(next(others), time_ns))
        else:
            lost = flow_pb2.LostEvent.FromString(next(others))
            responses.append(_lost_response(lost, time_ns, tools.node.qualified_name))
    return Chunk(responses, times)


def _lost_response(lost: flow_pb2.LostEvent, time_ns: int, node_name: str) -> bytes:
    response = observer_pb2.GetFlowsResponse(lost_events=lost, node_name=node_name)
    response.time.FromNanoseconds(time_ns)
    return response.SerializeToString()


def _loss(part: Part) -> Chunk:
    """Tells of a part that cannot be read as a whole: as many flows as it had at most are lost."""
    lost = flow_pb2.LostEvent(
        source=flow_pb2.UNKNOWN_LOST_EVENT_SOURCE, num_events_lost=max(part.rows, 1)
    )
    lost.first.FromNanoseconds(part.first_ns)
    lost.last.FromNanoseconds(part.last_ns)
    return Chunk([_lost_response(lost, part.last_ns, "")], [part.last_ns])
