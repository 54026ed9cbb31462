"""The columns of a flow: the schema shared by decoder, ring, filters and encoder.

A batch of flows is a mapping from column name to array, all of one length. What a flow says about
its two ends is in rows of `metadata.rows`, so most columns are numbers of one to four bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
from cilium_core import abi
from numpy.typing import NDArray

Batch = Mapping[str, NDArray[Any]]


class Selectable(Protocol):
    """What has columns by name."""

    def __getitem__(self, name: str, /) -> NDArray[Any]:
        """One column."""


SCHEMA: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(kind)
    for name, kind in {
        "time_ns": "i8",  # since the epoch, unique and increasing
        "uuid_high": "u8",  # the 16 bytes as two little-endian numbers
        "uuid_low": "u8",
        "source_high": "u8",  # addresses likewise; IPv4 in the first four bytes
        "source_low": "u8",
        "destination_high": "u8",
        "destination_low": "u8",
        "translated_high": "u8",  # source after translation, zero when there was none;
        "translated_low": "u8",  # of TYPE_SOCK the socket's cookie, and the id of its cgroup
        "source_row": "u4",  # of metadata.rows
        "destination_row": "u4",
        "source_service": "u4",
        "destination_service": "u4",
        "source_names": "u4",
        "destination_names": "u4",
        "rules": "u4",
        "interface": "u4",
        "tunnel_peer": "u4",  # bytes of the IPv4 address
        "bytes": "u4",
        "packets": "u4",
        "flags": "u2",  # enum event_flag
        "endpoint": "u2",
        "source_port": "u2",  # host order; ICMP: type
        "destination_port": "u2",  # ICMP: code
        "line": "u2",  # of a drop of FILE_KERNEL its reason
        "ethertype": "u2",
        "proxy_port": "u2",
        "kind": "u1",  # KIND_*
        "type": "u1",  # monitor message type
        "subtype": "u1",
        "trace_reason": "u1",  # flow.TraceReason
        "protocol": "u1",
        "verdict": "u1",  # flow.Verdict
        "direction": "u1",  # flow.TrafficDirection
        "reply": "u1",  # REPLY_*
        "drop_reason": "u1",
        "tcp_flags": "u1",
        "match": "u1",
        "file": "u1",
        "l7": "u1",  # L7_*
        "source_mac": "V6",
        "destination_mac": "V6",
    }.items()
}

FLOW_BYTES: Final = sum(kind.itemsize for kind in SCHEMA.values())
"""Bytes one flow takes in the ring."""

KIND_FLOW: Final = 0
KIND_RECORD: Final = 1
"""A flow with a message beside its columns: what a proxy saw."""
KIND_LOST: Final = 2
KIND_AGENT: Final = 3
KIND_DEBUG: Final = 4

REPLY_NO: Final = 0
REPLY_YES: Final = 1
REPLY_UNKNOWN: Final = 2

# What a record is about; 0 for flows without one.
L7_NONE: Final = 0
L7_OTHER: Final = 1
L7_DNS: Final = 2
L7_HTTP: Final = 3
L7_KAFKA: Final = 4
L7_KINDS: Final = {"dns": L7_DNS, "http": L7_HTTP, "kafka": L7_KAFKA}
"""By the name of the message of flow.Layer7."""

# Monitor message types, `event_type.type` of a flow.
TYPE_DROP: Final = 1
TYPE_DEBUG: Final = 2
TYPE_CAPTURE: Final = 3
TYPE_TRACE: Final = 4
TYPE_VERDICT: Final = 5
TYPE_SOCK: Final = 7
TYPE_L7: Final = 129
TYPE_AGENT: Final = 130


FILE_SOCK: Final = abi.constants["FILE_SOCK"]
FILE_KERNEL: Final = abi.constants["FILE_KERNEL"]
"""In the column `file` of a drop: the kernel's own, `line` is one of `cilium_core.drops`."""


def without_packets(batch: Selectable) -> NDArray[np.bool_]:
    """Flows that no packet stands behind, as they are of sockets."""
    of_sockets: NDArray[np.bool_] = batch["type"] == TYPE_SOCK
    of_sockets |= (batch["type"] == TYPE_DROP) & (batch["file"] == FILE_SOCK)
    return of_sockets


def zeros(count: int) -> dict[str, NDArray[Any]]:
    """A batch of `count` flows of nothing but zeroes."""
    return {name: np.zeros(count, dtype=kind) for name, kind in SCHEMA.items()}
