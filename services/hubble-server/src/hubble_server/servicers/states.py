"""cilium.flows.v1.StateService: what held at a moment."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from cilium.flows.v1 import states_pb2
from cilium_core.serving.packed import Method, stream

from hubble_server.history.states import NOT_KEPT, answers, state_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cilium_core.access import Limits
    from cilium_core.serving.packed import Call

    from hubble_server.facts import NodeFacts

STATES = "cilium.flows.v1.StateService"

_SWITCHED_OFF = "states are not kept here; set hubble-history-dir"


class StateService:
    """Tells the states kept in a directory; None where none are kept."""

    def __init__(self, directory: Path | None, node: Callable[[], NodeFacts]) -> None:
        self._directory = directory
        self._node = node

    def methods(self) -> dict[str, Method]:
        """Methods of the service."""
        return {"GetState": stream(self._get_state, states_pb2.GetStateRequest)}

    async def _get_state(self, request: states_pb2.GetStateRequest, call: Call) -> None:
        at_ns = request.at_ns or time.time_ns()
        await call.start()
        for message in await asyncio.to_thread(self._messages, at_ns, call.limits):
            await call.send(message)

    def _messages(self, at_ns: int, limits: Limits | None) -> list[states_pb2.NodeState]:
        name = self._node().qualified_name
        if self._directory is None:
            return [states_pb2.NodeState(node_name=name, note=_SWITCHED_OFF)]
        moment = state_at(self._directory, at_ns)
        if limits is not None:
            moment = replace(moment, state=moment.state.narrowed(limits.namespaces))
        note = "" if moment.told_ns else NOT_KEPT
        return list(answers(name, moment, note))
