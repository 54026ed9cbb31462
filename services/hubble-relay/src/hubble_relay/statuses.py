"""Messages of the relay itself in a stream of flows: which nodes it covers, and what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from observer import observer_pb2
from relay import relay_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc.aio

ERROR_WINDOW_S = 10.0
"""For how long equal errors are gathered into one message."""

_CODE_NAMES = {
    "CANCELLED": "Canceled",
    "INVALID_ARGUMENT": "InvalidArgument",
    "DEADLINE_EXCEEDED": "DeadlineExceeded",
    "NOT_FOUND": "NotFound",
    "ALREADY_EXISTS": "AlreadyExists",
    "PERMISSION_DENIED": "PermissionDenied",
    "RESOURCE_EXHAUSTED": "ResourceExhausted",
    "FAILED_PRECONDITION": "FailedPrecondition",
    "ABORTED": "Aborted",
    "OUT_OF_RANGE": "OutOfRange",
    "UNIMPLEMENTED": "Unimplemented",
    "INTERNAL": "Internal",
    "UNAVAILABLE": "Unavailable",
    "DATA_LOSS": "DataLoss",
    "UNAUTHENTICATED": "Unauthenticated",
}


def node_status(
    state: int, names: Sequence[str], own_name: str, now_ns: int, message: str = ""
) -> bytes:
    """An encoded answer of GetFlows that tells the state of nodes."""
    response = observer_pb2.GetFlowsResponse(
        node_status=relay_pb2.NodeStatusEvent(
            state_change=state,  # type: ignore[arg-type]  # an enum's number
            node_names=names,
            message=message,
        ),
        node_name=own_name,
    )
    response.time.FromNanoseconds(now_ns)
    return response.SerializeToString()


def error_text(error: grpc.aio.AioRpcError) -> str:
    """What a peer's error reads like: its bare text if it is a server's own, else with the code."""
    code = error.code().name
    details = error.details() or ""
    if code == "UNKNOWN":
        return details
    return f"rpc error: code = {_CODE_NAMES.get(code, code)} desc = {details}"


class ErrorGathering:
    """Errors with equal texts made into one message.

    Pure: times in seconds come in as arguments. What comes out is a text and the nodes it is about.
    """

    def __init__(self, window_s: float = ERROR_WINDOW_S) -> None:
        self._window_s = window_s
        self._text = ""
        self._nodes: list[str] = []
        self._due_s = 0.0

    def add(self, text: str, node: str, now_s: float) -> tuple[str, list[str]] | None:
        """Take an error in; gives the earlier one if this is another."""
        before = None
        if self._nodes and text != self._text:
            before = self.flush()
        if not self._nodes:
            self._due_s = now_s + self._window_s
        self._text = text
        self._nodes.append(node)
        return before

    def wait_s(self, now_s: float) -> float | None:
        """When the gathered error is due, in seconds from now; None if there is none."""
        return max(self._due_s - now_s, 0.0) if self._nodes else None

    def flush(self) -> tuple[str, list[str]] | None:
        """The gathered error, which is forgotten here."""
        if not self._nodes:
            return None
        gathered = self._text, self._nodes
        self._text, self._nodes = "", []
        return gathered
