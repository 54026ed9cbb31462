"""Display names of Hubble's numbers, as every Hubble client shows and accepts them.

Constant tables only. Drop reasons are not here: `cilium_core.drops` has the one list of them.
"""

from __future__ import annotations

EVENT_DROP = 1
EVENT_CAPTURE = 3
EVENT_TRACE = 4
EVENT_POLICY_VERDICT = 5
EVENT_TRACE_SOCK = 7
EVENT_AGENT = 130

EVENT_TYPES = {
    "drop": EVENT_DROP,
    "debug": 2,
    "capture": EVENT_CAPTURE,
    "trace": EVENT_TRACE,
    "policy-verdict": EVENT_POLICY_VERDICT,
    "trace-sock": EVENT_TRACE_SOCK,
    "l7": 129,
    "agent": EVENT_AGENT,
}
"""Monitor message types that `--type` accepts by name."""

DIMENSIONS = (
    *("source", "destination", "source-namespace", "destination-namespace", "source-workload"),
    *("destination-workload", "source-identity", "destination-identity", "source-ip"),
    *("destination-ip", "service", "port", "protocol", "verdict", "drop-reason", "type"),
    *("direction", "reply", "node", "policy"),
)
"""What flows can be counted by."""

TRACE_POINTS = {
    0: "to-endpoint",
    1: "to-proxy",
    2: "to-host",
    3: "to-stack",
    4: "to-overlay",
    5: "from-endpoint",
    6: "from-proxy",
    7: "from-host",
    8: "from-stack",
    9: "from-overlay",
    10: "from-network",
    11: "to-network",
    12: "from-crypto",
    13: "to-crypto",
}
"""Subtypes of trace events."""

AGENT_EVENT_SUBTYPES = {
    "unspecified": 0,
    "message": 1,
    "agent-started": 2,
    "endpoint-regenerate-success": 3,
    "endpoint-regenerate-failure": 4,
    "policy-updated": 5,
    "policy-deleted": 6,
    "endpoint-created": 7,
    "endpoint-deleted": 8,
    "ipcache-upserted": 9,
    "ipcache-deleted": 10,
}
"""Subtypes of agent events in the monitor's numbering, which is what filters carry."""

RESERVED_IDENTITIES = {
    0: "unknown",
    1: "host",
    2: "world",
    3: "unmanaged",
    4: "health",
    5: "init",
    6: "remote-node",
    7: "kube-apiserver",
    8: "ingress",
    9: "world-ipv4",
    10: "world-ipv6",
}
"""Identities shown by name; 11 (encrypted overlay) has none."""

POLICY_MATCH_TYPES = {
    0: "none",
    1: "L3-Only",
    2: "L3-L4",
    3: "L4-Only",
    4: "all",
    5: "L3-Proto",
    6: "Proto-Only",
}
"""What in a policy decided, by `policy_match_type`."""

SOCKET_TRANSLATION_POINTS = {
    1: "pre-xlate-fwd",
    2: "post-xlate-fwd",
    3: "pre-xlate-rev",
    4: "post-xlate-rev",
}
"""Points of socket load balancing, by `sock_xlate_point`."""


def trace_point(number: int) -> str:
    """Name of a trace point; an unknown one is told by its number."""
    number &= 0xFF
    return TRACE_POINTS.get(number, str(number))


def drop_reason(number: int) -> str:
    """Text of a drop event's subtype; an unknown one is told by its number and no extension.

    That of the kernel's own drops is unknown to Hubble's client: their summary says why.
    """
    from cilium_core import drops

    number &= 0xFF
    known = number in drops.texts and number != drops.DropReason["KERNEL"]
    return drops.texts[number] if known else f"{number}, 0"
