# SPDX-License-Identifier: Apache-2.0
"""Tells whether the lab's services are ready, and waits until they are.

Each check answers "" or, in one line, what is missing. The checks speak the services' own health
and status interfaces; nothing is read out of logs.
"""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

from cilium_cli.errors import DeadlineError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cilium_cli.lab.components import Component
    from cilium_cli.lab.etcd import Gateway
    from cilium_cli.lab.layouts import Layout, NodeLayout

LEADER_KEY = "cilium/state/leader/v1/operator"
_POLL_S = 0.05
_ANSWER_S = 1.0


def etcd_ready(store: Gateway) -> str:
    """Whether etcd answers with a quorum."""
    return "" if store.healthy() else "etcd does not answer yet"


def operator_ready(path: Path, store: Gateway, name: str) -> str:
    """Whether this operator serves, and some operator holds the lead."""
    trouble = grpc_serving(path, name)
    if trouble:
        return trouble
    try:
        return "" if store.get(LEADER_KEY) else "no operator leads yet"
    except UnreachableError as error:
        return error.message


def agent_ready(node: NodeLayout) -> str:
    """Whether the agent would serve a pod now: what the CNI verb STATUS asks."""
    try:
        status, body = _http_get(node.run / "cni.sock", "/v1/cni/status")
    except OSError as error:
        return f"the agent of {node.name} does not answer: {error.strerror or error}"
    if status != 200:
        return f"the agent of {node.name}: {_message(body) or f'HTTP status {status}'}"
    if not any(node.cni_config.glob("*.conflist")):
        return f"the agent of {node.name} has not written the CNI configuration"
    return ""


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body).get("msg", ""))
    except (ValueError, AttributeError):
        return ""


def _http_get(path: Path, target: str) -> tuple[int, bytes]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_S)
        connection.connect(str(path))
        connection.sendall(
            f"GET {target} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode()
        )
        data = b""
        while piece := connection.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    try:
        return int(head.split()[1]), body
    except (IndexError, ValueError):
        raise OSError("its answer is not HTTP") from None


def grpc_serving(path: Path, what: str) -> str:
    """Whether the standard health service on the unix socket says SERVING."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    if not path.exists():
        return f"{what} has not opened {path.name}"
    try:
        with grpc.insecure_channel(f"unix:{path}") as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_ANSWER_S
            )
    except grpc.RpcError as error:
        return f"{what}: {error.code().name.lower().replace('_', ' ')}"
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return "" if serving else f"{what} is not serving yet"


def relay_ready(lab: Layout, nodes: int) -> str:
    """Whether the relay is healthy and connected to every node."""
    import grpc
    from observer import observer_pb2, observer_pb2_grpc

    trouble = grpc_serving(lab.relay_socket, "the relay")
    if trouble:
        return trouble
    try:
        with grpc.insecure_channel(f"unix:{lab.relay_socket}") as channel:
            stub = observer_pb2_grpc.ObserverStub(channel)  # type: ignore[no-untyped-call]
            answer = stub.ServerStatus(observer_pb2.ServerStatusRequest(), timeout=_ANSWER_S)
    except grpc.RpcError as error:
        return f"the relay: {error.code().name.lower().replace('_', ' ')}"
    connected = answer.num_connected_nodes.value
    return "" if connected == nodes else f"the relay is connected to {connected} of {nodes} nodes"


def wait(
    checks: dict[str, Callable[[], str]],
    components: list[Component],
    limit_s: float,
    done: Callable[[str], None],
) -> None:
    """Poll until every check passes, calling `done` with the name of each that does.

    Raises DeadlineError naming what is missing, or at once when a component died.
    """
    deadline = time.monotonic() + limit_s
    waiting = dict(checks)
    while True:
        troubles = {name: check() for name, check in waiting.items()}
        for name, trouble in troubles.items():
            if not trouble:
                del waiting[name]
                done(name)
        if not waiting:
            return
        missing = "; ".join(trouble for trouble in troubles.values() if trouble)
        dead = [item for item in components if item.pid() is None]
        if dead:
            raise DeadlineError(
                f"{', '.join(item.name for item in dead)} ended while starting ({missing})",
                "\n  ".join(_tail(item) for item in dead),
            )
        if time.monotonic() > deadline:
            raise DeadlineError(f"not ready after {limit_s:g} s: {missing}")
        time.sleep(_POLL_S)


def _tail(component: Component, lines: int = 5) -> str:
    try:
        last = component.log.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        last = []
    return "\n  ".join([f"{component.log}:", *last])
