"""A client, a node with the Kafka proxy and a broker, in network namespaces of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilium_core.policy.l7 import L7Kind

from tests.agent_ends import AgentEnd
from tests.namespaces import SERVER, Namespaces, connected

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

    from cilium_core.policy.l7 import Redirect

ROOT = Path(__file__).parents[2]
PORT = 9092
PROXY_PORT = 10077
LIMIT_S = 30.0


class Lab:
    """All of it together."""

    def __init__(self, state_dir: Path, namespaces: Namespaces) -> None:
        self.state_dir = state_dir
        self.namespaces = namespaces
        self.agent = AgentEnd(state_dir, L7Kind.KAFKA)
        self.broker: asyncio.subprocess.Process
        self.client: asyncio.subprocess.Process
        self.proxy: asyncio.subprocess.Process

    async def start(self) -> None:
        """Start all programs."""
        await self.agent.start()
        topics = ("orders", "secret", "other")
        self.broker = await self._start(self.namespaces.server, "broker", PORT, *topics)
        behind = await self._line(self.broker)
        self.client = await self._start(self.namespaces.client, "client", behind, SERVER[4], PORT)
        assert await self._line(self.client) == "ready"
        await self.start_proxy()
        self.namespaces.steer({PORT: PROXY_PORT})

    async def start_proxy(self) -> None:
        """Start the proxy in the node's namespace."""
        program = Path(sys.executable).with_name("cilium-kafka-proxy")
        with (self.state_dir / "proxy.log").open("ab") as log:
            self.proxy = await asyncio.create_subprocess_exec(
                *("ip", "netns", "exec", self.namespaces.node),
                *(str(program), "--state-dir", str(self.state_dir), "--log-level", "debug"),
                stdout=log,
                stderr=log,
            )

    async def _start(self, namespace: str, name: str, *words: Any) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", namespace, sys.executable, "-m", f"tests.kafka.{name}"),
            *map(str, words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    async def _line(self, process: asyncio.subprocess.Process) -> str:
        assert process.stdout is not None
        async with asyncio.timeout(3 * LIMIT_S):
            return (await process.stdout.readline()).decode().strip()

    async def stop(self) -> None:
        """End all programs."""
        for name in ("client", "broker", "proxy"):
            process = getattr(self, name, None)
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
        await self.agent.stop()

    async def enforce(self, redirect: Redirect) -> None:
        """Have the proxy enforce a redirect, and wait until it does."""
        self.agent.board.publish({PROXY_PORT: redirect})
        served = await self.agent.board.served([PROXY_PORT], timeout_s=LIMIT_S)
        assert served == {PROXY_PORT}, self.log()
        self.agent.records.clear()

    async def ask(self, *tasks: dict[str, Any], client: str = "tester", **options: Any) -> Any:
        """Have the client do tasks; returns their outcomes."""
        request = {"tasks": tasks, "client": client, "options": options}
        assert self.client.stdin is not None
        self.client.stdin.write(json.dumps(request).encode() + b"\n")
        return json.loads(await self._line(self.client))

    async def connected(self, family: int = 4) -> socket.socket:
        """A connection of the client's namespace to the broker's port."""
        return await connected(self.namespaces.client, SERVER[family], PORT)

    def log(self) -> str:
        """What the proxy wrote."""
        return (self.state_dir / "proxy.log").read_text()


@asynccontextmanager
async def running(state_dir: Path) -> AsyncIterator[Lab]:
    """All of it, running; nothing is enforced yet."""
    namespaces = Namespaces(f"tE-{os.getpid()}")
    try:
        made = Lab(state_dir, namespaces)
        try:
            await made.start()
            yield made
        finally:
            await made.stop()
    finally:
        namespaces.close()
