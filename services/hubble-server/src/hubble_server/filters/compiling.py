"""From the filters of a request to masks: whitelist entries OR-ed, blacklist entries taken out.

Fields about the two ends of a flow, services and devices depend on interned rows alone: they are
put to `cilium_core.flow_filters` once for each row, as a flow that has nothing but that row.
Fields about the observing node are put to it once. What only the message of a record says, such as
the path of an HTTP request, is put to it for the records that pass all the rest. CEL
expressions may ask for anything: they are put to the messages of all flows that pass the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from cilium_core import flow_filters
from flow import flow_pb2

from hubble_server.encoding import pieces
from hubble_server.encoding.encoder import Encoder
from hubble_server.facts import NodeFacts
from hubble_server.filters.columns import Columns, Mask, RowTest
from hubble_server.filters.fields import (
    FIELDS,
    RECORD_FIELDS,
    Test,
    constant,
    is_record,
    is_record_of,
)
from hubble_server.filters.searching import narrow, text_tests
from hubble_server.flows.columns import Batch
from hubble_server.metadata.directory import Directory

if TYPE_CHECKING:
    from hubble_server.metadata.names import NamesRow
    from hubble_server.metadata.rows import EndpointRow, InterfaceRow, Interned, ServiceRow

_END_FIELDS = ("pod", "label", "identity", "workload", "cluster_name")
_SLOW_WORK = 500
"""Work of filters, as `flow_filters.work_of` tells it, from which on they are slow."""

_NODE_FIELDS = ("node_name", "node_labels")


@dataclass(frozen=True, slots=True)
class FilterContext:
    """What filters look things up in."""

    directory: Directory
    node: NodeFacts


@dataclass(frozen=True, slots=True)
class Filters:
    """The compiled filters of one request."""

    whitelist: tuple[tuple[Test, ...], ...]
    blacklist: tuple[tuple[Test, ...], ...]
    matches: Callable[[flow_pb2.Flow], bool] | None = None
    """Whether a record passes that passed by its columns; None when these say all."""
    messages: Callable[[Batch], list[flow_pb2.Flow]] | None = None
    """Makes messages of flows that are no records, where `matches` is to be asked of them too."""
    slow: bool = False
    """Whether to look at many flows takes so long that others must get their turn meanwhile."""

    @property
    def pass_all(self) -> bool:
        """Whether there is nothing to filter by."""
        return not self.whitelist and not self.blacklist

    def mask(self, columns: Columns) -> Mask:
        """Which flows of a stretch of columns pass; of records, which may."""
        if self.whitelist:
            found = columns.none()
            for entry in self.whitelist:
                found |= _entry_mask(entry, columns)
        else:
            found = columns.all()
        for entry in self.blacklist:
            found &= ~_entry_mask(entry, columns)
        return found


def _entry_mask(tests: Sequence[Test], columns: Columns) -> Mask:
    """Mask of one entry, all of whose tests must hold."""
    found = columns.all()
    for test in tests:
        found &= test(columns)
        if not found.any():
            break
    return found


def are_much_work(
    whitelist: Sequence[flow_pb2.FlowFilter], blacklist: Sequence[flow_pb2.FlowFilter]
) -> bool:
    """Whether to compile filters, or look at many flows, keeps others waiting.

    Raises cilium_core.flow_filters.FilterLimitError where they are too much work.
    """
    return flow_filters.work_of(whitelist, blacklist) > _SLOW_WORK


def compile_filters(
    context: FilterContext,
    whitelist: Sequence[flow_pb2.FlowFilter],
    blacklist: Sequence[flow_pb2.FlowFilter],
) -> Filters:
    """Compile the filters of a request.

    Raises cilium_core.flow_filters.FilterError with a text for the client.
    """
    matches = flow_filters.compile_filters(whitelist, blacklist)
    entries = (*whitelist, *blacklist)
    asks_all = any(entry.experimental.cel_expression for entry in entries)
    asked = asks_all or any(_asks_records(entry) for entry in entries)
    return Filters(
        # what the columns do not decide lets flows through, and keeps none out
        tuple(_compile(context, entry, undecided=True) for entry in whitelist),
        tuple(_compile(context, entry, undecided=False) for entry in blacklist),
        matches if asked else None,
        Encoder(context.node, context.directory).messages if asks_all else None,
        asks_all or are_much_work(whitelist, blacklist),
    )


def _asks_records(entry: flow_pb2.FlowFilter) -> bool:
    return any(getattr(entry, field) for field in RECORD_FIELDS)


def _compile(
    context: FilterContext, entry: flow_pb2.FlowFilter, *, undecided: bool
) -> tuple[Test, ...]:
    tests = [build(values) for field, build in FIELDS.items() if (values := getattr(entry, field))]
    if _asks_records(entry):
        tests.append(_records_test(entry, undecided))
    if entry.experimental.cel_expression:
        tests.append(constant(undecided))
    tests += _node_tests(context.node, entry)
    tests += _row_tests(context.directory, entry)
    return tuple(tests)


def _records_test(entry: flow_pb2.FlowFilter, undecided: bool) -> Test:
    """Test for the fields of records: what holds of other flows, and `undecided` for records."""
    kinds = [kind for field, kind in RECORD_FIELDS.items() if getattr(entry, field)]
    records = is_record_of(kinds) if undecided else Columns.none
    if undecided and (texts := text_tests(entry)):
        of_kinds = records

        def records(block: Columns) -> Mask:
            return narrow(texts, of_kinds(block), block)

    part = _part(entry, RECORD_FIELDS)
    if part is None or not flow_filters.compile_filter(part)(flow_pb2.Flow()):
        return records
    return lambda block: records(block) | ~is_record(block)


def _part(entry: flow_pb2.FlowFilter, fields: Iterable[str]) -> flow_pb2.FlowFilter | None:
    """Some fields of an entry as an entry of its own, None when none is set."""
    part = flow_pb2.FlowFilter()
    found = False
    for field in fields:
        values = getattr(entry, field)
        if values:
            getattr(part, field).MergeFrom(values)
            found = True
    return part if found else None


def _node_tests(node: NodeFacts, entry: flow_pb2.FlowFilter) -> list[Test]:
    part = _part(entry, _NODE_FIELDS)
    if part is None:
        return []
    flow = flow_pb2.Flow(node_name=node.qualified_name, node_labels=node.labels)
    return [constant(flow_filters.compile_filter(part)(flow))]


def _row_tests(directory: Directory, entry: flow_pb2.FlowFilter) -> list[Test]:
    tests: list[Test] = []
    for end in ("source", "destination"):
        part = _part(entry, [f"{end}_{field}" for field in _END_FIELDS])
        if part is not None:
            tests.append(_row_test(part, f"{end}_row", directory.rows, _flow_of_end(end)))
        part = _part(entry, [f"{end}_service"])
        if part is not None:
            column = f"{end}_service"
            tests.append(_row_test(part, column, directory.services, _flow_of_service(column)))
        part = _part(entry, [f"{end}_fqdn"])
        if part is not None:
            tests.append(_names_test(part, f"{end}_names", directory.names.rows))
    part = _part(entry, ["interface"])
    if part is not None:
        tests.append(_row_test(part, "interface", directory.interfaces, _flow_of_interface))
    return tests


def _row_test(
    part: flow_pb2.FlowFilter, column: str, rows: Any, flow_of: Callable[[Any], flow_pb2.Flow]
) -> Test:
    holds = flow_filters.compile_filter(part)
    rows_pass = RowTest(rows, lambda row: holds(flow_of(row)))
    return lambda block: rows_pass(block[column])


def _names_test(part: flow_pb2.FlowFilter, column: str, rows: Interned[NamesRow]) -> Test:
    holds = flow_filters.compile_filter(part)
    first = rows.base

    def passes(row: NamesRow) -> bool:
        flow = flow_pb2.Flow()
        getattr(flow, column).extend(row.names)
        return holds(flow)

    rows_pass = RowTest(rows, passes)

    def test(block: Columns) -> Mask:
        named = block[column] != 0
        found = rows_pass(np.where(named, block[column], first).astype(np.uint32))
        found &= named
        return found

    return test


def _flow_of_end(end: str) -> Callable[[EndpointRow], flow_pb2.Flow]:
    def make(row: EndpointRow) -> flow_pb2.Flow:
        flow = flow_pb2.Flow()
        getattr(flow, end).ParseFromString(pieces.endpoint(row))
        return flow

    return make


def _flow_of_service(field: str) -> Callable[[ServiceRow], flow_pb2.Flow]:
    return lambda row: flow_pb2.Flow.FromString(pieces.service(field, row))


def _flow_of_interface(row: InterfaceRow) -> flow_pb2.Flow:
    return flow_pb2.Flow.FromString(pieces.interface(row))
