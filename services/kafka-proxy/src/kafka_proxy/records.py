"""What is reported of a connection's requests and responses, as `cilium.proxy.v1.Record`."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

from cilium.proxy.v1 import proxy_pb2
from cilium_core.proxying.transparent import packed
from flow import flow_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_core.proxying.reporting import Reporter

    from kafka_proxy.requests import Header

TOPICS_LIMIT: Final = 16
"""Topics of one request that are reported, each with a record of its own."""


class ConnectionRecords:
    """Reports what happens on one connection."""

    def __init__(
        self,
        reporter: Reporter,
        *,
        ingress: bool,
        proxy_port: int,
        client: tuple[str, int],
        server: tuple[str, int],
    ) -> None:
        self._reporter = reporter
        self._common = proxy_pb2.Record(
            ingress=ingress,
            proxy_port=proxy_port,
            protocol=socket.IPPROTO_TCP,
            client=packed(client[0]),
            client_port=client[1],
            server=packed(server[0]),
            server_port=server[1],
        )

    def request(
        self,
        header: Header | None,
        topics: Iterable[str],
        verdict: flow_pb2.Verdict,
        error_code: int = 0,
    ) -> None:
        """Report a request; `header` is None for bytes that are no request."""
        self._add(flow_pb2.REQUEST, header, topics, verdict, error_code, 0)

    def response(
        self, header: Header, topics: Iterable[str], error_code: int, latency_ns: int
    ) -> None:
        """Report the response to a request."""
        self._add(flow_pb2.RESPONSE, header, topics, flow_pb2.FORWARDED, error_code, latency_ns)

    def _add(
        self,
        kind: flow_pb2.L7FlowType,
        header: Header | None,
        topics: Iterable[str],
        verdict: flow_pb2.Verdict,
        error_code: int,
        latency_ns: int,
    ) -> None:
        record = proxy_pb2.Record()
        record.CopyFrom(self._common)
        record.time_ns = time.time_ns()
        record.verdict = verdict
        record.l7.type = kind
        record.l7.latency_ns = latency_ns
        kafka = record.l7.kafka
        kafka.error_code = error_code
        if header is not None:
            kafka.api_key = header.name
            kafka.api_version = header.version
            kafka.correlation_id = header.correlation_id
        for topic in list(topics)[:TOPICS_LIMIT] or [""]:
            kafka.topic = topic
            self._reporter.add_message(record)
