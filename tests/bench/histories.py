"""What questions to a history of many flows take.

A node's traffic of connections is kept the way hubble-server keeps it, until there are a few parts;
copies of these make up the rest. So every part is read from files of its own, but what is in them
repeats.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cilium_core import abi
from cilium_core.flow_dimensions import NAMES
from flow import flow_pb2

from tests.bench import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hubble_server.history.writing import History
    from numpy.typing import NDArray

    from tests.unit.hubble.pipelines import Pipeline

FLOWS = int(os.environ.get("BENCH_HISTORY_FLOWS", "50000000"))
"""Flows in the history; takes about 40 bytes of the disk each."""

_PODS = 200
_ORIGINALS = 8
"""Parts that are made; the others are copies."""

_PART = 500_000
_SERVED = (53, 80, 443, 5432, 6379, 8080, 9090, 9092)
_REPEATS = 3


def connections(count: int, seed: int) -> NDArray[Any]:
    """Events of connections between pods: eight packets each, half of them replies.

    Few pairs talk much and many little; one connection in fifty is refused.
    """
    from tests.unit.hubble.loads import DEVICES, identity_of, traffic

    chance = np.random.default_rng(seed)
    events = traffic(count, _PODS, seed)
    number = (count + 7) // 8
    rank = np.minimum(chance.zipf(1.3, number), 4000)
    client = rank * 7919 % _PODS
    server = rank * 104_729 // 7 % _PODS
    port = np.array(_SERVED)[rank % len(_SERVED)]
    own = chance.integers(32768, 61000, number)
    refused = chance.random(number) < 0.02
    order = chance.permutation(count)
    which, reply = order // 8, order % 2 == 1
    reply &= ~refused[which]
    source = np.where(reply, server[which], client[which])
    target = np.where(reply, client[which], server[which])
    ports = np.where(reply, port[which], own[which]), np.where(reply, own[which], port[which])
    base = 0x0AF40001
    for field, pod in (("saddr", source), ("daddr", target)):
        events[field][:, :4] = (base + pod).astype(">u4").view(np.uint8).reshape(-1, 4)
    for field, values in zip(("sport", "dport"), ports, strict=True):
        events[field] = values.astype(">u2").view("<u2")
    events["type"] = np.where(refused[which], 1, 4)
    events["subtype"] = np.where(refused[which], 133, 0)
    events["reason"] = np.where(reply, abi.constants["REASON_REPLY"], 0)
    events["verdict"] = events["cookie"] = events["match"] = 0
    events["flags"] = (
        abi.constants["EVENT_L3"] | abi.constants["EVENT_L4"] | abi.constants["EVENT_ETHERNET"]
    )
    events["bytes"], events["packets"] = chance.integers(60, 1500, count), 1
    events["endpoint"] = target + 1
    events["src_identity"], events["dst_identity"] = (
        identity_of(0) + end for end in (source, target)
    )
    events["ifindex"] = 1 + target % (DEVICES - 1)
    return events


def made(folder: Path, flows: int) -> tuple[Pipeline, History]:
    """Keep a history of so many flows in a folder, and open it."""
    from hubble_server.history.layout import file_path, files_of, parts_of
    from hubble_server.history.writing import History, Limits

    from tests.unit.hubble.pipelines import NODE, Pipeline

    pipeline = Pipeline(4095, pods=_PODS)
    limits = Limits(max_bytes=1 << 50, journal_bytes=1 << 40, rotate_s=1e9)

    def opened() -> History:
        return History(folder, limits, pipeline.store, pipeline.directory, lambda: NODE)

    history = opened()
    originals = min(_ORIGINALS, max(1, flows // _PART))
    for original in range(originals):
        for at in range(0, _PART, 4096):
            pipeline.feed(connections(min(4096, _PART - at), 1 + original * 1000 + at))
            history.step()
        history._seal()
        history._worker.submit(lambda: None).result(300)
    history.stop()
    parts = parts_of(folder)[0]
    for number in range(originals + 1, flows // _PART + 1):
        part = parts[number % originals]
        copy = replace(part, number=number)
        copy = replace(copy, path=file_path(folder, number, part.first_ns, part.last_ns, part.rows))
        for source, target in zip(files_of(part), files_of(copy), strict=True):
            shutil.copyfile(source, target)
    return pipeline, opened()


def rows() -> Iterator[report.Row]:
    """Questions to the whole history, from the question to the encoded answer; files in memory."""
    from hubble_server.flows.naming import Namer
    from hubble_server.flows.querying import Query
    from hubble_server.history.counting import count
    from hubble_server.history.reading import Reading
    from hubble_server.history.walking import Asked

    from tests.unit.hubble.pipelines import NODE

    with tempfile.TemporaryDirectory(prefix="hubble-history-", dir="/var/tmp") as name:
        folder = Path(name)
        pipeline, history = made(folder, FLOWS)
        parts = history.snapshot().parts
        flows = sum(part.rows for part in parts)
        size = sum(path.stat().st_size for path in folder.iterdir())
        yield report.told("flows in the history", "flows", flows)
        yield report.told("disk for a flow in it", "bytes", size / flows)

        def find(wanted: flow_pb2.FlowFilter) -> int:
            reading = Reading(parts, Asked(whitelist=[wanted]), print)
            return sum(len(chunk.responses) for chunk in reading)

        def add_up(wanted: Sequence[flow_pb2.FlowFilter], *by: str) -> int:
            asked, numbers = Asked(whitelist=wanted), [NAMES[one] for one in by]
            namer = Namer(NODE, pipeline.directory)
            answer = count(history, pipeline.store, Query(), asked, numbers, 20, namer)
            return len(answer.groups)

        found: list[int] = []
        rare = flow_pb2.FlowFilter(source_pod=["ns1/pod-77"], verdict=[flow_pb2.DROPPED])
        took = _seconds(lambda: found.append(find(rare)))
        yield report.told("drops of a pod, in nearly all parts", "flows", found[0])
        yield report.absolute("  found", "s", took, "<=", 2)
        nowhere = flow_pb2.FlowFilter(source_ip=["10.244.0.18"], destination_port=["5433"])
        yield report.absolute("an address and port that never met", "s",
                              _seconds(lambda: find(nowhere)), "<=", 2)  # fmt: skip
        unknown = flow_pb2.FlowFilter(uuid=["11111111-2222-3333-4444-555555555555"])
        yield report.absolute(
            "a UUID that is not there", "s", _seconds(lambda: find(unknown)), "<=", 2
        )
        ends = ("source", "destination", "verdict")
        yield report.absolute("counts by source, destination, verdict", "s",
                              _seconds(lambda: add_up([], *ends)), "<=", 2)  # fmt: skip
        refused = [flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])]
        yield report.absolute("counts of drops by source, destination, port", "s",
                              _seconds(lambda: add_up(refused, "source", "destination", "port")),
                              "<=", 2)  # fmt: skip
        history.stop()


def _seconds(ask: Callable[[], object]) -> float:
    took = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        ask()
        took.append(time.perf_counter() - started)
    return min(took)
