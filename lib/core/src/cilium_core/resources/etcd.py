"""EtcdSource: objects kept in the key-value store, for clusters without Kubernetes.

Each object is one key holding its JSON. The store's revision serves as `resourceVersion`; uid,
creation time and generation are set here as the Kubernetes API would.
"""

from __future__ import annotations

import json
import uuid
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cilium_core.errors import ConflictError, InvalidError, NotFoundError
from cilium_core.kvstore import (
    Delete,
    EventKind,
    KeyValue,
    Put,
    Store,
    absent,
    unchanged,
)
from cilium_core.resources.allocated import with_allocated
from cilium_core.resources.keys import Kind, identify
from cilium_core.resources.model import Applied, Change, Object, ObjectEvent
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from cilium_core.kvstore import Compare

log = get_logger()

_ATTEMPTS = 10
_LARGEST_BYTES = 1_000_000  # etcd refuses requests above 1.5 MiB


class EtcdSource:
    """Implements Source over a Store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def watch(self, kind: Kind) -> AsyncGenerator[ObjectEvent, None]:
        """See Source."""
        seen: dict[str, Object] = {}
        async with aclosing(self._store.watch(kind.prefix)) as events:
            async for event in events:
                if event.kind is EventKind.SYNCED:
                    yield ObjectEvent(Change.SYNCED)
                elif event.kind is EventKind.DELETE:
                    if (last := seen.pop(event.key, None)) is not None:
                        yield ObjectEvent(Change.DELETE, last)
                else:
                    try:
                        item = _decode(kind, event.key, event.value, event.revision)
                    except InvalidError as error:
                        log.error("stored object unreadable", key=event.key, error=str(error))
                        bare = _decode(kind, event.key, b"{}", event.revision)
                        seen.setdefault(event.key, bare)
                        yield ObjectEvent(Change.UNREADABLE, bare, str(error))
                        continue
                    seen[event.key] = item
                    yield ObjectEvent(Change.UPSERT, item)

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """See Source."""
        found = await self._store.get(kind.key(namespace, name))
        if found is None:
            raise _not_found(kind, namespace, name)
        return _decode(kind, found.key, found.value, found.mod_revision)

    async def list(self, kind: Kind, namespace: str = "") -> list[Object]:
        """See Source."""
        prefix = kind.prefix
        if namespace and kind.namespaced:
            prefix += f"{namespace}/"
        items = (await self._store.list_prefix(prefix)).items
        ordered = sorted(items, key=lambda item: kind.from_key(item.key))
        return [_decode(kind, item.key, item.value, item.mod_revision) for item in ordered]

    async def apply(self, item: Object) -> Applied:
        """See Source."""
        kind, namespace, name = identify(item)
        key = kind.key(namespace, name)
        for _attempt in range(_ATTEMPTS):
            found = await self._store.get(key)
            desired, outcome = _merge(kind, item, namespace, found)
            if outcome is Applied.UNCHANGED:
                return outcome
            value = json.dumps(desired, separators=(",", ":")).encode()
            if len(value) > _LARGEST_BYTES:
                raise InvalidError(
                    f"{kind.name} {name}: {len(value)} bytes as JSON, at most {_LARGEST_BYTES} fit"
                )
            condition = absent(key) if found is None else unchanged(found)
            if await self._store.transaction([condition], [Put(key, value)]):
                return outcome
        raise ConflictError(f"{kind.name} {name}: somebody else changes it all the time; try again")

    async def update_status(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        change: Callable[[Object], Object | None],
        conditions: Sequence[Compare] = (),
    ) -> bool:
        """Give an object another `status` and leave all else as it is, its generation included.

        `change` makes the new status out of the object as it is stored, or None to leave it; it is
        asked again whenever somebody else was faster. Returns whether something was written.
        `conditions` must hold for that. Raises NotFoundError, ConflictError.
        """
        key = kind.key(namespace, name)
        for _attempt in range(_ATTEMPTS):
            found = await self._store.get(key)
            if found is None:
                raise _not_found(kind, namespace, name)
            item = _decode(kind, found.key, found.value, found.mod_revision)
            status = change(item)
            if status is None:
                return False
            item["metadata"].pop("resourceVersion")
            value = json.dumps({**item, "status": status}, separators=(",", ":")).encode()
            if await self._store.transaction([*conditions, unchanged(found)], [Put(key, value)]):
                return True
        raise ConflictError(f"{kind.name} {name}: somebody else changes it all the time; try again")

    async def replace(self, old: Object, new: Object, conditions: Sequence[Compare] = ()) -> bool:
        """Write another version of an object as it was read, if it is still that.

        Returns whether it was: False also when one of `conditions` does not hold. The object's
        metadata stay, but for the generation, which grows with the spec.
        """
        kind, namespace, name = identify(old)
        key = kind.key(namespace, name)
        metadata = dict(old["metadata"])
        unmoved = unchanged(KeyValue(key, b"", 0, int(metadata.pop("resourceVersion"))))
        if _spec(new) != _spec(old):
            metadata["generation"] = int(metadata.get("generation", 0)) + 1
        value = json.dumps({**new, "metadata": metadata}, separators=(",", ":")).encode()
        return await self._store.transaction([*conditions, unmoved], [Put(key, value)])

    async def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """See Source."""
        key = kind.key(namespace, name)
        for _attempt in range(_ATTEMPTS):
            found = await self._store.get(key)
            if found is None:
                raise _not_found(kind, namespace, name)
            if await self._store.transaction([unchanged(found)], [Delete(key)]):
                return
        raise ConflictError(f"{kind.name} {name}: somebody else changes it all the time; try again")


def _not_found(kind: Kind, namespace: str, name: str) -> NotFoundError:
    where = f" in namespace {namespace}" if kind.namespaced else ""
    return NotFoundError(f"there is no {kind.name} {name}{where}")


def _decode(kind: Kind, key: str, value: bytes, revision: int) -> Object:
    try:
        item = json.loads(value)
    except ValueError as error:
        raise InvalidError(f"{key}: not JSON: {error}") from None
    if not isinstance(item, dict) or not isinstance(item.get("metadata", {}), dict):
        raise InvalidError(f"{key}: not an object")
    namespace, name = kind.from_key(key)
    metadata = {**item.get("metadata", {}), "name": name, "resourceVersion": str(revision)}
    if namespace:
        metadata["namespace"] = namespace
    return {**item, "apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}


def _merge(
    kind: Kind, item: Object, namespace: str, found: KeyValue | None
) -> tuple[Object, Applied]:
    """Give the object to store, with what the server side owns, and what storing it means."""
    metadata = {k: v for k, v in item["metadata"].items() if k != "resourceVersion"}
    if namespace:
        metadata["namespace"] = namespace
    desired = {**item, "apiVersion": kind.api_version, "metadata": metadata}
    if found is None:
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault(
            "creationTimestamp", datetime.now(UTC).isoformat(timespec="seconds")[:-6] + "Z"
        )
        metadata["generation"] = 1
        return desired, Applied.CREATED
    before = _decode(kind, found.key, found.value, found.mod_revision)
    before["metadata"].pop("resourceVersion")
    for owned in ("uid", "creationTimestamp", "generation"):
        if owned in before["metadata"]:
            metadata[owned] = before["metadata"][owned]
    if (kind.group or kind.name == "Service") and "status" in before:
        desired.setdefault("status", before["status"])  # whoever judged the object wrote it
    desired = with_allocated(kind.name, desired, before)
    if desired == before:
        return desired, Applied.UNCHANGED
    if _spec(desired) != _spec(before):
        metadata["generation"] = int(before["metadata"].get("generation", 0)) + 1
    return desired, Applied.CONFIGURED


def _spec(item: Object) -> Object:
    return {key: value for key, value in item.items() if key not in ("metadata", "status")}
