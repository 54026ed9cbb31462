"""Judges stored policies: how each fares is written into its status, and told in events.

The leader watches every kind of policy and writes the condition `Valid`, true or false, with all
errors (or warnings) as its message. Where some node reports that it does not enforce an object as
written, the condition `Enforced` is false and names the nodes; it becomes true when none does any
more, and is not there before. An object whose conditions say already what is to be said is not
written; the time of a condition moves only when its status flips. Nothing else of the object is
touched, and whoever writes at the same time loses nothing.

A policy is judged by the same code that the agents read it with, under the options that this
operator was given; it should have the agents' options.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cilium_core.errors import InvalidError, NotFoundError
from cilium_core.kvstore import EventKind
from cilium_core.policy.errors import PolicyError
from cilium_core.policy.parsing import POLICY_KINDS, parse
from cilium_core.records import POLICY_FINDINGS, PolicyFindingsRecord
from cilium_core.resources.etcd import EtcdSource
from cilium_core.resources.keys import kind_of
from cilium_core.resources.model import Change
from cilium_core.telemetry import counter, gauge, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cilium_core.kvstore import Compare, Store
    from cilium_core.policy.options import PolicyOptions
    from cilium_core.records import PolicyFinding
    from cilium_core.resources.announcing import Announcer
    from cilium_core.resources.keys import Kind
    from cilium_core.resources.model import Object

log = get_logger()

POLICIES = gauge("cilium_operator_policies", "Stored policies by whether they are valid.", "valid")
JUDGEMENTS = counter("cilium_operator_policy_validations_total", "Policies judged.", "outcome")

VALID: Final = "Valid"
ENFORCED: Final = "Enforced"
_ACCEPTED: Final = "accepted"
_REFUSALS: Final = ("refused", "unsupported")
_LONGEST_MESSAGE: Final = 8192

Place = tuple[str, str, str]
"""Kind, namespace and name of an object."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One condition of an object: whether it holds, and what is to be said about it."""

    holds: bool
    message: str
    condition: str = VALID

    @property
    def status(self) -> str:
        """The status of the condition."""
        return str(self.holds)


def judge(item: Object, options: PolicyOptions) -> Judgement:
    """Judge a policy object."""
    try:
        policy = parse(item, options)
    except PolicyError as error:
        message = "; ".join(str(problem) for problem in error.problems)
        return Judgement(False, message[:_LONGEST_MESSAGE])
    said = "; ".join(policy.warnings)
    message = f"{_ACCEPTED}, with warnings: {said}" if said else _ACCEPTED
    return Judgement(True, message[:_LONGEST_MESSAGE])


def judge_enforcement(
    valid: Judgement, findings: Iterable[tuple[str, PolicyFinding]]
) -> Judgement | None:
    """Judge an object by what nodes report about it; None when there is nothing to say.

    That nodes refuse what is not valid goes without saying.
    """
    nodes: dict[tuple[str, str], list[str]] = {}
    for node, finding in findings:
        if valid.holds or finding.reason not in _REFUSALS:
            nodes.setdefault((finding.reason, finding.message), []).append(node)
    if not nodes:
        return None
    said = (
        f"{reason} on {', '.join(sorted(where))}: {message}"
        for (reason, message), where in sorted(nodes.items())
    )
    return Judgement(False, "; ".join(said)[:_LONGEST_MESSAGE], ENFORCED)


def with_conditions(
    status: object, judgements: Iterable[Judgement], now: str
) -> dict[str, Any] | None:
    """A status with judgements as its conditions; None when it says all that already.

    Without a judgement about its enforcement, an object that was not enforced is now.
    """
    old = dict(status) if isinstance(status, dict) else {}
    written = old.get("conditions")
    others = [one for one in written if isinstance(one, dict)] if isinstance(written, list) else []
    wanted = {judgement.condition: judgement for judgement in judgements}
    if ENFORCED not in wanted and any(one.get("type") == ENFORCED for one in others):
        wanted[ENFORCED] = Judgement(True, "every node enforces it", ENFORCED)
    conditions = []
    for name, judgement in wanted.items():
        before = next((one for one in others if one.get("type") == name), {})
        same = before.get("status") == judgement.status
        if same and before.get("message") == judgement.message:
            conditions.append(before)
            continue
        since = before.get("lastTransitionTime", now) if same else now
        conditions.append(
            {
                "type": name,
                "status": judgement.status,
                "lastTransitionTime": since,
                "message": judgement.message,
            }
        )
    conditions += [one for one in others if one.get("type") not in wanted]
    unchanged = {_type(one): one for one in conditions} == {_type(one): one for one in others}
    return None if unchanged else {**old, "conditions": conditions}


def _type(condition: dict[str, Any]) -> str:
    return str(condition.get("type"))


class PolicyJudge:
    """The leader's watch over policies."""

    def __init__(
        self,
        store: Store,
        options: PolicyOptions,
        announcer: Announcer,
        *,
        fence: Callable[[], list[Compare]] = list,
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_pass` is called whenever a kind was judged as far as it was stored."""
        self._store = store
        self._source = EtcdSource(store)
        self._options = options
        self._announcer = announcer
        self._fence = fence
        self._on_pass = on_pass
        self._policies: dict[Place, tuple[Object, Judgement]] = {}
        self._unreadable: set[Place] = set()
        self._findings: dict[str, PolicyFindingsRecord] = {}
        self._findings_known = asyncio.Event()

    async def run(self) -> None:
        """Judge what is stored and what comes, for ever. Raises what the store does."""
        self._policies.clear()
        self._unreadable.clear()
        self._findings.clear()
        self._findings_known.clear()
        try:
            async with asyncio.TaskGroup() as group:
                for name in POLICY_KINDS:
                    group.create_task(self._follow(kind_of(name)))
                group.create_task(self._follow_findings())
        except* Exception as errors:
            raise errors.exceptions[0] from None

    async def _follow(self, kind: Kind) -> None:
        await self._findings_known.wait()  # or what is not enforced would seem to be, for a while
        async with aclosing(self._source.watch(kind)) as events:
            async for event in events:
                if event.change is Change.SYNCED:
                    self._on_pass()
                    continue
                metadata = event.object["metadata"]
                place = (kind.name, str(metadata.get("namespace", "")), str(metadata["name"]))
                self._policies.pop(place, None)
                self._unreadable.discard(place)
                if event.change is Change.UNREADABLE:
                    self._unreadable.add(place)
                    await self._announcer.announce(event.object, "Unreadable", event.error)
                elif event.change is Change.UPSERT:
                    judgement = await asyncio.to_thread(judge, event.object, self._options)
                    JUDGEMENTS.add(1, "valid" if judgement.holds else "invalid")
                    self._policies[place] = event.object, judgement
                    await self._write(place)
                self._count()

    async def _follow_findings(self) -> None:
        """Judge anew what nodes begin or cease to report."""
        async with aclosing(self._store.watch(POLICY_FINDINGS)) as events:
            async for event in events:
                if event.kind is EventKind.SYNCED:
                    self._findings_known.set()
                    continue
                old = self._findings.pop(event.key, None)
                if event.kind is EventKind.PUT:
                    try:
                        self._findings[event.key] = PolicyFindingsRecord.from_json(event.value)
                    except InvalidError as error:
                        log.warning("findings unreadable", key=event.key, error=str(error))
                new = self._findings.get(event.key)
                changed = set(old.findings if old else ()) ^ set(new.findings if new else ())
                for place in {(one.kind, one.namespace, one.name) for one in changed}:
                    if place in self._policies:
                        await self._write(place)

    async def _write(self, place: Place) -> None:
        """Write the conditions of a policy as of now, and tell what is new and bad."""
        item, valid = self._policies[place]
        news: list[Judgement] = []

        def change(current: Object) -> Object | None:
            if current["metadata"].get("generation") != item["metadata"].get("generation"):
                return None  # another event is on its way
            # What nodes report may have changed since this was called.
            enforced = judge_enforcement(valid, self._reports(place))
            judgements = [valid, *([enforced] if enforced is not None else [])]
            status = current.get("status")
            news[:] = [one for one in judgements if with_conditions(status, [one], "") is not None]
            now = datetime.now(UTC).isoformat(timespec="seconds")[:-6] + "Z"
            return with_conditions(status, judgements, now)

        kind = kind_of(place[0])
        try:
            written = await self._source.update_status(kind, *place[1:], change, self._fence())
        except NotFoundError:
            return
        if not written:
            return
        log.info("policy judged", policy=" ".join(place), valid=valid.holds)
        for one in news:
            if not one.holds:
                reason = "Invalid" if one.condition == VALID else "NotEnforced"
                await self._announcer.announce(item, reason, one.message)
            elif one.condition == VALID and one.message != _ACCEPTED:
                await self._announcer.announce(item, "Warning", one.message)

    def _reports(self, place: Place) -> Iterator[tuple[str, PolicyFinding]]:
        for record in self._findings.values():
            for finding in record.findings:
                if (finding.kind, finding.namespace, finding.name) == place:
                    yield record.node, finding

    def _count(self) -> None:
        valid = sum(judgement.holds for _, judgement in self._policies.values())
        invalid = len(self._policies) - valid + len(self._unreadable)
        POLICIES.replace({("true",): valid, ("false",): invalid})
