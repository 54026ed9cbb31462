# SPDX-License-Identifier: Apache-2.0
"""Opens gRPC channels to the services, and turns gRPC failures into the command line's errors."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

# Nothing here forks with a channel open; the handlers for it cost time and print noise.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from cilium.agent.v1.agent_pb2_grpc import AgentServiceStub
from cilium.flows.v1.flows_pb2_grpc import FlowsServiceStub
from cilium_core import traces

from cilium_cli.errors import (
    CommandError,
    DeadlineError,
    InputError,
    NotFoundError,
    UnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cilium_cli.targets import Target

TIMEOUT_S = 10.0
"""Deadline of a question an agent answers from what it knows."""

_OPTIONS = (("grpc.max_receive_message_length", 64 << 20),)

_KINDS: dict[grpc.StatusCode, type[CommandError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InputError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.UNAVAILABLE: UnreachableError,
}


@contextmanager
def channel(socket: Path, service: str, remedy: str) -> Iterator[grpc.Channel]:
    """Open a channel to a unix socket; gRPC errors inside the block become CommandErrors."""
    try:
        with grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS) as opened:
            yield traces.traced(opened)
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE:
            raise UnreachableError(
                f"the {service} does not answer on {socket}: {_reason(socket, details)}", remedy
            ) from error
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise DeadlineError(f"the {service} on {socket} did not answer in time") from error
        kind = _KINDS.get(code, CommandError)
        raise kind(details or f"the {service} failed: {code.name}") from error


def _reason(socket: Path, details: str) -> str:
    if not socket.exists():
        return "no such socket"
    return details.rpartition("unix:")[2].partition(": ")[2] or details


@contextmanager
def agent(target: Target) -> Iterator[AgentServiceStub]:
    """Speak with the node's agent."""
    remedy = "is cilium-agent running there? choose another with --socket, or --lab and --node"
    with channel(target.agent, f"agent of {target.name}", remedy) as opened:
        yield AgentServiceStub(opened)  # type: ignore[no-untyped-call]


@contextmanager
def flows(target: Target) -> Iterator[FlowsServiceStub]:
    """Speak with the node's hubble-server."""
    remedy = "is hubble-server running there?"
    with channel(target.hubble, f"hubble-server of {target.name}", remedy) as opened:
        yield FlowsServiceStub(opened)  # type: ignore[no-untyped-call]
