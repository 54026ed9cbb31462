"""A connection to the node's agent for one call, which tells the agent of the trace it is part of.

Errors of the connection and of the call pass through.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cilium_core import traces
from grpclib.client import Channel
from grpclib.events import SendRequest, listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def calling(path: Path, method: str) -> AsyncIterator[Channel]:
    """A channel to a unix socket, for one call of `/package.Service/Method`."""
    async with Channel(path=str(path)) as channel:
        with traces.calling(method.removeprefix("/")) as told:

            async def tell(event: SendRequest) -> None:
                event.metadata.update(told)

            if told:
                listen(channel, SendRequest, tell)
            yield channel
