"""Policies that only tell what they would refuse.

The annotation `policy.cilium.io/audit-mode: "true"` on a policy object, or on the namespace that it
is in, makes every rule of it audited.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cilium_core.policy.findings import Findings
    from cilium_core.policy.rules import Policy

ANNOTATION: Final = "policy.cilium.io/audit-mode"


def is_audited(annotations: Mapping[str, str] | None) -> bool:
    """Whether the annotations of an object or a namespace ask for auditing."""
    return (annotations or {}).get(ANNOTATION) == "true"


def check(annotations: Mapping[str, str] | None, findings: Findings) -> bool:
    """Whether a policy object is audited; a value that says neither is warned about."""
    value = (annotations or {}).get(ANNOTATION, "false")
    if value not in {"true", "false"}:
        findings.warn(
            f"metadata.annotations.{ANNOTATION}", f"{value[:40]!r} is neither 'true' nor 'false'"
        )
    return value == "true"


def audited(policy: Policy) -> Policy:
    """The policy with every rule audited; one that is already stays the same object."""
    if all(rule.audit for rule in policy.rules):
        return policy
    return replace(policy, rules=tuple(replace(rule, audit=True) for rule in policy.rules))
