"""A Kafka broker in a pod: librdkafka's mock cluster behind a port; `broker.py PORT TOPIC...`.

The mock listens on loopback only, so whatever comes to the port is passed on to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from confluent_kafka import Producer


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


def main() -> None:
    """Serve until killed."""
    port, *topics = sys.argv[1:]
    cluster = Producer({"test.mock.num.brokers": 1})
    for topic in topics:
        cluster.list_topics(topic, timeout=10)  # asking for a topic makes it
    (broker,) = cluster.list_topics(timeout=10).brokers.values()
    asyncio.run(serve(int(port), broker.port))


if __name__ == "__main__":
    main()
