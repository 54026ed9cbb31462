"""From debug events of the data plane to messages: what the programs say of single packets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cilium_core.debug_texts import debug_text
from flow import flow_pb2

if TYPE_CHECKING:
    from hubble_server.metadata.directory import Directory


def debug_event(event: Any, directory: Directory) -> flow_pb2.DebugEvent:
    """Message of one `struct event` of type EVENT_DEBUG."""
    kind, endpoint = int(event["subtype"]), int(event["endpoint"])
    first, second = int(event["src_identity"]), int(event["dst_identity"])
    message = flow_pb2.DebugEvent(
        type=kind,  # type: ignore[arg-type]
        message=debug_text(kind, first, second),
    )
    if endpoint:
        message.source.ID = endpoint
        message.source.namespace, message.source.pod_name = directory.pod_of(endpoint)
    message.hash.value = int(event["ifindex"])
    message.arg1.value = first
    message.arg2.value = second
    message.arg3.value = int(event["dst_id"])
    message.cpu.value = int(event["cookie"])
    return message
