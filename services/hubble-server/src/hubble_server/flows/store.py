"""The flow ring: the newest 2^n - 1 flows and other events of this node, as columns.

One writer, the ingest thread; any number of readers on the event loop; no locks. An event's number
is its position in the sequence of all events ever written. The writer announces the numbers whose
slots it is about to overwrite (`reserved`) before it writes and publishes them (`head`) after, so a
reader that copies first and asks `valid_from` afterwards knows which of its rows may be torn.
Spare slots beyond the capacity make that rare.

Flows are rows of columns. Events of other kinds are few and hang beside the columns as messages.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from hubble_server.errors import CapacityError
from hubble_server.flows.columns import KIND_FLOW, SCHEMA, Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message
    from numpy.typing import NDArray

DEFAULT_CAPACITY = 4095
LARGEST_CAPACITY = 65_535
SPARE_SLOTS = 4096
"""Most flows that one append may bring."""


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

    __slots__ = ("_columns", "_from", "_to", "first")

    def __init__(self, columns: dict[str, NDArray[Any]], slot: int, count: int, first: int) -> None:
        self._columns = columns
        self._from = slot
        self._to = slot + count
        self.first = first

    def __len__(self) -> int:
        return self._to - self._from

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name][self._from : self._to]

    def take(self, rows: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Copy some rows of all columns."""
        slots = rows + self._from
        return {name: column[slots] for name, column in self._columns.items()}


class FlowStore:
    """Ring of `capacity` events. Raises CapacityError for an illegal capacity."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self.capacity = check_capacity(capacity)
        self.slots = capacity + 1 + SPARE_SLOTS
        self._columns = {name: np.zeros(self.slots, dtype=kind) for name, kind in SCHEMA.items()}
        self._objects: dict[int, Message] = {}
        self._object_numbers: deque[int] = deque()
        self._listeners: set[Callable[[], None]] = set()
        self._listeners_lock = threading.Lock()
        self.head = 0
        self._reserved = 0

    # ---- writing: the ingest thread ----

    def append(self, batch: Batch, count: int) -> None:
        """Write `count` flows, at most SPARE_SLOTS, and publish them."""
        first = self.head
        self._reserved = first + count
        start = first % self.slots
        fits = min(count, self.slots - start)
        for name, column in self._columns.items():
            values = batch[name]
            column[start : start + fits] = values[:fits]
            if fits < count:
                column[: count - fits] = values[fits:count]
        self._publish(first + count)

    def append_object(self, kind: int, time_ns: int, message: Message, **columns: int) -> None:
        """Write one event that is no flow of columns, or a flow that is a message."""
        number = self.head
        self._reserved = number + 1
        slot = number % self.slots
        for column in self._columns.values():
            column[slot] = np.zeros((), dtype=column.dtype)
        for name, value in (*columns.items(), ("kind", kind), ("time_ns", time_ns)):
            self._columns[name][slot] = value
        self._objects[number] = message
        self._object_numbers.append(number)
        self._publish(number + 1)

    def _publish(self, head: int) -> None:
        self.head = head
        horizon = head - self.slots
        while self._object_numbers and self._object_numbers[0] < horizon:
            self._objects.pop(self._object_numbers.popleft(), None)

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
        return max(0, self.head - self.capacity)

    @property
    def valid_from(self) -> int:
        """Smallest number whose slot no writer has touched; rows copied below it are torn."""
        return max(0, self._reserved - self.slots)

    def __len__(self) -> int:
        return min(self.head, self.capacity)

    def block(self, start: int, stop: int) -> Block:
        """The events from `start` on, up to `stop` or the seam of the ring, whatever is first."""
        slot = start % self.slots
        return Block(self._columns, slot, min(stop - start, self.slots - slot), start)

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

    def object(self, number: int) -> Message | None:
        """Message of an event that is not made of columns, None when it is gone."""
        return self._objects.get(number)

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
