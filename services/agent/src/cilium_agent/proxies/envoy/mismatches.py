"""Header matches with the action LOG: what differs is told, from Envoy's access log.

The request went on in any case. Requests that the log's rate leaves out are not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import re2
from cilium_core.policy.l7 import Mismatch
from cilium_core.telemetry import counter, get_logger
from flow import flow_pb2

from cilium_agent.proxies.envoy.matching import Comparison, Form
from cilium_agent.proxies.envoy.rules import SERVER_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cilium.proxy.v1 import proxy_pb2

    from cilium_agent.proxies.envoy.rules import Condition

log = get_logger()

MISMATCHES = counter(
    "cilium_proxy_header_mismatches_total", "Headers that differ and are only reported.", "header"
)


def with_log_action(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """The rules that say something shall be reported."""
    return tuple(
        condition
        for condition in conditions
        if any(mending.action is Mismatch.LOG for mending in condition.mendings)
    )


def report(conditions: Sequence[Condition], records: Iterable[proxy_pb2.Record]) -> None:
    """Report the headers of requests that differ from what rules that allow them expect."""
    for record in records:
        if record.l7.type != flow_pb2.REQUEST or record.verdict == flow_pb2.DROPPED:
            continue
        values = _values(record)
        for condition in conditions:
            if not all(accepts(one, values.get(name)) for name, one in condition.comparisons):
                continue
            for mending in condition.mendings:
                given = values.get(mending.header)
                if mending.action is Mismatch.LOG and not accepts(mending.comparison, given):
                    MISMATCHES.add(1, mending.header)
                    log.info(
                        "a header differs from what policy expects",
                        header=mending.header,
                        missing=given is None,
                        url=record.l7.http.url,
                    )


def accepts(comparison: Comparison, value: str | None) -> bool:
    """Whether a comparison holds; never for a header that is missing."""
    form, text = comparison
    if value is None or form is Form.ANY:
        return value is not None
    if form is Form.EXACT:
        return value == text
    if form is Form.PREFIX:
        return value.startswith(text)
    if form is Form.SUFFIX:
        return value.endswith(text)
    if form is Form.CONTAINS:
        return text in value
    return re2.fullmatch(text, value) is not None


def _values(record: proxy_pb2.Record) -> Mapping[str, str]:
    http = record.l7.http
    host, slash, path = http.url.partition("://")[2].partition("/")
    values = {header.key: header.value for header in http.headers}
    special = {":method": http.method, ":authority": host, ":path": slash + path}
    return {**values, **special, SERVER_NAME: host.partition(":")[0]}
