"""Walks through a history: stretches of rows of its parts, in order or from the newest back.

Of a complete part only the row groups in range are looked at, and of these only the columns that
the filters ask for, until something passes. A walk may be made on any thread; of one `Walker`,
several at once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from cilium_core.telemetry import get_logger
from flow import flow_pb2
from numpy.typing import NDArray

from hubble_server.encoding.encoder import Encoder
from hubble_server.encoding.masks import Mask
from hubble_server.filters import FilterContext, Filters, compile_filters
from hubble_server.filters.columns import Columns
from hubble_server.flows.columns import KIND_FLOW, KIND_LOST, KIND_RECORD, SCHEMA
from hubble_server.flows.naming import Namer
from hubble_server.history.files import Opened
from hubble_server.history.journals import DamagedError, Frame, read_frames
from hubble_server.history.layout import Part
from hubble_server.history.summaries import Reader, summary_of
from hubble_server.history.tables import add_rows, decode_node
from hubble_server.history.uuids import may_have, wanted_uuids
from hubble_server.metadata.directory import Directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hubble_server.facts import NodeFacts


_log = get_logger()

T = TypeVar("T")


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


class Rows(Protocol):
    """Rows of a part that are read together."""

    count: int

    def __getitem__(self, name: str, /) -> NDArray[Any]:
        """One column."""

    @property
    def loaded(self) -> Iterable[str]:
        """Names of the columns read so far."""

    def load(self, names: Iterable[str], /) -> None:
        """Read columns together."""

    def messages(self, rows: NDArray[np.intp], /) -> list[bytes]:
        """Messages of some rows, empty for those without one."""


class _FrameRows:
    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self.count = frame.count

        self.loaded: Iterable[str] = SCHEMA

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._frame.columns[name]

    def load(self, names: Iterable[str]) -> None: ...

    def messages(self, rows: NDArray[np.intp]) -> list[bytes]:
        return [self._frame.messages[row] for row in rows.tolist()]


class Chosen:
    """Some rows, whose columns are read when they are asked for."""

    def __init__(self, rows: Rows, chosen: NDArray[np.intp]) -> None:
        self._rows = rows
        self._chosen = chosen

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._rows[name][self._chosen]


class Tools:
    """What rows of a node's parts are read with. Raises FilterError for filters without sense."""

    def __init__(self, directory: Directory, node: NodeFacts, asked: Asked) -> None:
        self._directory = directory
        self._asked = asked
        self.node = node
        self.filters: Filters = compile_filters(
            FilterContext(directory, node), asked.whitelist, asked.blacklist
        )
        self._asked_by: dict[str, set[str]] = {}

    @contextmanager
    def reading(self, rows: Rows, purpose: str) -> Iterator[None]:
        """Read at once the columns that the same purpose asked for in the rows before."""
        known = self._asked_by.setdefault(purpose, set())
        rows.load(known)
        yield
        known.update(rows.loaded)

    @cached_property
    def namer(self) -> Namer:
        """Says what rows are called when they are counted."""
        return Namer(self.node, self._directory)

    @cached_property
    def encoder(self) -> Encoder:
        """Makes messages of rows."""
        return Encoder(self.node, self._directory, self._asked.mask)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows that are read together, `wanted` those in the range of places and times."""

    first: int
    """Number of the first row in its part."""
    rows: Rows
    tools: Tools
    wanted: NDArray[np.bool_]

    def passing(self) -> NDArray[np.bool_]:
        """Rows wanted that pass the filters, and losses, which bypass them."""
        with self.tools.reading(self.rows, "filters"):
            return self._passing()

    def _passing(self) -> NDArray[np.bool_]:
        rows, wanted, filters = self.rows, self.wanted, self.tools.filters
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


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A part that cannot be read as a whole."""

    part: Part
    reason: str


class _Own(threading.local):
    """What a thread reads complete parts with, so that names are looked up once."""

    def __init__(self) -> None:
        self.directory = Directory()
        self.tools: dict[NodeFacts, Tools] = {}


class Walker:
    """Walks through parts from a place on.

    `find` tells what has become of a journal that is not there any more.
    """

    def __init__(
        self, asked: Asked, start: Place, find: Callable[[int], Part | None] = lambda _: None
    ) -> None:
        self._asked = asked
        self._own = _Own()
        self.reader = Reader(asked.whitelist, asked.blacklist)
        self._uuids = wanted_uuids(asked.whitelist)
        self._filtered = bool(asked.whitelist or asked.blacklist)
        self._start = start
        self._find = find

    def part(
        self,
        part: Part,
        read: Callable[[Stretch], Iterable[T]],
        *,
        backwards: bool = False,
        chosen: int | None = None,
    ) -> Iterator[T | Unreadable]:
        """Yield what `read` makes of each stretch; nothing when a part is out of range or gone.

        `chosen` has bits of the only row groups of a complete part to look at.
        """
        asked, start = self._asked, self._start
        if part.number < start.part or not part.may_hold(asked.since_ns, asked.until_ns):
            return
        begin = start.row if part.number == start.part else 0
        try:
            if part.is_journal:
                rows = self._journal(part, backwards)
            else:
                rows = self._file(part, backwards, chosen)
            for first, stretch, tools in rows:
                end = part.rows - first if part.rows else stretch.count
                wanted = self._wanted(stretch, max(0, begin - first), max(0, end))
                if wanted is not None:
                    yield from read(Stretch(first, stretch, tools, wanted))
                if part.rows and end <= stretch.count and not backwards:
                    return
        except FileNotFoundError:
            now = self._find(part.number)
            if now is None or now.path == part.path:
                _log.debug("a part of the history was removed while it was read", part=part.number)
            else:
                # the same rows in the same order, and those written since
                now = replace(now, rows=part.rows)
                yield from self.part(now, read, backwards=backwards)
        except (DamagedError, OSError, pa.ArrowException) as error:
            yield Unreadable(part, str(error))

    def covers(self, part: Part) -> bool:
        """Whether all rows of a complete part are in the range of places and times."""
        since_ns, until_ns, start = self._asked.since_ns, self._asked.until_ns, self._start
        return (
            (part.number > start.part or (part.number == start.part and not start.row))
            and (since_ns is None or since_ns <= part.first_ns)
            and (until_ns is None or until_ns >= part.last_ns)
        )

    def _file(
        self, part: Part, backwards: bool, chosen: int | None
    ) -> Iterator[tuple[int, Rows, Tools]]:
        if self._uuids is not None and not may_have(part, self._uuids):
            return
        if chosen is None and self._filtered and (summary := summary_of(part)) is not None:
            chosen = summary.groups(self.reader.passing(summary))
        if chosen == 0:
            return
        own = self._own
        opened = Opened(part.path, own.directory)
        try:
            tools = own.tools.get(opened.node)
            if tools is None:
                tools = own.tools[opened.node] = Tools(own.directory, opened.node, self._asked)
            groups = list(opened.groups(self._asked.since_ns, self._asked.until_ns, chosen))
            for first, group in reversed(groups) if backwards else groups:
                yield first, group, tools
        finally:
            opened.close()

    def _journal(self, part: Part, backwards: bool) -> Iterator[tuple[int, Rows, Tools]]:
        found = self._frames(part)
        yield from list(found)[::-1] if backwards else found

    def _frames(self, part: Part) -> Iterator[tuple[int, Rows, Tools]]:
        directory, first = Directory(), 0
        tools: Tools | None = None
        for frame in read_frames(part.path):
            add_rows(directory, frame.added)
            if tools is None:
                tools = Tools(directory, decode_node(frame.node), self._asked)
            yield first, _FrameRows(frame), tools
            first += frame.count

    def _wanted(self, rows: Rows, start: int, end: int) -> NDArray[np.bool_] | None:
        """Rows from `start` to `end` in the range of times, None when there are none."""
        asked = self._asked
        mask = np.ones(rows.count, dtype=np.bool_)
        mask[:start] = False
        mask[end:] = False
        if asked.since_ns is not None:
            mask &= rows["time_ns"] >= asked.since_ns
        if asked.until_ns is not None:
            mask &= rows["time_ns"] <= asked.until_ns
        return mask if mask.any() else None
