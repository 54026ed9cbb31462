"""Brings responses and their requests together: latency and trace of an HTTP exchange.

Proxies that know both fill them in themselves. Others say which response belongs to which request
by the header X-Request-Id; the newest requests are remembered. Used by the ingest thread.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from flow import flow_pb2

if TYPE_CHECKING:
    from cilium.metadata.v1 import metadata_pb2

REMEMBERED: Final = 10_000
"""Requests that are remembered."""

_REQUEST_ID: Final = "x-request-id"
_TRACE_PARENT: Final = "traceparent"
_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_NO_TRACE: Final = "0" * 32
_NO_VERSION: Final = "ff"


class _Request(NamedTuple):
    time_ns: int
    trace_id: str


class Requests:
    """The requests that were seen last, by their ids."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._known: OrderedDict[str, _Request] = OrderedDict()

    def complete(self, record: metadata_pb2.L7Record) -> None:
        """Fill latency and trace of a record, as far as they are known and it lacks them."""
        flow = record.flow
        if flow.l7.WhichOneof("record") != "http":
            return
        headers = {header.key.lower(): header.value for header in flow.l7.http.headers}
        request_id = headers.get(_REQUEST_ID, "")
        trace_id = flow.trace_context.parent.trace_id or trace_of(headers.get(_TRACE_PARENT, ""))
        if flow.l7.type == flow_pb2.REQUEST:
            if request_id:
                self._remember(request_id, _Request(record.time.ToNanoseconds(), trace_id))
        elif (request := self._known.get(request_id)) is not None:
            trace_id = trace_id or request.trace_id
            if not flow.l7.latency_ns:
                flow.l7.latency_ns = max(0, record.time.ToNanoseconds() - request.time_ns)
        if trace_id:
            flow.trace_context.parent.trace_id = trace_id

    def _remember(self, request_id: str, request: _Request) -> None:
        self._known[request_id] = request
        self._known.move_to_end(request_id)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)


def trace_of(header: str) -> str:
    """Trace id of a W3C `traceparent` header; nothing when it is not one."""
    match = _PARENT.fullmatch(header.strip())
    if match is None or match[1] == _NO_TRACE or header.strip().startswith(_NO_VERSION):
        return ""
    return match[1]
