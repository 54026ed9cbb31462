"""The agent's end of the proxies' socket: the agent's own code, and a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium.proxy.v1 import proxy_pb2, proxy_pb2_grpc
from cilium_agent.proxies.serving import SERVICE, ProxyServicer, RedirectBoard
from cilium_core.serving.grpc_server import GrpcServer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cilium_core.policy.l7 import L7Kind


class AgentEnd:
    """What a proxy of some kinds sees of the agent; may be stopped and started again."""

    def __init__(self, state_dir: Path, *kinds: L7Kind) -> None:
        self._state_dir = state_dir
        self.boards = {kind: RedirectBoard() for kind in kinds}
        self.board = self.boards[kinds[0]]
        self.records: list[proxy_pb2.Record] = []
        self.lost = 0
        self._server: GrpcServer | None = None

    async def start(self) -> None:
        """Serve the socket."""
        server = self._server = GrpcServer()
        server.add(
            SERVICE,
            proxy_pb2_grpc.add_ProxyServiceServicer_to_server,
            ProxyServicer(self.boards, self, self.take),
        )
        server.listen_unix(self._state_dir / "proxies.sock")
        await server.start()

    async def stop(self) -> None:
        """Be away."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def observe(self, observations: Sequence[proxy_pb2.NameObservation]) -> list[float]:
        """Learn names, and tell for how many seconds they are known."""
        raise AssertionError(f"this proxy learns no names: {observations}")

    async def take(self, kind: L7Kind, records: Sequence[proxy_pb2.Record], lost: int) -> None:
        """Take records over."""
        assert kind in self.boards
        self.records.extend(records)
        self.lost += lost
