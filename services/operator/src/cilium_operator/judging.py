"""Judges stored policies: whether each is valid is written into its status, and told in events.

The leader watches every kind of policy and writes the condition `Valid`, true or false, with all
errors (or warnings) as its message. An object whose condition says already what is to be said is
not written; the time of a condition moves only when its status flips. Nothing else of the object is
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

from cilium_core.errors import NotFoundError
from cilium_core.policy.errors import PolicyError
from cilium_core.policy.parsing import POLICY_KINDS, parse
from cilium_core.resources.keys import kind_of
from cilium_core.resources.model import Change
from cilium_core.telemetry import counter, gauge, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.kvstore import Compare
    from cilium_core.policy.options import PolicyOptions
    from cilium_core.resources.etcd import EtcdSource
    from cilium_core.resources.keys import Kind
    from cilium_core.resources.model import Object

    from cilium_operator.announcing import Announcer

log = get_logger()

POLICIES = gauge("cilium_operator_policies", "Stored policies by whether they are valid.", "valid")
JUDGEMENTS = counter("cilium_operator_policy_validations_total", "Policies judged.", "outcome")

VALID: Final = "Valid"
_LONGEST_MESSAGE: Final = 8192


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an object is valid, and what is to be said about it."""

    valid: bool
    message: str

    @property
    def status(self) -> str:
        """The status of the condition."""
        return str(self.valid)


def judge(item: Object, options: PolicyOptions) -> Judgement:
    """Judge a policy object."""
    try:
        policy = parse(item, options)
    except PolicyError as error:
        message = "; ".join(str(problem) for problem in error.problems)
        return Judgement(valid=False, message=message[:_LONGEST_MESSAGE])
    said = "; ".join(policy.warnings)
    message = f"accepted, with warnings: {said}" if said else "accepted"
    return Judgement(valid=True, message=message[:_LONGEST_MESSAGE])


def with_condition(status: object, judgement: Judgement, now: str) -> dict[str, Any] | None:
    """A status with the judgement as its condition; None when it says that already."""
    old = dict(status) if isinstance(status, dict) else {}
    written = old.get("conditions")
    others = [one for one in written if isinstance(one, dict)] if isinstance(written, list) else []
    before = next((one for one in others if one.get("type") == VALID), None)
    same = before is not None and before.get("status") == judgement.status
    if before is not None and same and before.get("message") == judgement.message:
        return None
    since = before.get("lastTransitionTime", now) if before is not None and same else now
    condition = {
        "type": VALID,
        "status": judgement.status,
        "lastTransitionTime": since,
        "message": judgement.message,
    }
    rest = [one for one in others if one is not before]
    return {**old, "conditions": [condition, *rest]}


class PolicyJudge:
    """The leader's watch over policies."""

    def __init__(
        self,
        source: EtcdSource,
        options: PolicyOptions,
        announcer: Announcer,
        *,
        fence: Callable[[], list[Compare]] = list,
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_pass` is called whenever a kind was judged as far as it was stored."""
        self._source = source
        self._options = options
        self._announcer = announcer
        self._fence = fence
        self._on_pass = on_pass
        self._judged: dict[tuple[str, str, str], bool] = {}

    async def run(self) -> None:
        """Judge what is stored and what comes, for ever. Raises what the store does."""
        try:
            async with asyncio.TaskGroup() as group:
                for name in POLICY_KINDS:
                    group.create_task(self._follow(kind_of(name)))
        except* Exception as errors:
            raise errors.exceptions[0] from None

    async def _follow(self, kind: Kind) -> None:
        async with aclosing(self._source.watch(kind)) as events:
            async for event in events:
                if event.change is Change.SYNCED:
                    self._on_pass()
                    continue
                metadata = event.object["metadata"]
                place = (kind.name, str(metadata.get("namespace", "")), str(metadata["name"]))
                if event.change is Change.DELETE:
                    self._judged.pop(place, None)
                elif event.change is Change.UNREADABLE:
                    self._judged[place] = False
                    await self._announcer.announce(event.object, "Unreadable", event.error)
                else:
                    await self._take_up(kind, place, event.object)
                self._count()

    async def _take_up(self, kind: Kind, place: tuple[str, str, str], item: Object) -> None:
        judgement = await asyncio.to_thread(judge, item, self._options)
        self._judged[place] = judgement.valid
        JUDGEMENTS.add(1, "valid" if judgement.valid else "invalid")
        generation = item["metadata"].get("generation")

        def change(current: Object) -> Object | None:
            if current["metadata"].get("generation") != generation:
                return None  # another event is on its way
            now = datetime.now(UTC).isoformat(timespec="seconds")[:-6] + "Z"
            return with_condition(current.get("status"), judgement, now)

        try:
            written = await self._source.update_status(
                kind, place[1], place[2], change, self._fence()
            )
        except NotFoundError:
            return
        if written:
            log.info("policy judged", policy=" ".join(place), valid=judgement.valid)
            if not judgement.valid:
                await self._announcer.announce(item, "Invalid", judgement.message)
            elif judgement.message != "accepted":
                await self._announcer.announce(item, "Warning", judgement.message)

    def _count(self) -> None:
        valid = sum(self._judged.values())
        POLICIES.replace({("true",): valid, ("false",): len(self._judged) - valid})
