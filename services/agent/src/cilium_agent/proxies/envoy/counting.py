"""Envoy's own counters → the agent's, since its log is limited and counters are not.

Read over the administration socket; an Envoy that does not answer just counts on. Numbers that went
down belong to a new process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

from cilium_agent.proxies.records import L7, LOST

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INTERVAL_S = 5.0
_LIMIT_S = 2.0
_KIND = "http"
_COMPLETED = "http.redirect.downstream_rq_completed"
_REFUSED = ("http.redirect.rq_direct_response", "http.redirect.no_route")
_GARBLED = "http.redirect.downstream_cx_protocol_error"
_UNLOGGED = "access_log.process_ratelimit.denied"
_NAMES = (_COMPLETED, *_REFUSED, _GARBLED, _UNLOGGED)
_FILTER = "|".join(f"^{name.replace('.', '[.]')}$" for name in _NAMES)


class RequestCounter:
    """Keeps `cilium_policy_l7_total` and the losses up to date."""

    def __init__(self, admin_socket: Path) -> None:
        self._socket = admin_socket
        self._last: dict[str, int] = {}

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(INTERVAL_S)

    async def read(self) -> None:
        """Read once; an Envoy that cannot be asked is left for the next time."""
        with contextlib.suppress(OSError, ValueError, EOFError, TimeoutError):
            async with asyncio.timeout(_LIMIT_S):
                self.note(await statistics(self._socket, _FILTER))

    def note(self, values: Mapping[str, int]) -> None:
        """Take over what grew since the last time."""
        grown = {name: value - self._base(name, value) for name, value in values.items()}
        self._last = dict(values)
        refused = sum(grown.get(name, 0) for name in _REFUSED)
        garbled = grown.get(_GARBLED, 0)
        received = grown.get(_COMPLETED, 0)
        numbers = {
            "received": received,
            "denied": refused,
            "parse_errors": garbled,
            "forwarded": received - refused,
        }
        for rule, number in numbers.items():
            if number > 0:
                L7.add(number, rule, _KIND)
        if lost := grown.get(_UNLOGGED, 0):
            LOST.add(2 * lost, _KIND)  # a request and a response each

    def _base(self, name: str, value: int) -> int:
        last = self._last.get(name, 0)
        return last if value >= last else 0


async def statistics(admin_socket: Path, pattern: str) -> dict[str, int]:
    """Envoy's counters and gauges whose names match an expression.

    Raises `OSError` or `EOFError` when Envoy does not answer, `ValueError` for an odd answer.
    """
    reader, writer = await asyncio.open_unix_connection(str(admin_socket))
    try:
        query = (
            pattern.replace("|", "%7C").replace("^", "%5E").replace("[", "%5B").replace("]", "%5D")
        )
        writer.write(
            f"GET /stats?format=json&filter={query} HTTP/1.1\r\n"
            "host: envoy\r\nconnection: close\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise ValueError(f"Envoy answers {head[:60]!r}")
        body = await _body(reader, chunked=b"chunked" in head.lower())
    finally:
        writer.close()
    document = json.loads(body)
    return {
        item["name"]: int(item["value"])
        for item in document["stats"]
        if isinstance(item.get("value"), int)
    }


async def _body(reader: asyncio.StreamReader, *, chunked: bool) -> bytes:
    if not chunked:
        return await reader.read()
    parts = []
    while size := int((await reader.readline()).strip() or b"0", 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    return b"".join(parts)
