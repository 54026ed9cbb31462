# SPDX-License-Identifier: Apache-2.0
"""Words for the entries of a policy map that only this program shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cilium.agent.v1.agent_pb2 import PolicyEntry


def verdict_text(entry: PolicyEntry) -> str:
    """Return `Allow`, `Deny`, `Default deny`, or `Audit` for what is reported and let pass."""
    if entry.deny:
        if not entry.precedence & 0xFF and not entry.audit:
            return "Default deny"
        return "Audit" if entry.audit else "Deny"
    return "Allow"


def proxy_text(entry: PolicyEntry) -> str:
    """Return the proxy's port, `NONE` without a redirect, `waiting` while it has no port."""
    if not entry.redirect:
        return "NONE"
    return str(entry.proxy_port) if entry.proxy_port else "waiting"
