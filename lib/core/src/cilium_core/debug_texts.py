"""Debug events of the data plane in words, by kind (enum debug_message) and arguments."""

from __future__ import annotations

import ipaddress

from cilium_core import abi

_STATES = {
    abi.constants["REASON_NEW"]: "new",
    abi.constants["REASON_ESTABLISHED"]: "established",
    abi.constants["REASON_REPLY"]: "reply",
    abi.constants["REASON_RELATED"]: "related",
}
_KINDS = {int(number): name for name, number in abi.enum("debug_message").__members__.items()}


def debug_text(kind: int, first: int, second: int) -> str:
    """Text of a message, worded as Hubble's clients know it; empty for a kind not known."""
    match _KINDS.get(kind):
        case "DEBUG_LOCAL_DELIVERY":
            return f"Attempting local delivery for container id {first} from seclabel {second}"
        case "DEBUG_ENCAP":
            node = ipaddress.IPv4Address(first.to_bytes(4, "little"))
            return f"Encapsulating to node {node} from seclabel {second}"
        case "DEBUG_POLICY_DENIED":
            return f"Policy evaluation would deny packet from {first} to {second}"
        case "DEBUG_CT_VERDICT":
            return f"CT verdict: {_STATES.get(first, 'unknown')}, revnat={second}"
        case "DEBUG_TO_HOST":
            return "Going to host"
        case "DEBUG_TO_STACK":
            return "Going to the stack"
        case _:
            return ""
