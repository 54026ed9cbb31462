"""The flow ring: the newest 2^n - 1 flows and other events of this node, as columns.

One writer, the ingest thread; any number of readers on the event loop; no locks. An event's number
is its position in the sequence of all events ever written. The writer announces the numbers whose
slots it is about to overwrite (`reserved`) before it writes and publishes them (`head`) after, so a
reader that copies first and asks `valid_from` afterwards knows which of its rows may be torn.
Spare slots beyond the capacity make that rare.

Flows are rows of columns. What does not fit into columns hangs beside them: the encoded flow of a
record, the message of an event of another kind. Records are as large as the requests they tell of,
so their bytes are limited: beyond that the ring holds fewer events than it could.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np

from hubble_server.errors import CapacityError
from hubble_server.flows.columns import KIND_FLOW, SCHEMA, Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from google.protobuf.message import Message
    from numpy.typing import NDArray

DEFAULT_CAPACITY = 4095
LARGEST_CAPACITY = 65_535
SPARE_SLOTS = 4096
"""Most flows that one append may bring."""

RECORD_BYTES = 64 << 20
"""Encoded records that a ring holds at least, however small it is."""

BYTES_PER_SLOT = 2048
"""Encoded records that a large ring holds for each of its slots."""


class Said(NamedTuple):
    """What regular expressions of filters are looked for in, of one record."""

    text: bytes
    """What a question asks for, or the URL of a request."""
    path: bytes | None = None
    """The decoded path of that URL, if it has one."""


Attached = Union["Message", bytes]
"""An encoded flow, or the message of an event that is no flow."""


def check_capacity(capacity: int) -> int:
    """Return the capacity if the ring can have it. Raises CapacityError; nothing is rounded."""
    if 1 <= capacity <= LARGEST_CAPACITY and not capacity & (capacity + 1):
        return capacity
    raise CapacityError(
        f"invalid capacity: {capacity}: hubble-event-buffer-capacity must be one less than a power "
        f"of two, from 1 to {LARGEST_CAPACITY}, such as {DEFAULT_CAPACITY}"
    )


class Block:
    """A stretch of the ring without a gap; columns are views, valid as `FlowStore` says."""

    __slots__ = ("_columns", "_from", "_said", "_to", "first")

    def __init__(
        self,
        columns: dict[str, NDArray[Any]],
        said: list[Said | None],
        slot: int,
        count: int,
        first: int,
    ) -> None:
        self._columns = columns
        self._said = said
        self._from = slot
        self._to = slot + count
        self.first = first

    def __len__(self) -> int:
        return self._to - self._from

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name][self._from : self._to]

    def said(self, rows: Sequence[int]) -> list[Said | None]:
        """What records of some rows say; None where nothing is known of it."""
        said = self._said
        return [said[self._from + row] for row in rows]

    def take(self, rows: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Copy some rows of all columns."""
        slots = rows + self._from
        return {name: column[slots] for name, column in self._columns.items()}


class FlowStore:
    """Ring of `capacity` events. Raises CapacityError for an illegal capacity.

    `record_bytes` limits the encoded records; by default it grows with the capacity.
    """

    def __init__(
        self, capacity: int = DEFAULT_CAPACITY, *, record_bytes: int | None = None
    ) -> None:
        self.capacity = check_capacity(capacity)
        self.slots = capacity + 1 + SPARE_SLOTS
        self._columns = {name: np.zeros(self.slots, dtype=kind) for name, kind in SCHEMA.items()}
        self._said: list[Said | None] = [None] * self.slots
        self._said_to = 0
        self._attached: dict[int, Attached] = {}
        self._attached_numbers: deque[int] = deque()
        self._bytes = 0
        self._bytes_limit = record_bytes or max(RECORD_BYTES, self.slots * BYTES_PER_SLOT)
        self._evicted_to = 0
        self._listeners: set[Callable[[], None]] = set()
        self._listeners_lock = threading.Lock()
        self.head = 0
        self._reserved = 0

    # ---- writing: the ingest thread ----

    def append(
        self,
        batch: Batch,
        count: int,
        records: Sequence[bytes] = (),
        said: Sequence[Said | None] = (),
    ) -> None:
        """Write `count` flows, at most SPARE_SLOTS, and publish them.

        `records` are their encoded messages, one for each flow, if they are records, and `said`
        is what these say.
        """
        first = self.head
        self._reserved = first + count
        start = first % self.slots
        fits = min(count, self.slots - start)
        for name, column in self._columns.items():
            values = batch[name]
            column[start : start + fits] = values[:fits]
            if fits < count:
                column[: count - fits] = values[fits:count]
        for number, record in enumerate(records, first):
            self._attach(number, record)
        self._say(first, count, said)
        self._publish(first + count)

    def append_object(self, kind: int, time_ns: int, message: Message, **columns: int) -> None:
        """Write one event that is no flow."""
        number = self.head
        self._reserved = number + 1
        slot = number % self.slots
        for column in self._columns.values():
            column[slot] = np.zeros((), dtype=column.dtype)
        for name, value in (*columns.items(), ("kind", kind), ("time_ns", time_ns)):
            self._columns[name][slot] = value
        self._attach(number, message)
        self._say(number, 1, ())
        self._publish(number + 1)

    def _say(self, first: int, count: int, said: Sequence[Said | None]) -> None:
        """Keep what records say, in place of what older ones said."""
        if said:
            for number, one in enumerate(said, first):
                self._said[number % self.slots] = one
            self._said_to = first + count
        elif self._said_to > first - self.slots:
            for number in range(first, first + count):
                self._said[number % self.slots] = None

    def _attach(self, number: int, attached: Attached) -> None:
        self._attached[number] = attached
        self._attached_numbers.append(number)
        if isinstance(attached, bytes):
            self._bytes += len(attached)

    def _publish(self, head: int) -> None:
        self.head = head
        horizon = head - self.slots
        numbers = self._attached_numbers
        while numbers and (numbers[0] < horizon or self._bytes > self._bytes_limit):
            number = numbers.popleft()
            if number >= horizon:
                self._evicted_to = number + 1
            attached = self._attached.pop(number)
            if isinstance(attached, bytes):
                self._bytes -= len(attached)
                if number >= horizon:
                    self._said[number % self.slots] = None

    def notify(self) -> None:
        """Tell listeners that there are new events; called once for each batch of the kernel's."""
        with self._listeners_lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    # ---- reading: any thread ----

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` on the writer's thread after new events; returns what ends that."""
        with self._listeners_lock:
            self._listeners.add(listener)

        def stop() -> None:
            with self._listeners_lock:
                self._listeners.discard(listener)

        return stop

    @property
    def oldest(self) -> int:
        """Number of the oldest event that the ring promises to hold."""
        return max(self._evicted_to, self.head - self.capacity)

    @property
    def oldest_ns(self) -> int | None:
        """Time of the oldest event that the ring holds, None when it holds none."""
        oldest = self.oldest
        return int(self.block(oldest, oldest + 1)["time_ns"][0]) if len(self) else None

    @property
    def valid_from(self) -> int:
        """Smallest number that is held whole; rows copied below it are torn."""
        return max(self._evicted_to, self._reserved - self.slots)

    def __len__(self) -> int:
        return self.head - self.oldest

    def block(self, start: int, stop: int) -> Block:
        """The events from `start` on, up to `stop` or the seam of the ring, whatever is first."""
        slot = start % self.slots
        return Block(self._columns, self._said, slot, min(stop - start, self.slots - slot), start)

    def blocks_backwards(self, start: int, stop: int, size: int) -> Iterator[Block]:
        """Blocks of at most `size` events from the newest (before `stop`) to the oldest."""
        while stop > start:
            first = max(start, stop - size)
            slot = first % self.slots
            last_slot = (stop - 1) % self.slots
            if last_slot < slot:
                first = stop - last_slot - 1
            yield self.block(first, stop)
            stop = first

    def attached(self, number: int) -> Attached | None:
        """What hangs beside the columns of an event, None when it is gone."""
        return self._attached.get(number)

    def rate(self, now_ns: int, window_ns: int = 60_000_000_000) -> float:
        """Flows per second during the window, or since the oldest flow when the ring is shorter."""
        head, start = self.head, self.oldest
        counted = 0
        reached = now_ns
        for block in self.blocks_backwards(start, head, self.slots):
            times = block["time_ns"]
            cut = int(np.searchsorted(times, now_ns - window_ns))
            counted += int((block["kind"][cut:] <= KIND_FLOW + 1).sum())
            if cut < len(times):
                reached = int(times[cut])
            if cut:
                break
        else:
            # Everything the ring holds is younger than the window.
            if head > self.capacity and counted:
                return counted / max((now_ns - reached) / 1e9, 1e-9)
        return counted / (window_ns / 1e9)
