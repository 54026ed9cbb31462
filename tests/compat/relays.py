"""Relays as programs, ours or another maker's: both take the same flags."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from observer import observer_pb2, observer_pb2_grpc
from relay import relay_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OURS = Path(sys.executable).with_name("hubble-relay")
NAME = "relay.default.hubble-relay.cilium.io"

_HEALTH = "hubble.server.Observer"
_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Certificates:
    """An authority and what it signed, as certificates and keys."""

    authority: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]

    def flags(self) -> dict[str, object]:
        """What a relay is given."""
        return {
            "tls-hubble-client-cert-file": self.client[0],
            "tls-hubble-client-key-file": self.client[1],
            "tls-hubble-server-ca-files": self.authority,
            "tls-relay-server-cert-file": self.server[0],
            "tls-relay-server-key-file": self.server[1],
            "tls-relay-client-ca-files": self.authority,
        }

    def arguments(self, address: str, name: str) -> tuple[str, ...]:
        """What a client says to reach a server with that name in its certificate."""
        said = (
            *("--server", f"tls://{address}", "--tls-server-name", name),
            *("--tls-ca-cert-files", self.authority),
            *("--tls-client-cert-file", self.client[0], "--tls-client-key-file", self.client[1]),
        )
        return tuple(map(str, said))

    def channel(self, address: str, name: str) -> grpc.aio.Channel:
        """To such a server."""
        credentials = grpc.ssl_channel_credentials(
            self.authority.read_bytes(), self.client[1].read_bytes(), self.client[0].read_bytes()
        )
        options = [("grpc.ssl_target_name_override", name)]
        return grpc.aio.secure_channel(address, credentials, options)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number: int = listening.getsockname()[1]
        return number


@asynccontextmanager
async def relaying(
    program: Path, peer_service: str, certificates: Certificates | None, nodes: int
) -> AsyncIterator[tuple[str, ...]]:
    """Run a relay; gives what a client says to reach it, once it has that many nodes.

    It speaks plainly with its clients and its nodes, or with certificates with all of them.
    """
    address = f"127.0.0.1:{free_port()}"
    plain = {"disable-client-tls": "true", "disable-server-tls": "true"}
    flags = {
        "listen-address": address,
        "health-listen-address": f"127.0.0.1:{free_port()}",
        "peer-service": peer_service,
        "retry-timeout": "1s",
        **(plain if certificates is None else certificates.flags()),
    }
    if program != OURS:
        flags["gops"] = "false"
    words = [f"--{name}={value}" for name, value in flags.items()]
    process = await asyncio.create_subprocess_exec(
        program,
        "serve",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        if certificates is None:
            said, channel = ("--server", address), grpc.aio.insecure_channel(address)
        else:
            said = certificates.arguments(address, NAME)
            channel = certificates.channel(address, NAME)
        async with channel, asyncio.timeout(_LIMIT_S):
            while not await _serving(channel, nodes):
                if process.returncode is not None:
                    raise ChildProcessError(f"{program} serve {' '.join(words)}: it ended")
                await asyncio.sleep(0.1)
        yield said
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _serving(channel: grpc.aio.Channel, nodes: int) -> bool:
    """Whether a relay says that it is well and has so many nodes."""
    try:
        found = await _states(channel)
        asked = health_pb2.HealthCheckRequest(service=_HEALTH)
        well = await health_pb2_grpc.HealthStub(channel).Check(asked, timeout=5)
    except grpc.aio.AioRpcError:
        return False
    connected = sum(state == relay_pb2.NODE_CONNECTED for state in found.values())
    return well.status == health_pb2.HealthCheckResponse.SERVING and connected >= nodes


async def until(address: str, node: str, state: int | None) -> None:
    """Wait until a relay that speaks plainly sees a node in a state, or None: not at all."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(_LIMIT_S):
        while (await _states(channel)).get(node) != state:  # noqa: ASYNC110  no event tells it
            await asyncio.sleep(0.1)


async def _states(channel: grpc.aio.Channel) -> dict[str, int]:
    stub = observer_pb2_grpc.ObserverStub(channel)
    found = await stub.GetNodes(observer_pb2.GetNodesRequest(), timeout=5)
    return {node.name: node.state for node in found.nodes}
