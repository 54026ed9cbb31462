"""hubble-servers with full rings, and a relay before them, each in a process of its own.

    python -m tests.bench.flowservers DIRECTORY NODES CAPACITY KIND

serves NODES nodes at DIRECTORY/nodeN/hubble.sock, and tells a relay of them at
DIRECTORY/peers.sock.
KIND says what their rings are full of: `packets`, or `requests` that proxies saw.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_core.serving.packed import Call, PackedServer, stream
from flow import flow_pb2
from hubble_server.app import App
from hubble_server.ring.reading import Reading
from hubble_server.settings import ServerSettings
from peer import peer_pb2

from tests.unit.hubble.loads import address_of, record, snapshot, traffic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from cilium.metadata.v1 import metadata_pb2

PODS = 100
FULL = 65_535
_STEP = 32_768
_RECORDS_STEP = 4096


@dataclass(frozen=True)
class Served:
    """A process that serves."""

    process: subprocess.Popen[bytes]
    directory: Path

    def socket(self, node: int = 0) -> Path:
        """Where a node serves."""
        return self.directory / f"node{node}" / "hubble.sock"

    @property
    def cpu_s(self) -> float:
        """User and system time of the process so far, in seconds."""
        return cpu_s(self.process.pid)


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(nodes: int = 1, capacity: int = FULL, kind: str = "packets") -> Iterator[Served]:
    """Nodes with full rings."""
    with tempfile.TemporaryDirectory() as directory:
        words = ["tests.bench.flowservers", directory, str(nodes), str(capacity), kind]
        with _running(words, b"ready") as process:
            yield Served(process, Path(directory))


@contextmanager
def relayed(nodes: Served) -> Iterator[Served]:
    """A relay before nodes; its `socket()` is where it serves."""
    with tempfile.TemporaryDirectory() as directory:
        at = Path(directory) / "node0"
        at.mkdir()
        words = ["hubble_relay", "serve", "--health-listen-address=", "--log-level=info"]
        words.append(f"--peer-service=unix://{nodes.directory}/peers.sock")
        words.append(f"--listen-address=unix://{at}/hubble.sock")
        with _running(words, b"listening") as process:
            yield Served(process, Path(directory))


@contextmanager
def _running(words: list[str], ready: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """A module that runs until the end, once it has written a line with `ready` in it."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=root)
    assert process.stdout is not None
    told = []
    try:
        for line in process.stdout:
            told.append(line)
            if ready in line:
                break
        else:
            raise RuntimeError(f"{' '.join(words)} ended: {b''.join(told[-5:]).decode()}")
        rest = threading.Thread(target=process.stdout.read, daemon=True)
        rest.start()
        yield process
        process.terminate()
        rest.join(10)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# ---- what runs in the process ----


class _Once:
    """A source that fills a ring once."""

    def __init__(self, count: int) -> None:
        self._left = count

    def wait(self, timeout_s: float | None = None) -> None:
        threading.Event().wait(0.05)

    def read(self) -> Reading:
        count = min(self._left, _STEP)
        if not count:
            return Reading()
        self._left -= count
        return Reading(traffic(count, PODS, seed=self._left))


def requests(count: int) -> Iterator[metadata_pb2.Update]:
    """What proxies saw: HTTP requests, each for a thing of its own, and questions for names."""
    for number in range(count):
        l7 = flow_pb2.Layer7(type=flow_pb2.REQUEST)
        if number % 2:
            l7.http.method, l7.http.protocol = "GET", "HTTP/1.1"
            l7.http.url = f"http://web.ns1/api/v{number % 3}/items/{number}"
            l7.http.headers.add(key="User-Agent", value="curl/8.5.0")
        else:
            l7.dns.query = f"host-{number % 997}.example.com."
        ends = address_of(number % PODS), address_of(number * 7 % PODS)
        yield record(l7, *ends, udp=number % 2 == 0, ports=(40000, 80 if number % 2 else 53))


async def _fill(app: App, capacity: int, kind: str) -> None:
    if kind == "requests":
        updates = list(requests(capacity))
        for start in range(0, capacity, _RECORDS_STEP):
            for update in updates[start : start + _RECORDS_STEP]:
                app.update(update)
            while app.store.head < min(start + _RECORDS_STEP, capacity):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    while app.store.head < capacity:  # noqa: ASYNC110 - a store has no such event
        await asyncio.sleep(0.01)


async def _serve(directory: Path, nodes: int, capacity: int, kind: str) -> None:
    apps = []
    async with AsyncExitStack() as stack:
        for number in range(nodes):
            state = directory / f"node{number}"
            settings = ServerSettings(
                node_name=f"node{number}",
                state_dir=state,
                hubble_event_buffer_capacity=capacity,
                log_level="error",
            )
            app = App(settings, _Once(capacity if kind == "packets" else 0))
            app.replace(snapshot(PODS))
            apps.append(await stack.enter_async_context(app))
        for app in apps:
            await _fill(app, capacity, kind)
        server = PackedServer()
        notify = stream(_notifying(directory, nodes), peer_pb2.NotifyRequest)
        server.add("peer.Peer", {"Notify": notify})
        await server.listen_unix(directory / "peers.sock")
        stack.push_async_callback(server.stop)
        print("ready", flush=True)
        await asyncio.Event().wait()


def _notifying(
    directory: Path, nodes: int
) -> Callable[[peer_pb2.NotifyRequest, Call], Awaitable[None]]:
    async def notify(_request: peer_pb2.NotifyRequest, call: Call) -> None:
        changes = [
            peer_pb2.ChangeNotification(
                name=f"node{number}",
                address=f"unix://{directory}/node{number}/hubble.sock",
                type=peer_pb2.PEER_ADDED,
            )
            for number in range(nodes)
        ]
        await call.send_many([change.SerializeToString() for change in changes])
        await asyncio.Event().wait()

    return notify


if __name__ == "__main__":
    _directory, _nodes, _capacity, _kind = sys.argv[1:]
    asyncio.run(_serve(Path(_directory), int(_nodes), int(_capacity), _kind))
