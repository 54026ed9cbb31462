"""Structured logs: a constant phrase as event, data in keys, service and node on every line.

`setup_logging` is called once by each `__main__`; loggers made before it take effect then too.
Records of the standard `logging` module (grpc, asyncio) come out in the same form.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

# structlog.dev imports rich only to colour tracebacks, at 0.2 s of CPU per process: hide it.
_hide_rich = "rich" not in sys.modules
if _hide_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    if _hide_rich:
        del sys.modules["rich"]

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

    from cilium_core.settings import TelemetrySettings

    Logger = FilteringBoundLogger
else:
    Logger = Any

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def get_logger(**bound: Any) -> Logger:
    """Make a logger; `bound` keys appear on each of its lines. Cheap, for module level."""
    logger: Logger = structlog.get_logger(**bound)
    return logger


def setup_logging(
    settings: TelemetrySettings, *, service: str, node: str = "", stream: TextIO | None = None
) -> None:
    """Send logs to `stream` (default stderr) in the form that `settings` ask for."""
    out = stream or sys.stderr
    level = _LEVELS[settings.log_level]
    console = settings.log_format == "console" or (settings.log_format == "auto" and out.isatty())
    common = {"service": service, **({"node": node} if node else {})}
    head: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _bind(common),
    ]
    tail: list[Processor]
    if console:
        tail = [structlog.dev.ConsoleRenderer(colors=out.isatty(), event_key="event")]
    else:
        tail = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=json.dumps, default=str),
        ]
    structlog.configure(
        processors=head + tail,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_ToStructlog()]
    root.setLevel(max(level, logging.WARNING))
    logging.captureWarnings(capture=True)


def _bind(common: dict[str, str]) -> Processor:
    def bind(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        for key, value in common.items():
            event.setdefault(key, value)
        return event

    return bind


class _ToStructlog(logging.Handler):
    """Hands records of the standard library's logging over."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
        )
