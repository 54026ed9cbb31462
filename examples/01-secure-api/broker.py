# SPDX-License-Identifier: Apache-2.0
"""A Kafka broker for a pod: `broker.py PORT TOPIC...`.

It is the one that librdkafka brings for tests. That one listens on loopback only and says so to
its clients, so what comes to the port is passed on to it, and in what goes back its address is
exchanged for the one that the client asked.
"""

import asyncio
import contextlib
import socket
import sys

from confluent_kafka import Producer

INSIDE = b"127.0.0.1"


async def requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until one side ends."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def answers(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, behind: int
) -> None:
    """Pass answers on, one after the other, with the address that the client knows."""
    address = writer.get_extra_info("sockname")[0].removeprefix("::ffff:").encode()
    old, new = behind.to_bytes(4, "big"), port.to_bytes(4, "big")
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            data = await reader.readexactly(size)
            # a text's length comes first: two bytes, or one that is one more in later versions
            for width, more in ((2, 0), (1, 1)):
                told = (len(INSIDE) + more).to_bytes(width, "big") + INSIDE + old
                mine = (len(address) + more).to_bytes(width, "big") + address + new
                data = data.replace(told, mine)
            writer.write(len(data).to_bytes(4, "big") + data)
            await writer.drain()
    writer.close()


async def serve(port: int, behind: int) -> None:
    """Serve until killed."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside, outside = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(requests(reader, outside), answers(inside, writer, port, behind))

    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    await (await asyncio.start_server(forward, sock=listener)).serve_forever()


def main() -> None:
    """Make the topics, and serve."""
    port, *topics = sys.argv[1:]
    cluster = Producer({"test.mock.num.brokers": 1, "log_level": 3})
    for topic in topics:
        cluster.list_topics(topic, timeout=10)  # asking for a topic makes it
    (broker,) = cluster.list_topics(timeout=10).brokers.values()
    asyncio.run(serve(int(port), broker.port))


if __name__ == "__main__":
    main()
