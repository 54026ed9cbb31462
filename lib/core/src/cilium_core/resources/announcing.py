"""Events: what happened to an object, as an Event object that lives for an hour.

One event stands for all that is the same about an object; it is counted up. The operator's leader
removes those that nothing was added to for an hour, whoever wrote them.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from cilium_core.kvstore import Delete, unchanged
from cilium_core.resources.keys import kind_of

if TYPE_CHECKING:
    from cilium_core.kvstore import Store
    from cilium_core.resources.model import Object

LIFETIME: Final = timedelta(hours=1)
_LONGEST_MESSAGE: Final = 1024


class Announcer:
    """Writes events; one per process. `component` is the program, `host` its node if it has one."""

    def __init__(self, store: Store, component: str, host: str = "") -> None:
        self._store = store
        self._kind = kind_of("Event")
        self._source = {"component": component} | ({"host": host} if host else {})

    async def announce(self, item: Object, reason: str, message: str, times: int = 1) -> None:
        """Tell what is to be known about an object, and how often. Raises what the store does."""
        metadata = item["metadata"]
        namespace = metadata.get("namespace") or "default"
        text = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"
        subject = f"{item['kind']}/{metadata['name']}/{reason}/{text}"
        digest = hashlib.sha256(subject.encode()).hexdigest()[:16]
        name = f"{metadata['name'][:200]}.{digest}"
        key = self._kind.key(namespace, name)
        now = _text_of(datetime.now(UTC))
        found = await self._store.get(key)
        earlier = _read(found.value) if found is not None else {}
        first, count = earlier.get("firstTimestamp", now), earlier.get("count", 0)
        event: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": item["apiVersion"],
                "kind": item["kind"],
                "name": metadata["name"],
                "namespace": metadata.get("namespace", ""),
                "uid": metadata.get("uid", ""),
            },
            "type": "Warning",
            "reason": reason,
            "message": text,
            "source": self._source,
            "firstTimestamp": first,
            "lastTimestamp": now,
            "count": (count if isinstance(count, int) else 0) + times,
        }
        value = json.dumps(event, separators=(",", ":")).encode()
        await self._store.put(key, value)

    async def sweep(self, now: datetime | None = None) -> int:
        """Remove old events; returns how many. Raises what the store does."""
        limit = _text_of((now or datetime.now(UTC)) - LIFETIME)
        removed = 0
        for found in (await self._store.list_prefix(self._kind.prefix)).items:
            last = _read(found.value).get("lastTimestamp")
            if not isinstance(last, str) or last < limit:
                removed += await self._store.transaction([unchanged(found)], [Delete(found.key)])
        return removed


def _text_of(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds")[:-6] + "Z"


def _read(value: bytes) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
