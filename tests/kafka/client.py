"""A client of a broker elsewhere: `client.py LOOPBACK-PORT HOST PORT`; tasks and outcomes as JSON.

The broker says that it is at a port of loopback, as librdkafka's mock cluster does; that port of
this namespace leads to the broker. Each line of standard input is a list of tasks, done one after
the other by one client each; each line of output holds their outcomes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from tests.kafka.forwarding import pump

LIMIT_S = 20.0


async def forward(own: int, host: str, port: int) -> None:
    """Let a port of loopback lead elsewhere, until killed."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inside, outside = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(pump(reader, outside), pump(inside, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", own)
    print("ready", flush=True)
    await server.serve_forever()


def do(task: dict[str, Any], common: dict[str, Any]) -> Any:
    """Do a task; its outcome is the name of an error where there is one."""
    try:
        return {"produce": produce, "consume": consume, "describe": describe}[task["do"]](
            task, common
        )
    except KafkaException as error:
        return error.args[0].name()


def produce(task: dict[str, Any], common: dict[str, Any]) -> list[str]:
    """Write values to a topic; "ok" or an error for each."""
    found: list[str] = []

    def told(error: KafkaError | None, _: Any) -> None:
        found.append(error.name() if error is not None else "ok")

    options = {"acks": task.get("acks", "all"), "message.timeout.ms": 8000, "linger.ms": 0}
    producer = Producer({**common, **options})
    for value in task["values"]:
        producer.produce(task["topic"], value.encode(), on_delivery=told)
    producer.flush(LIMIT_S)
    return found


def consume(task: dict[str, Any], common: dict[str, Any]) -> Any:
    """Read a number of values of a topic as a member of a group, or the error that comes first."""
    options = {"group.id": task["group"], "auto.offset.reset": "earliest"}
    consumer = Consumer({**common, **options})
    consumer.subscribe([task["topic"]])
    found: list[str] = []
    try:
        while len(found) < task["count"]:
            message = consumer.poll(LIMIT_S)
            if message is None:
                return "nothing"
            if message.error() is not None:
                return message.error().name()
            found.append(message.value().decode())
        consumer.commit(asynchronous=False)
        return found
    finally:
        consumer.close()


def describe(task: dict[str, Any], common: dict[str, Any]) -> Any:
    """The names of all topics, or of one with its error."""
    topics = (
        Producer(common).list_topics(task.get("topic"), timeout=task.get("limit_s", LIMIT_S)).topics
    )
    return {name: one.error.name() if one.error else "ok" for name, one in topics.items()}


def main() -> None:
    """Serve tasks until the input ends."""
    own, host, port = sys.argv[1:]
    forwarding = asyncio.new_event_loop()
    run = forwarding.run_until_complete
    threading.Thread(target=run, args=(forward(int(own), host, int(port)),), daemon=True).start()
    for line in sys.stdin:
        request = json.loads(line)
        common = {
            "bootstrap.servers": f"127.0.0.1:{own}",
            "client.id": request.get("client", "tester"),
            "log_level": 0,
            **request.get("options", {}),
        }
        print(json.dumps([do(task, common) for task in request["tasks"]]), flush=True)


if __name__ == "__main__":
    main()
