# SPDX-License-Identifier: Apache-2.0
"""Finds a flow that was seen."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from flow import flow_pb2
from observer import observer_pb2
from observer.observer_pb2_grpc import ObserverStub

from cilium_cli.connecting import TIMEOUT_S, channel
from cilium_cli.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_cli.targets import Target


def find_flow(uuid: str, targets: Iterable[Target]) -> flow_pb2.Flow:
    """Return the flow with this uuid from the first node that still has it."""
    request = observer_pb2.GetFlowsRequest(
        number=1, whitelist=[flow_pb2.FlowFilter(uuid=[uuid])], first=False
    )
    names = []
    for target in targets:
        names.append(target.name)
        remedy = "is hubble-server running there?"
        with channel(target.hubble, f"hubble-server of {target.name}", remedy) as opened:
            stub = ObserverStub(opened)  # type: ignore[no-untyped-call]
            try:
                for answer in stub.GetFlows(request, timeout=TIMEOUT_S):
                    if answer.HasField("flow"):
                        found: flow_pb2.Flow = answer.flow
                        return found
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise InputError(f"flow: {error.details()}", "hubble observe -o json") from None
                raise
    raise NotFoundError(
        f"flow {uuid!r} is not known to {', '.join(names)}",
        "`hubble observe -o json` shows the uuid of each flow; old flows are forgotten",
    )
