# SPDX-License-Identifier: Apache-2.0
"""Sends one message to a Kafka topic: `produce.py BROKER:PORT TOPIC`; prints what became of it."""

import sys

from confluent_kafka import KafkaError, Message, Producer

LIMIT_S = 10.0


def main() -> None:
    """Send, and print `delivered` or why not."""
    broker, topic = sys.argv[1:]
    outcome = ["no answer"]

    def delivered(error: KafkaError | None, _: Message) -> None:
        outcome[0] = "delivered" if error is None else str(error.name())

    options = {"bootstrap.servers": broker, "log_level": 2, "linger.ms": 0}
    producer = Producer({**options, "enable.metrics.push": False})
    producer.produce(topic, b"a message", on_delivery=delivered)
    producer.flush(LIMIT_S)
    print(outcome[0])


if __name__ == "__main__":
    main()
