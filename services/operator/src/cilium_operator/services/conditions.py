"""Conditions in the status of an object: what holds, since when, and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cilium_operator.services.reading import mapping, mappings

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition; `status` is True, False or Unknown."""

    type: str
    status: str
    reason: str
    message: str = ""

    @property
    def bad(self) -> bool:
        """Whether it says that something is not as it should be."""
        return self.status == "False"


def with_conditions(
    status: Any, wanted: Iterable[Condition], dropped: Iterable[str] = (), now: str = ""
) -> dict[str, Any]:
    """A status with these conditions and without those of the `dropped` types.

    The time of one moves only when its status changes; `now` is the present one by default.
    """
    old = mapping(status)
    before = {str(one.get("type")): one for one in mappings(old.get("conditions"))}
    after = {name: one for name, one in before.items() if name not in set(dropped)}
    for condition in wanted:
        known = before.get(condition.type, {})
        same = known.get("status") == condition.status
        after[condition.type] = {
            "type": condition.type,
            "status": condition.status,
            "lastTransitionTime": known.get("lastTransitionTime") if same else now or present(),
            "reason": condition.reason,
            "message": condition.message,
        }
    result = {**old, "conditions": list(after.values())}
    if not after:
        del result["conditions"]
    return result


def has(status: Any, kind: str, value: str) -> bool:
    """Whether a status has the condition, with this status."""
    return any(
        one.get("type") == kind and one.get("status") == value
        for one in mappings(mapping(status).get("conditions"))
    )


def present() -> str:
    """The time as objects carry it."""
    return datetime.now(UTC).isoformat(timespec="seconds")[:-6] + "Z"
