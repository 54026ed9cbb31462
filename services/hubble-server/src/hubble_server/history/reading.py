"""Reads a history: parts in order, filters on columns, encoded responses out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from flow import flow_pb2
from observer import observer_pb2

from hubble_server.flows.columns import KIND_FLOW, KIND_LOST, KIND_RECORD
from hubble_server.history.walking import Chosen, Place, Stretch, Unreadable, Walker
from hubble_server.servicers.streaming import Chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from hubble_server.history.layout import Part
    from hubble_server.history.walking import Asked

_MOST: Final = 1024
"""Most responses encoded at once."""


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
        self._walker = Walker(asked, start or Place(), find)
        self._on_damage = on_damage
        self._limited = bool(asked.number)
        self.remaining = asked.number
        """Flows that may still be handed out, where there is a limit."""
        self.ended = False
        """Whether the limit is reached."""

    def __iter__(self) -> Iterator[Chunk]:
        for part in self._parts:
            for found in self._walker.part(part, self._stretch):
                if isinstance(found, Unreadable):
                    self._on_damage(found.reason)
                    yield _loss(found.part)
                else:
                    yield found
            if self.ended:
                return

    def _stretch(self, stretch: Stretch) -> Iterator[Chunk]:
        if self.ended:
            return
        found = np.flatnonzero(stretch.passing())
        kinds = stretch.rows["kind"]
        if self._limited:
            counts = np.cumsum(kinds[found] != KIND_LOST)
            if len(counts) and counts[-1] >= self.remaining:
                found = found[: int(np.searchsorted(counts, self.remaining)) + 1]
                self.remaining, self.ended = 0, True
            elif len(counts):
                self.remaining -= int(counts[-1])
        for at in range(0, len(found), _MOST):
            yield _encode(stretch, found[at : at + _MOST], kinds)


def place_of_last(
    parts: Sequence[Part],
    asked: Asked,
    number: int,
    *,
    find: Callable[[int], Part | None] = lambda _: None,
) -> tuple[Place, int]:
    """Where the last `number` flows that are asked for begin, and how many there are."""
    walker, place, counted = Walker(asked, Place(), find), Place(), 0
    for part in reversed(parts):
        for hits in walker.part(part, _hits, backwards=True):
            if isinstance(hits, Unreadable):
                continue  # told when the flows are read
            chosen = hits[max(0, len(hits) - (number - counted)) :]
            place = Place(part.number, int(chosen[0]))
            counted += len(chosen)
            if counted == number:
                return place, counted
    return place, counted


def _hits(stretch: Stretch) -> Iterator[NDArray[np.intp]]:
    """Numbers of the flows that pass, if there are any."""
    hits = np.flatnonzero(stretch.passing() & (stretch.rows["kind"] != KIND_LOST))
    if len(hits):
        yield stretch.first + hits


def _encode(stretch: Stretch, chosen: NDArray[np.intp], kinds: NDArray[np.uint8]) -> Chunk:
    rows, tools = stretch.rows, stretch.tools
    times: list[int] = rows["time_ns"][chosen].tolist()
    are_flows = kinds[chosen] == KIND_FLOW
    flows: Any = Chosen(rows, chosen[are_flows])
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
