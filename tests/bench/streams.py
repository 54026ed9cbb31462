"""What it costs to send flows: to one client, to twenty, past clients that do not read, by a relay.

Costs are CPU time of the server's process for each flow that a client got.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from observer import observer_pb2

from tests.bench.flowclients import GET_FLOWS, Client, answers
from tests.bench.flowservers import FULL, Served, relayed, served

EVERYTHING = observer_pb2.GetFlowsRequest(number=(1 << 64) - 1)
NODES = 10
OF_NODE = 16_383
_ROUNDS = 3
_WAIT_S = 20.0


@dataclass(frozen=True)
class Cost:
    """Of a stream."""

    flows: int
    flows_per_s: float
    us_per_flow: float
    """CPU of the whole serving process."""


def to_clients(server: Served, count: int, rounds: int) -> Cost:
    """All of a ring to so many clients at once, `rounds` times after one has had it."""
    clients = [Client(server.socket()) for _ in range(count)]
    try:
        answers(clients[:1], GET_FLOWS, EVERYTHING)
        cpu, started = server.cpu_s, time.perf_counter()
        flows = sum(answers(clients, GET_FLOWS, EVERYTHING) for _ in range(rounds))
        return Cost(
            flows, flows / (time.perf_counter() - started), (server.cpu_s - cpu) / flows * 1e6
        )
    finally:
        for client in clients:
            client.close()


@dataclass(frozen=True)
class Streams:
    """What was measured at a single node."""

    one: Cost
    twenty: Cost
    beside_stalled: Cost
    """To one client, while twenty others have asked and do not read."""
    slowed: float
    """Time beside those to time alone, of runs that alternate."""
    real: tuple[Cost, float] | None
    """To Hubble's own client, if there is one, and the CPU of that for each flow in µs."""


def from_node() -> Streams:
    """Streams out of one full ring."""
    with served() as server:
        one = to_clients(server, 1, _ROUNDS)
        twenty = to_clients(server, 20, 1)
        beside, ratios = one, []
        for _ in range(_ROUNDS):
            alone = to_clients(server, 1, 1)
            stalled = [Client(server.socket()) for _ in range(20)]
            for client in stalled:
                client.ask(GET_FLOWS, EVERYTHING)
            _settle(server)
            beside = to_clients(server, 1, 1)
            for client in stalled:
                client.close()
            ratios.append(alone.flows_per_s / beside.flows_per_s)
        slowed = statistics.median(ratios)
        return Streams(one, twenty, beside, slowed, _to_real_client(server))


def _settle(server: Served) -> None:
    """Wait until a server has nothing to do."""
    deadline, seen = time.monotonic() + _WAIT_S, -1.0
    while server.cpu_s != seen and time.monotonic() < deadline:
        seen = server.cpu_s
        time.sleep(0.2)


def _to_real_client(server: Served) -> tuple[Cost, float] | None:
    """`hubble observe` as published, if $HUBBLE names one."""
    program = os.environ.get("HUBBLE")
    if not program or not Path(program).is_file():
        return None
    command = [program, "observe", "--all", "-o", "jsonpb"]
    command += ["--server", f"unix://{server.socket()}"]
    cpu, started, own = server.cpu_s, time.perf_counter(), os.times()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode()}")
    wall, now = time.perf_counter() - started, os.times()
    spent = now.children_user + now.children_system - own.children_user - own.children_system
    cost = Cost(FULL, FULL / wall, (server.cpu_s - cpu) / FULL * 1e6)
    return cost, spent / FULL * 1e6


def through_relay() -> Cost:
    """All of ten rings through a relay to one client; the cost is the relay's alone."""
    with served(NODES, OF_NODE) as nodes, relayed(nodes) as relay:
        _connected(relay)
        return to_clients(relay, 1, 2)


def _connected(relay: Served) -> None:
    """Wait until all nodes answer."""
    client, deadline = Client(relay.socket()), time.monotonic() + _WAIT_S
    while client.answer(GET_FLOWS, observer_pb2.GetFlowsRequest(number=1)) <= NODES:
        if time.monotonic() > deadline:
            raise RuntimeError("the relay does not reach all nodes")
        time.sleep(0.05)
    client.close()
