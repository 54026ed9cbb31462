"""Ports that lead elsewhere: librdkafka's mock cluster listens on loopback only."""

from __future__ import annotations

import asyncio
import contextlib


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until one side ends."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(port: int, behind: int) -> None:
    """Pass connections to `port` on to `behind` on loopback, until killed."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside, outside = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(pump(reader, outside), pump(inside, writer))

    for host in ("::", "0.0.0.0"):
        server = await asyncio.start_server(forward, host, port)
    await server.serve_forever()
