"""Tells the agent which addresses names have, before clients learn of them.

An answer with addresses waits until the agent says that the data plane knows them, and no longer
than the maximum delay. What the agent knows already need not wait: it says for how long it will
know, and a repetition with a later expiry is told behind the answer's back. While the agent is away
answers pass at once, and what they said is told when it is back. An agent that is new to the proxy
is told everything that has not expired, whatever it may remember itself.

Used from one event loop. At most `MAX_ENTRIES` observations are kept; the oldest go first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium.proxy.v1 import proxy_pb2
from cilium_core.proxying.transparent import packed
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    Call = Callable[[proxy_pb2.ReportNamesRequest], Awaitable[Sequence[float]]]
    """Tells the agent; returns for how many seconds it will know each. Raises `OSError`."""

log = get_logger()

MAX_ENTRIES: Final = 65_536
MAX_CALLS: Final = 2
"""Calls at a time; what comes meanwhile goes together in the next one."""

BATCH: Final = 500
FLUSH_S: Final = 0.5
"""How often what nobody waits for is told."""

MIN_KEPT_S: Final = 60.0
"""For how long an observation is kept for an agent that comes back, however short its life."""

LATER_S: Final = 1.0
"""An expiry that is later by less than this, or by less than a quarter, is not worth telling."""


class Key(NamedTuple):
    """What was observed, but for the time."""

    client: str
    name: str
    addresses: tuple[bytes, ...]


@dataclass(slots=True)
class _Entry:
    """An observation; times are of the monotonic clock, but `time_ns`."""

    key: Key
    time_ns: int
    ttl_s: int
    expires_s: float
    known_until_s: float = 0.0
    told_until_s: float = 0.0
    waiting: list[Callable[[], None]] = field(default_factory=list)
    waiting_since_s: float = 0.0

    def release(self) -> None:
        """Let go of the answers that wait."""
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done()


class Announcer:
    """What clients of this node were or are about to be told."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._call: Call | None = None
        self._entries: dict[Key, _Entry] = {}
        self._due: dict[Key, _Entry] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[float, _Entry]] = deque()
        self._watching = False
        self._flushing = False
        self._failed = False
        self.max_delay_s = 0.1
        self.present = False
        """Whether an agent is there to be told."""
        self.late = 0
        """Answers that left before the agent had answered."""
        self.forgotten = 0
        """Observations that were given up for want of room."""

    def connect(self, call: Call) -> None:
        """Tell the agent by `call` from now on."""
        self._call = call

    def joined(self) -> None:
        """An agent is there; it may know nothing."""
        self.present = True
        now = self._loop.time()
        for key in [key for key, e in self._entries.items() if e.expires_s <= now]:
            if not self._entries[key].waiting:
                del self._entries[key]
        for entry in self._entries.values():
            entry.known_until_s = entry.told_until_s = 0.0
        self._due.update(self._entries)
        self._flush()

    def left(self) -> None:
        """The agent is away; nobody waits for it."""
        self.present = False
        for entry in self._entries.values():
            entry.known_until_s = 0.0
            entry.release()

    def known(self, key: Key, ttl_s: int) -> bool:
        """Whether an answer may leave at once. Its expiry is told later if that matters."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        now = self._loop.time()
        if now >= entry.known_until_s:
            return False
        expires = now + ttl_s
        if expires > entry.told_until_s + max(LATER_S, ttl_s / 4):
            entry.time_ns, entry.ttl_s = time.time_ns(), ttl_s
            entry.expires_s = now + max(ttl_s, MIN_KEPT_S)
            entry.told_until_s = expires
            self._due[key] = entry
        return True

    def announce(self, key: Key, ttl_s: int, done: Callable[[], None]) -> None:
        """Tell the agent, and call `done` when the answer may leave: perhaps at once."""
        entry = self._entries.pop(key, None) or _Entry(key, 0, 0, 0.0)
        entry.time_ns, entry.ttl_s = time.time_ns(), ttl_s
        now = self._loop.time()
        entry.expires_s = now + max(ttl_s, MIN_KEPT_S)
        self._entries[key] = entry
        self._due[key] = entry
        if len(self._entries) > MAX_ENTRIES:
            self._forget_oldest()
        if not self.present or self.max_delay_s <= 0:
            done()
            return
        if not entry.waiting:
            entry.waiting_since_s = now
            self._waiting.append((now, entry))
            if not self._watching:
                self._watching = True
                self._loop.call_at(now + self.max_delay_s, self._give_up)
        entry.waiting.append(done)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    async def run(self) -> None:
        """Tell what nobody waits for, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            self._flush()

    @property
    def size(self) -> int:
        """Observations that are kept."""
        return len(self._entries)

    def _flush(self) -> None:
        self._flushing = False
        while self.present and self._due and len(self._calls) < MAX_CALLS:
            keys = [key for key, _ in zip(self._due, range(BATCH), strict=False)]
            batch = [self._due.pop(key) for key in keys]
            task = self._loop.create_task(self._tell(batch))
            self._calls.add(task)
            task.add_done_callback(self._told)

    def _told(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not self._failed:
            self._flush()

    async def _tell(self, batch: list[_Entry]) -> None:
        if self._call is None:
            return
        request = proxy_pb2.ReportNamesRequest(observations=[_observation(e) for e in batch])
        asked = self._loop.time()
        told = [asked + entry.ttl_s for entry in batch]
        try:
            lifetimes = await self._call(request)
        except OSError as error:
            log.debug("names not told", error=str(error))
            self._failed = True
            self._due = {entry.key: entry for entry in batch if self._kept(entry)} | self._due
        else:
            self._failed = False
            for entry, lifetime_s, until_s in zip(batch, lifetimes, told, strict=False):
                entry.known_until_s = asked + lifetime_s
                entry.told_until_s = max(entry.told_until_s, until_s)
        finally:
            for entry in batch:
                entry.release()

    def _kept(self, entry: _Entry) -> bool:
        return self._entries.get(entry.key) is entry

    def _give_up(self) -> None:
        """Let go of the answers that waited long enough, in the order in which they began."""
        self._watching = False
        now = self._loop.time()
        while self._waiting:
            since_s, entry = self._waiting[0]
            # An entry that was released and waits anew stands further behind, too.
            if entry.waiting and entry.waiting_since_s == since_s:
                if since_s + self.max_delay_s > now:
                    self._watching = True
                    self._loop.call_at(since_s + self.max_delay_s, self._give_up)
                    return
                self.late += len(entry.waiting)
                entry.release()
            self._waiting.popleft()

    def _forget_oldest(self) -> None:
        key, entry = next(iter(self._entries.items()))
        del self._entries[key]
        self._due.pop(key, None)
        self.forgotten += 1
        entry.release()


def _observation(entry: _Entry) -> proxy_pb2.NameObservation:
    return proxy_pb2.NameObservation(
        time_ns=entry.time_ns,
        client=packed(entry.key.client),
        name=entry.key.name,
        addresses=entry.key.addresses,
        ttl_s=entry.ttl_s,
    )
