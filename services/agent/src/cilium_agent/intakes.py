"""Policy objects on their way into the engine: what was noted, what is refused, what was accepted.

An object that cannot be read or is no valid policy is refused: the version accepted before stays in
force, from the engine or, after a restart, from disk. Used by `policies` alone, on the event loop;
`take_up` is one part of its pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cilium_core.policy import Policy, PolicyEngine, PolicyError, PolicyRef, parse_cidr_group
from cilium_core.policy.files import file_of, in_file
from cilium_core.policy.groups import KIND as CIDR_GROUP_KIND
from cilium_core.telemetry import counter, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_agent.accepted import AcceptedObjects
    from cilium_agent.feeds import Feed
    from cilium_agent.prefixing import Prefixes

log = get_logger()
T = TypeVar("T")
Document = Mapping[str, Any]

_OF_THE_STORE = ("resourceVersion", "managedFields")

CHANGES = counter("cilium_policy_change_total", "Policy objects taken up or refused.", "outcome")


@dataclass(frozen=True)
class RefusedPolicy:
    """A policy object that is not enforced as written: invalid, or valid and `unsupported`."""

    object: Document
    error: str
    unsupported: bool = False


class PolicyObjects:
    """The objects. `refused` has those that are not in force as they are stored."""

    def __init__(
        self, engine: PolicyEngine, prefixes: Prefixes, accepted: AcceptedObjects, feed: Feed
    ) -> None:
        """Take the parts; `accepted` has what an earlier run accepted."""
        self.refused: dict[PolicyRef, RefusedPolicy] = {}
        self._engine = engine
        self._prefixes = prefixes
        self._accepted = accepted
        self._feed = feed
        self._unreadable: dict[PolicyRef, RefusedPolicy] = {}
        self._earlier = accepted.load()
        self._noted: dict[PolicyRef, Document | None] = {}

    @property
    def earlier(self) -> frozenset[PolicyRef]:
        """What an earlier run accepted and this one has not heard of yet."""
        return frozenset(self._earlier)

    @property
    def pending(self) -> bool:
        """Whether something is noted that was not carried out yet."""
        return bool(self._noted)

    def upsert(self, ref: PolicyRef, document: Document) -> None:
        """Note an object as it is now; one of which only the status is new is as it was."""
        self._unreadable.pop(ref, None)
        if ref in self._noted or _meaning(document) != _meaning(self._last(ref)):
            self._noted[ref] = document

    def delete(self, ref: PolicyRef) -> None:
        """Note that an object is gone."""
        self._unreadable.pop(ref, None)
        self._noted[ref] = None

    def doubt(self, ref: PolicyRef, document: Document, error: str) -> None:
        """Note that what is stored is no object; an earlier version stays in force."""
        self._unreadable[ref] = RefusedPolicy(document, error)
        if ref in self._earlier:
            self._noted.setdefault(ref, self._earlier[ref])

    def disregard(self, ref: PolicyRef, document: Document, error: str) -> None:
        """Note an object of a kind that is not enforced yet."""
        self.refused[ref] = RefusedPolicy(document, error, unsupported=True)

    def forget(self, ref: PolicyRef) -> None:
        """Note that such an object, or one in doubt that was never accepted, is gone."""
        self._unreadable.pop(ref, None)
        self.refused.pop(ref, None)

    async def take_up(self) -> None:
        """Carry out what was noted; what fails to reach the kernel stays noted."""
        noted, self._noted = self._noted, {}
        try:
            if noted:
                await self._take_up(noted)
            self.refused.update(self._unreadable)
        except BaseException:
            self._noted = {**noted, **self._noted}
            raise

    async def forget_earlier(self) -> None:
        """Let go of earlier versions of objects that the store no longer has."""
        for ref in [ref for ref in self._earlier if ref not in self.refused]:
            del self._earlier[ref]
            await asyncio.to_thread(self._accepted.forget, ref)

    async def _take_up(self, noted: Mapping[PolicyRef, Document | None]) -> None:
        for ref, document in noted.items():
            if ref.kind == CIDR_GROUP_KIND:
                await self._change_group(ref, document)
        parsed: dict[PolicyRef, Policy | None] = {}
        for ref, document in noted.items():
            if ref.kind == CIDR_GROUP_KIND:
                continue
            if document is None:
                parsed[ref] = None
                self.refused.pop(ref, None)
                continue
            policy = await self._read(ref, document, partial(self._parse, ref))
            if policy is not None:
                parsed[ref] = policy
        await self._prefixes.add(
            {prefix for policy in parsed.values() if policy for prefix in policy.prefixes}
        )
        for ref, policy in parsed.items():
            self._change_policy(ref, policy)
        await self._prefixes.settle()
        await self._keep(noted)

    def _last(self, ref: PolicyRef) -> Document | None:
        """The object as it was when it was last taken up or refused."""
        if ref in self.refused:
            return self.refused[ref].object
        policy = self._engine.repository.get(ref)
        return None if policy is None else policy.source

    def _parse(self, ref: PolicyRef, document: Document) -> Policy:
        policy = self._engine.parse(document)
        return in_file(policy, ref) if file_of(ref) else policy

    async def _read(
        self, ref: PolicyRef, document: Document, parse: Callable[[Document], T]
    ) -> T | None:
        """Parse an object; in place of one that is refused, what an earlier run accepted.

        A large one takes its time, in a thread.
        """
        try:
            value = await asyncio.to_thread(parse, document)
        except PolicyError as error:
            self._refuse(ref, document, error)
            earlier = self._earlier.get(ref)
            try:
                return None if earlier is None else await asyncio.to_thread(parse, earlier)
            except PolicyError:
                return None
        self.refused.pop(ref, None)
        return value

    async def _keep(self, noted: Mapping[PolicyRef, Document | None]) -> None:
        """Have the disk know what is in force."""
        for ref, document in noted.items():
            if document is None:
                self._earlier.pop(ref, None)
                await asyncio.to_thread(self._accepted.forget, ref)
            elif ref not in self.refused and self._earlier.pop(ref, None) != document:
                await asyncio.to_thread(self._accepted.keep, ref, document)

    async def _change_group(self, ref: PolicyRef, document: Document | None) -> None:
        """Have the policies that refer to a CIDR group follow it."""
        if document is None:
            self.refused.pop(ref, None)
            change = self._engine.delete_cidr_group(ref.name)
        else:
            group = await self._read(ref, document, parse_cidr_group)
            if group is None:
                return
            for warning in group.warnings:
                log.warning("policy warning", policy=str(ref), warning=warning)
            await self._prefixes.add(self._engine.group_prefixes(group))
            change = self._engine.upsert_cidr_group(group)
        await self._prefixes.settle()
        CHANGES.add(1, "success")
        log.info(
            "CIDR group deleted" if document is None else "CIDR group taken up",
            group=ref.name,
            revision=change.revision,
            policies=len(change.policies),
            endpoints=len(change.affected),
        )

    def _change_policy(self, ref: PolicyRef, policy: Policy | None) -> None:
        if policy is None:
            change = self._engine.delete_policy(*ref)
        else:
            change = self._engine.upsert_policy(policy)
            for warning in policy.warnings:
                log.warning("policy warning", policy=str(ref), warning=warning)
        CHANGES.add(1, "success")
        log.info(
            "policy deleted" if policy is None else "policy taken up",
            policy=str(ref),
            revision=change.revision,
            endpoints=len(change.affected),
        )
        labels = policy.rules[0].origin.labels if policy is not None and policy.rules else ()
        self._feed.policy(
            labels,
            change.revision,
            len(policy.rules) if policy is not None else 0,
            deleted=policy is None,
        )

    def _refuse(self, ref: PolicyRef, document: Document, error: PolicyError) -> None:
        CHANGES.add(1, "fail")
        self.refused[ref] = RefusedPolicy(document, str(error))
        log.error("policy refused; an earlier version stays in force", error=str(error))


def _meaning(document: Document | None) -> Document | None:
    """The part of an object that a policy is read from."""
    if document is None:
        return None
    meaning = {key: value for key, value in document.items() if key != "status"}
    if isinstance(metadata := meaning.get("metadata"), Mapping):
        fields = {key: value for key, value in metadata.items() if key not in _OF_THE_STORE}
        meaning["metadata"] = fields
    return meaning
