"""An OpenTelemetry collector: where it is, how to reach it, and a bounded queue on the way to it.

`Sender` keeps what is offered in a queue of fixed size and sends it in batches from a thread of its
own, so nobody ever waits for a collector. One that is away is tried again for as long as the queue
holds; what has no room, what the collector refuses, and what is left when the process ends is
counted as lost. Imported only where an endpoint is set: grpc and OpenTelemetry cost 0.2 s of CPU.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc

from cilium_core.errors import InvalidError
from cilium_core.telemetry.logs import get_logger
from cilium_core.telemetry.metrics import counter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

    from cilium_core.settings import TelemetrySettings

log = get_logger()

TIMEOUT_S: Final = 5.0
"""How long a collector may take over one batch."""
_BATCH: Final = 512
_WAIT_S: Final = 1.0
"""How long a batch is gathered, and the pause before one is tried again."""
_PASSING: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes after which the protocol allows to try again (OTLP specification, Failures)."""

SENT = counter("cilium_otlp_sent_total", "Items that a collector took.", "signal")
LOST = counter(
    "cilium_otlp_lost_total",
    "Items that no collector got: no room in the queue, refused, or left at the end.",
    "signal",
    "reason",
)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Collector:
    """A collector that takes OTLP over gRPC. `endpoint` is host:port, or a URL."""

    endpoint: str
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    headers: tuple[tuple[str, str], ...] = ()
    quiet: bool = False
    """Whether nobody wants to read in the log that it is away, as on a command line."""

    @classmethod
    def of(cls, settings: TelemetrySettings) -> Collector:
        """The collector that settings name. Raises InvalidError for the file of headers."""
        path = settings.otlp_headers_file
        return cls(
            settings.otlp_endpoint,
            settings.otlp_ca_file,
            settings.otlp_cert_file,
            settings.otlp_key_file,
            _read_headers(path) if path else (),
        )

    @property
    def target(self) -> str:
        """The endpoint as gRPC wants it."""
        return self.endpoint.rpartition("://")[2].rstrip("/")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS where a file or https:// asks for it, else None. Raises InvalidError."""
        if not (self.ca_file or self.cert_file or self.endpoint.startswith("https://")):
            return None
        try:
            return grpc.ssl_channel_credentials(
                self.ca_file.read_bytes() if self.ca_file else None,
                self.key_file.read_bytes() if self.key_file else None,
                self.cert_file.read_bytes() if self.cert_file else None,
            )
        except OSError as error:
            raise InvalidError(
                f"otlp-endpoint {self.endpoint}: {error.filename} cannot be read: {error.strerror}"
            ) from error


def _read_headers(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"otlp-headers-file {path}: cannot be read: {error}") from error
    found = []
    for number, line in enumerate(filter(str.strip, lines), 1):
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            # what is in the line may be a secret
            raise InvalidError(f"otlp-headers-file {path}: header {number} is no 'name: value'")
        found.append((name.strip().lower(), value.strip()))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Signal:
    """One kind of what collectors take: its RPC, and what its answers call refused items."""

    name: str
    path: str
    response: type[Any]
    rejected: str


class Sender(Generic[Item]):
    """Sends what is offered, in batches, from a thread of its own.

    `encode` makes the request of a batch, on that thread. Thread and connection begin with the
    first item: command lines may move to another network namespace before they have one, which
    gRPC's threads would not.
    """

    def __init__(
        self,
        collector: Collector,
        signal: Signal,
        encode: Callable[[Sequence[Item]], Message],
        *,
        limit: int,
    ) -> None:
        """Begin. `limit` is the most items that wait. Raises InvalidError for files of TLS."""
        self._collector = collector
        self._signal = signal
        self._encode = encode
        self._limit = limit
        self._wait_s = _WAIT_S
        self._queue: deque[Item] = deque()
        self._change = threading.Condition()
        self._ends_at: float | None = None
        self._failing = False
        self._credentials = collector.credentials()
        self._thread: threading.Thread | None = None

    def offer(self, items: Sequence[Item]) -> int:
        """Take what there is room for, the first of them; tells how many. Never waits."""
        with self._change:
            room = self._limit - len(self._queue) if self._ends_at is None else 0
            taken = items[: max(room, 0)]
            self._queue.extend(taken)
            if taken and self._thread is None:
                name = f"otlp-{self._signal.name}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
            if len(self._queue) >= _BATCH:
                self._change.notify()
        if lost := len(items) - len(taken):
            LOST.add(lost, self._signal.name, "queue full")
        return len(taken)

    def close(self, within_s: float = TIMEOUT_S) -> None:
        """Send what waits, for at most `within_s`, and end. What is left is counted as lost."""
        with self._change:
            if self._ends_at is not None:
                return
            self._ends_at = time.monotonic() + within_s
            self._change.notify()
        if self._thread is not None:
            self._thread.join(within_s + 1.0)

    def _run(self) -> None:
        target, credentials = self._collector.target, self._credentials
        channel = (
            grpc.secure_channel(target, credentials)
            if credentials is not None
            else grpc.insecure_channel(target)
        )
        with channel:
            export = channel.unary_unary(
                self._signal.path,
                request_serializer=_bytes_of,
                response_deserializer=self._signal.response.FromString,
            )
            while batch := self._next():
                self._deliver(batch, export)
        left = len(self._queue)
        self._queue.clear()
        if left:
            LOST.add(left, self._signal.name, "left at the end")

    def _next(self) -> list[Item]:
        """The next batch; an empty one when this is the end."""
        with self._change:
            while self._ends_at is None and len(self._queue) < _BATCH:
                # wakes early only for a full batch
                self._change.wait(self._wait_s)
                if self._queue:
                    break
            if self._is_over():
                return []
            return [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]

    def _patience_s(self) -> float:
        """How long a batch may take: less when the end is near."""
        ends_at = self._ends_at
        return TIMEOUT_S if ends_at is None else max(0.05, ends_at - time.monotonic())

    def _is_over(self) -> bool:
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    def _deliver(self, batch: list[Item], export: Callable[..., Any]) -> None:
        name = self._signal.name
        try:
            request = self._encode(batch)
        except Exception as error:
            log.error("batch for the collector cannot be made", signal=name, exc_info=error)
            LOST.add(len(batch), name, "refused")
            return
        while True:
            try:
                response = export(
                    request, timeout=self._patience_s(), metadata=self._collector.headers
                )
            except grpc.RpcError as error:
                code, details = _failure(error)
                self._note(code.name, details)
                if code not in _PASSING:
                    LOST.add(len(batch), name, "refused")
                    return
                if self._pause():
                    LOST.add(len(batch), name, "left at the end")
                    return
                continue
            partial = response.partial_success
            rejected = min(len(batch), int(getattr(partial, self._signal.rejected)))
            self._note("PARTIAL" if rejected else "", partial.error_message)
            if rejected:
                LOST.add(rejected, name, "refused")
            SENT.add(len(batch) - rejected, name)
            return

    def _pause(self) -> bool:
        """Wait before another try; tells whether there is no time left for one."""
        with self._change:
            until = time.monotonic() + self._wait_s
            while self._ends_at is None and (left := until - time.monotonic()) > 0:
                self._change.wait(left)
        if self._ends_at is not None:
            time.sleep(min(self._wait_s, 0.1))
        return self._is_over()

    def _note(self, code: str, details: str) -> None:
        if self._collector.quiet or bool(code) == self._failing:
            return
        self._failing = bool(code)
        where = {"signal": self._signal.name, "endpoint": self._collector.endpoint}
        if code:
            log.warning("collector does not take all", code=code, reason=details, **where)
        else:
            log.info("collector takes all again", **where)


def _bytes_of(message: Message) -> bytes:
    return message.SerializeToString()


def _failure(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    call: Any = error  # errors of calls are calls as well
    return call.code(), call.details() or ""
