"""Follows the agent's metadata stream: a snapshot, then changes, again after every break.

Runs as a task of the event loop and hands everything to a sink. While the agent is away, what is
known stays as it is; the snapshot of the next connection replaces it in one go, so that rows that
did not change keep their numbers.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Protocol

from cilium.metadata.v1 import metadata_pb2
from cilium_core.telemetry import get_logger
from grpclib.client import UnaryStreamMethod
from grpclib.exceptions import GRPCError, StreamTerminatedError

from hubble_server.dialing import calling

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_log = get_logger()

_METHOD = "/cilium.metadata.v1.MetadataService/Watch"
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 2.0


class Sink(Protocol):
    """Receives what the agent says, on the event loop."""

    def replace(self, updates: Sequence[metadata_pb2.Update]) -> None:
        """The whole state, in place of what was known."""

    def update(self, update: metadata_pb2.Update) -> None:
        """One change."""


class MetadataClient:
    """Follows the agent behind the unix socket at `path`."""

    def __init__(self, path: Path, sink: Sink) -> None:
        self._path = path
        self._sink = sink
        self.connected = False
        """Whether a snapshot is complete and changes are coming in."""
        self.known = asyncio.Event()
        """Set by the first complete snapshot."""

    async def run(self) -> None:
        """Follow for ever; ends by being cancelled."""
        delay_s = _FIRST_DELAY_S
        complained = False
        while True:
            try:
                await self._follow()
                reason = "the agent ended the stream"
            except (OSError, GRPCError, StreamTerminatedError) as error:
                reason = str(error) or type(error).__name__
            if self.connected:
                delay_s, complained = _FIRST_DELAY_S, False
            self.connected = False
            if not complained:
                _log.warning("agent away; flows keep the names known so far", reason=reason)
                complained = True
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def _follow(self) -> None:
        async with calling(self._path, _METHOD) as channel:
            method: UnaryStreamMethod[metadata_pb2.WatchRequest, metadata_pb2.WatchResponse] = (
                UnaryStreamMethod(
                    channel, _METHOD, metadata_pb2.WatchRequest, metadata_pb2.WatchResponse
                )
            )
            async with method.open() as stream:
                await stream.send_message(metadata_pb2.WatchRequest(), end=True)
                snapshot: list[metadata_pb2.Update] = []
                async for response in stream:
                    if self.connected:
                        for update in response.updates:
                            self._sink.update(update)
                        continue
                    snapshot.extend(response.updates)
                    if response.snapshot_complete:
                        self._sink.replace(snapshot)
                        self.connected = True
                        self.known.set()
                        _log.info("following the agent", updates=len(snapshot))
                        snapshot = []
