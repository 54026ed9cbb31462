"""librdkafka's mock cluster behind a port: `broker.py PORT TOPIC…`; prints its port on loopback."""

from __future__ import annotations

import asyncio
import sys

from confluent_kafka import Producer

from tests.kafka.forwarding import serve


def main() -> None:
    """Serve until killed."""
    port, *topics = sys.argv[1:]
    cluster = Producer({"test.mock.num.brokers": 1})
    for topic in topics:
        cluster.list_topics(topic, timeout=10)  # asking for a topic makes it
    (broker,) = cluster.list_topics(timeout=10).brokers.values()
    print(broker.port, flush=True)
    asyncio.run(serve(int(port), broker.port))


if __name__ == "__main__":
    main()
