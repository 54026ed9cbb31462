"""Counted flows as text, and what is missing from the count."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from hubble_cli import tables, times
from hubble_cli.terminals import Painter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cilium.flows.v1 import flows_pb2

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def show(
    answer: flows_pb2.AggregateFlowsResponse,
    by: Sequence[str],
    output: str,
    *,
    seconds: float = 0.0,
    budget: bool = True,
) -> str:
    """A table or JSON; with `seconds`, the table has flows per second."""
    if output == "json":
        return json.dumps(as_document(answer, by)) + "\n"
    heads = [word.upper().replace("-", " ") for word in by]
    heads += ["FLOWS", *(["FLOWS/S"] if seconds else []), "PACKETS", "BYTES", "LAST SEEN"]
    escape = Painter(enabled=False).escape
    lines = ["\t".join(heads)]
    for group in answer.groups:
        cells = [escape(value) or "-" for value in group.values]
        cells += [f"{group.flows:,}", *([f"{group.flows / seconds:,.1f}"] if seconds else [])]
        cells += [f"{group.packets:,}", _size(group.bytes), _clock(group.last_ns)]
        lines.append("\t".join(cells))
    text = tables.align("\n".join(lines) + "\n")
    if seconds and not answer.groups:
        text = f"no such flow in the last {seconds:g} s\n"
    if answer.other_groups:
        text += f"and {answer.other_flows:,} flows in {answer.other_groups:,} further groups\n"
    return text + ("".join(f"{line}\n" for line in unseen(answer)) if budget else "")


def unseen(answer: flows_pb2.AggregateFlowsResponse) -> Iterator[str]:
    """What the count does not cover, a line for each node and place; nothing if it is whole."""
    for budget in answer.budgets:
        name = budget.node_name or "the server"
        places = (
            (budget.lost_in_kernel, "in the kernel, where events came faster than they were read"),
            (budget.lost_in_queue, "in the queue of what proxies saw"),
            (budget.lost_in_ring, "in the ring, overwritten while they were counted"),
            (budget.lost_in_history, "in the history, not written or not readable"),
        )
        for lost, place in places:
            if lost:
                yield f"not seen: {name} lost {lost:,} events {place}"
        if budget.covered_from_ns:
            yield f"not seen: {name} has nothing older than {_clock(budget.covered_from_ns)}"
    for name in answer.missing_nodes:
        yield f"not seen: {name} did not answer"


def show_json(
    answers: Mapping[str, tuple[Sequence[str], flows_pb2.AggregateFlowsResponse]],
) -> str:
    """Several answers as one JSON document, by title."""
    made = {title: as_document(answer, by) for title, (by, answer) in answers.items()}
    return json.dumps(made) + "\n"


def as_document(answer: flows_pb2.AggregateFlowsResponse, by: Sequence[str]) -> dict[str, Any]:
    """The answer as plain values."""
    groups = [
        {
            **dict(zip(by, group.values, strict=True)),
            "flows": group.flows,
            "packets": group.packets,
            "bytes": group.bytes,
            "first": _full(group.first_ns),
            "last": _full(group.last_ns),
        }
        for group in answer.groups
    ]
    budgets = [
        {
            "node": budget.node_name,
            "covered_from": _full(budget.covered_from_ns) if budget.covered_from_ns else None,
            "lost_in_kernel": budget.lost_in_kernel,
            "lost_in_queue": budget.lost_in_queue,
            "lost_in_ring": budget.lost_in_ring,
            "lost_in_history": budget.lost_in_history,
        }
        for budget in answer.budgets
    ]
    return {
        "groups": groups,
        "other_groups": answer.other_groups,
        "other_flows": answer.other_flows,
        "budgets": budgets,
        "missing_nodes": list(answer.missing_nodes),
    }


def _timestamp(time_ns: int) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(time_ns)
    return made


def _clock(time_ns: int) -> str:
    return times.formatter("StampMilli")(_timestamp(time_ns), True)


def _full(time_ns: int) -> str:
    return times.rfc3339(_timestamp(time_ns))


def _size(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} B"
