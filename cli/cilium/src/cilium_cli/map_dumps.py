# SPDX-License-Identifier: Apache-2.0
"""Asks an agent for the entries of a map of the data plane, and prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cilium.agent.v1 import agent_pb2

from cilium_cli.connecting import agent
from cilium_cli.outputs import emit, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cilium_cli.targets import Target

_TIMEOUT_S = 60.0
"""Large maps take seconds to read."""


def dump(
    target: Target, kind: agent_pb2.MapKind, endpoint_id: int = 0, rev_nat: int = 0
) -> list[agent_pb2.MapEntry]:
    """Return all entries of a map, or those of one endpoint or frontend."""
    request = agent_pb2.DumpMapRequest(map=kind, endpoint_id=endpoint_id, rev_nat=rev_nat)
    with agent(target) as stub:
        return [
            entry for part in stub.DumpMap(request, timeout=_TIMEOUT_S) for entry in part.entries
        ]


def emit_entries(output: str, entries: Sequence[Any], render: Callable[[], None]) -> None:
    """Print entries as the format says, or call `render` for people."""
    emit(output, [plain(entry) for entry in entries], render)
