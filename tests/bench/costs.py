"""What a flow costs a hubble-server as it comes in, and what each thing adds that is done with it.

CPU time of a whole server, from the records of the kernel's ring to when it is idle again.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from cilium_core.telemetry.logs import setup_logging
from hubble_server.app import App
from hubble_server.encoding.encoder import Encoder
from hubble_server.exporting.log_records import request_of
from hubble_server.ring.reading import Reading
from hubble_server.settings import ServerSettings
from observer import observer_pb2

from tests.bench.flowservers import FULL, PODS
from tests.unit.hubble.loads import snapshot, traffic
from tests.unit.hubble.pipelines import NODE, Pipeline

_STEP: Final = 4096
_SENT: Final = 512
"""Log records that go to a collector at once."""
_IDLE_S: Final = 0.4
_METRICS: Final = (
    "drop flow tcp port-distribution policy:sourceContext=workload-name|reserved-identity"
)

CASES: Final[dict[str, dict[str, Any]]] = {
    "read, named and kept in the ring": {},
    "counted by five metrics": {"hubble_metrics_server": "127.0.0.1:0", "hubble_metrics": _METRICS},
    "kept in the history": {"hubble_history_dir": "history"},
    "exported to a file as JSON": {"hubble_export_file_path": "flows.jsonl"},
}


def us_per_flow() -> dict[str, float]:
    """CPU in µs for each flow: of the first case all of it, of the others what they add."""
    setup_logging(ServerSettings(log_level="error"), service="bench")
    asyncio.run(_spent_s({}))
    plain = min(asyncio.run(_spent_s({})) for _ in range(2))
    found = {}
    for name, settings in CASES.items():
        spent = plain if not settings else asyncio.run(_spent_s(settings))
        found[name] = (spent - plain if settings else spent) / FULL * 1e6
    found["encoded for a client"], found["made into a log record of OpenTelemetry"] = _encoding_us()
    return found


class _Gate:
    """A source that yields a ring full of flows once it is opened, in pieces as the kernel's."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        events = traffic(FULL, PODS)
        self._pieces = [events[at : at + _STEP] for at in range(0, FULL, _STEP)]

    def wait(self, timeout_s: float | None = None) -> None:
        if not self._pieces:
            threading.Event().wait(0.05)
        self.opened.wait(0.05)

    def read(self) -> Reading:
        ready = self.opened.is_set() and self._pieces
        return Reading(self._pieces.pop(0)) if ready else Reading()


async def _spent_s(settings: dict[str, Any]) -> float:
    """CPU time that a server takes for a ring full of flows."""
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        given = {
            name: base / value if name.endswith(("_dir", "_path")) else value
            for name, value in settings.items()
        }
        source = _Gate()
        app = App(
            ServerSettings(
                node_name="node1",
                state_dir=base,
                hubble_event_buffer_capacity=FULL,
                log_level="error",
                **given,
            ),
            source,
        )
        app.replace(snapshot(PODS))
        async with app:
            await _idle()
            started = time.process_time()
            source.opened.set()
            while app.store.head < FULL:  # noqa: ASYNC110 - a store has no such event
                await asyncio.sleep(0.05)
            ended = await _idle()
        return ended - started


async def _idle() -> float:
    """Wait until next to nothing is done; the CPU time of the process when that began."""
    while True:
        before = time.process_time()
        await asyncio.sleep(_IDLE_S)
        if time.process_time() - before < 0.05 * _IDLE_S:
            return before


def _encoding_us() -> tuple[float, float]:
    """CPU for each flow: as a client gets it, and from there to a log record."""
    pipeline = Pipeline(FULL, pods=PODS)
    pipeline.feed(traffic(_STEP * 16, PODS))
    encoder = Encoder(NODE, pipeline.directory)
    batches = [
        pipeline.store.block(at, at + _STEP).take(np.arange(_STEP))
        for at in range(0, FULL - _STEP, _STEP)
    ]
    _records(encoder.responses(batches[0]))
    started = time.process_time()
    flows = sum(len(encoder.responses(batch)) for batch in batches)
    encoded_us = (time.process_time() - started) / flows * 1e6
    responses = [encoder.responses(batch) for batch in batches[:4]]
    started = time.process_time()
    for each in responses:
        _records(each)
    recorded_us = (time.process_time() - started) / sum(map(len, responses)) * 1e6
    return encoded_us, recorded_us


def _records(responses: list[bytes]) -> None:
    for at in range(0, len(responses), _SENT):
        events = map(observer_pb2.ExportEvent.FromString, responses[at : at + _SENT])
        request_of(events, time.time_ns(), {"service.name": "bench"}).SerializeToString()
