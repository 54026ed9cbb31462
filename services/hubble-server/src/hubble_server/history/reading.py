"""Reads a history: parts in order, filters on columns, encoded responses out."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from flow import flow_pb2
from observer import observer_pb2

from hubble_server.flows.columns import KIND_FLOW, KIND_LOST, KIND_RECORD
from hubble_server.history.ahead import in_order
from hubble_server.history.walking import Chosen, Place, Stretch, Unreadable, Walker
from hubble_server.servicers.streaming import Chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

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

    def __iter__(self) -> Generator[Chunk, None, None]:
        jobs = [partial(self._walker.part, part, _chunks) for part in self._parts]
        with closing(in_order(jobs)) as found:
            for each in found:
                if isinstance(each, Unreadable):
                    self._on_damage(each.reason)
                    yield _loss(each.part)
                    continue
                chunk = self._limit(*each) if self._limited else each[0]
                if chunk:
                    yield chunk
                if self.ended:
                    return

    def _limit(self, chunk: Chunk, are_flows: NDArray[np.bool_]) -> Chunk:
        """Cut what was found to what may still be handed out."""
        counts = np.cumsum(are_flows)
        if counts[-1] < self.remaining:
            self.remaining -= int(counts[-1])
            return chunk
        count = int(np.searchsorted(counts, self.remaining)) + 1
        self.remaining, self.ended = 0, True
        return Chunk(chunk.responses[:count], chunk.times_ns[:count])


def _chunks(stretch: Stretch) -> Iterator[tuple[Chunk, NDArray[np.bool_]]]:
    """Responses to what passes of a stretch, and which of them are flows."""
    found = np.flatnonzero(stretch.passing())
    kinds = stretch.rows["kind"]
    for at in range(0, len(found), _MOST):
        chosen = found[at : at + _MOST]
        if at:
            chunk = _encode(stretch, chosen, kinds)
        else:
            with stretch.tools.reading(stretch.rows, "answers"):
                chunk = _encode(stretch, chosen, kinds)
        yield chunk, kinds[chosen] != KIND_LOST


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
