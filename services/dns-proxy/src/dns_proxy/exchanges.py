"""What happens to a query, whatever carries it: judge, forward, believe, announce, answer, report.

The transports (`datagrams`, `streams`) own sockets and transaction ids. They hand queries in with
`admit` and responses that match one in flight with `answered`, and are handed what goes back to the
client. A client gets no answer when the server gives none in time, as without a proxy.

Used from one event loop; nothing here waits.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from cilium_core.proxying.redirects import DnsOptions

from dns_proxy import records
from dns_proxy.announcing import Key
from dns_proxy.answers import Answer, parse_answer
from dns_proxy.caching import TwoGenerations
from dns_proxy.messages import (
    RCODE_FORMERR,
    RCODE_REFUSED,
    RCODE_SERVFAIL,
    Fault,
    MessageError,
    Query,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.proxying.reporting import Reporter

    from dns_proxy.announcing import Announcer
    from dns_proxy.gates import Gate

TIMEOUT_S: Final = 10.0
"""How long a server may take."""

MAX_IN_FLIGHT: Final = 100_000
"""Whatever the options say, so that memory has a limit."""

KEPT_BYTES: Final = 1024
"""Longer answers are read each time."""


class Channel(Protocol):
    """Where a query came from, and how to answer it."""

    client_host: str
    record: bytes
    """The encoded part of records that names both ends."""

    def reply(self, exchange: Exchange, data: bytes) -> bool:
        """Send `data`, a message without the two bytes of its id; False when that fails."""


class Exchange:
    """A query in flight."""

    __slots__ = ("channel", "client", "gate", "head", "query", "started_ns", "started_s")

    def __init__(
        self, channel: Channel, client: tuple[str, int], gate: Gate, query: Query, data: bytes
    ) -> None:
        self.channel = channel
        self.client = client
        self.gate = gate
        self.query = query
        self.head = data[:4]
        """Id and flags as the client sent them."""
        self.started_ns = time.time_ns()
        self.started_s = time.monotonic()


class Waiting:
    """A query that waits for room."""

    __slots__ = ("exchange", "forward", "until_s")

    def __init__(self, exchange: Exchange, forward: Callable[[], None], until_s: float) -> None:
        self.exchange = exchange
        self.forward = forward
        self.until_s = until_s


class Service:
    """Judges and answers."""

    def __init__(self, announcer: Announcer, reporter: Reporter) -> None:
        self.options = DnsOptions()
        self.in_flight = 0
        self.queries = 0
        self.refused: Counter[str] = Counter()
        """Queries that were refused: `policy`, or why they were not understood."""
        self.disbelieved: Counter[str] = Counter()
        """Responses that were thrown away, by reason."""
        self.failures: Counter[str] = Counter()
        """Queries that were allowed and got no answer of a server, by reason."""
        self._announcer = announcer
        self._reporter = reporter
        self._answers: TwoGenerations[bytes, tuple[Answer, bytes]] = TwoGenerations()
        self._waiting: deque[Waiting] = deque()

    def configure(self, options: DnsOptions) -> None:
        """Behave as told from now on."""
        self.options = options
        self._announcer.max_delay_s = options.response_max_delay_s

    def admit(
        self,
        gate: Gate,
        channel: Channel,
        client: tuple[str, int],
        data: bytes,
        forward: Callable[[Exchange, bytes], None],
    ) -> None:
        """Judge a message; one that passes is forwarded, at once or when there is room."""
        self.queries += 1
        judgement = gate.judge(data)
        now_ns = time.time_ns()
        self._reporter.add(
            records.complete_request(judgement.request_record, channel.record, client[1], now_ns)
        )
        query = judgement.query
        if not judgement.allowed or query is None:
            self._refuse(gate, channel, client, data, query, judgement.fault)
            return
        exchange = Exchange(channel, client, gate, query, data)
        limit = self.options.concurrency_limit
        if (limit and self.in_flight >= limit) or self.in_flight >= MAX_IN_FLIGHT:
            self._postpone(exchange, partial(forward, exchange, data))
            return
        self.in_flight += 1
        forward(exchange, data)

    def answered(self, exchange: Exchange, data: bytes) -> None:
        """A server's response to a query in flight, which thereby ends."""
        self.finish()
        body = data[2:]
        known = self._answers.get(body)
        query = exchange.query
        if known is None:
            try:
                answer = parse_answer(data, query)
            except MessageError as error:
                self.disbelieved[error.fault.value] += 1
                self.fail(exchange, "malformed answer")
                return
            known = (answer, records.response_dns(query, answer))
            if len(body) <= KEPT_BYTES:
                self._answers.put(body, known)
        answer = known[0]
        if answer.addresses:
            key = Key(exchange.channel.client_host, query.name, answer.addresses)
            if not self._announcer.known(key, answer.ttl_s):
                deliver = partial(self._deliver, exchange, body, known[1])
                self._announcer.announce(key, answer.ttl_s, deliver)
                return
        self._deliver(exchange, body, known[1])

    def fail(self, exchange: Exchange, reason: str) -> None:
        """Tell the client that its query could not be served; the exchange has ended already."""
        self.failures[reason] += 1
        self._report_failure(exchange, RCODE_SERVFAIL)
        answer = refusal(exchange.head, exchange.query.question, RCODE_SERVFAIL)
        exchange.channel.reply(exchange, answer[2:])

    def time_out(self, exchange: Exchange) -> None:
        """A server did not answer in time, and so nor does the proxy."""
        self.finish()
        self.failures["timeout"] += 1
        self._report_failure(exchange, 0)

    def finish(self) -> None:
        """A query is no longer in flight."""
        self.in_flight -= 1
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.until_s > time.monotonic():
                self.in_flight += 1
                waiting.forward()
                return
            self.fail(waiting.exchange, "concurrency limit")

    def abandon(self, number: int) -> None:
        """Queries end whose answers nobody would get."""
        if number:
            self.failures["abandoned"] += number
        for _ in range(number):
            self.finish()

    def sweep(self) -> None:
        """Give up queries that waited for room too long."""
        now = time.monotonic()
        while self._waiting and self._waiting[0].until_s <= now:
            self.fail(self._waiting.popleft().exchange, "concurrency limit")

    def _postpone(self, exchange: Exchange, forward: Callable[[], None]) -> None:
        grace_s = self.options.concurrency_grace_s
        if grace_s <= 0 or len(self._waiting) >= MAX_IN_FLIGHT:
            self.fail(exchange, "concurrency limit")
            return
        self._waiting.append(Waiting(exchange, forward, exchange.started_s + grace_s))

    def _refuse(
        self,
        gate: Gate,
        channel: Channel,
        client: tuple[str, int],
        data: bytes,
        query: Query | None,
        fault: Fault | None,
    ) -> None:
        if query is not None:
            self.refused["policy"] += 1
            rcode, question = self.options.reject_rcode, query.question
        elif fault is not None:
            self.refused[fault.value] += 1
            if not MessageError(fault).answerable:
                return
            rcode = RCODE_REFUSED if fault in (Fault.OPCODE, Fault.COUNTS) else RCODE_FORMERR
            question = b""
        exchange = Exchange(channel, client, gate, query or _NO_QUERY, data)
        channel.reply(exchange, refusal(data, question, rcode)[2:])

    def _deliver(self, exchange: Exchange, body: bytes, dns: bytes) -> None:
        channel, gate = exchange.channel, exchange.gate
        if not channel.reply(exchange, body):
            self.failures["client"] += 1
        now_ns = time.time_ns()
        self._reporter.add(
            records.complete_response(
                gate.response_record,
                channel.record,
                exchange.client[1],
                now_ns,
                now_ns - exchange.started_ns,
                dns,
            )
        )

    def _report_failure(self, exchange: Exchange, rcode: int) -> None:
        gate = exchange.gate
        constant = records.failure(gate.port, gate.redirect, exchange.query, rcode)
        self._reporter.add(
            records.complete_request(
                constant, exchange.channel.record, exchange.client[1], time.time_ns()
            )
        )


_NO_QUERY: Final = Query("", 0, 0, b"")
