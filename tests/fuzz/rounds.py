"""Rounds: a set of policies, many packets, a change, many packets more.

A round is told by its seed and the steps it made, so that a disagreement can be played again, with
less and less in it.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import yaml
from cilium_core.policy import EnforcementMode, PolicyError, PolicyOptions

from tests.fuzz.casts import Cast
from tests.fuzz.judging import Case, Connection, Disagreement, check, check_later, draw
from tests.fuzz.packets import TCP
from tests.fuzz.shrinking import smaller
from tests.unit.policy import oracle, random_policies
from tests.unit.policy.test_judgements import options as random_options
from tests.unit.policy.worlds import pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.harness import Plane

PACKETS = 40
"""Cases after each step."""
STEPS = 6
SIZES = {"cilium_policy": 16384}
"""What the maps must hold at least."""
_KEPT_OPEN = 8
_FIRST_PORT, _LAST_PORT = 20_000, 60_000


@dataclass(frozen=True)
class Step:
    """One change of the world."""

    apply: tuple[dict[str, Any], ...] = ()
    """Policies, groups and services."""
    delete: tuple[dict[str, Any], ...] = ()
    put: dict[str, oracle.Party] = field(default_factory=dict)
    """Parties with other labels."""
    audited: tuple[str, ...] | None = None
    """The namespaces that are audited from now on; None changes nothing."""


@dataclass(frozen=True)
class Finding:
    """A disagreement with all that leads to it."""

    seed: int
    options: PolicyOptions
    steps: tuple[Step, ...]
    case: Case
    text: str

    def __str__(self) -> str:
        default = PolicyOptions()
        options = [
            f"{one.name}={getattr(self.options, one.name)}"
            for one in fields(self.options)
            if getattr(self.options, one.name) != getattr(default, one.name)
        ]
        lines = [f"{self.case}", f"  {self.text}", f"  seed {self.seed} {' '.join(options)}"]
        for number, step in enumerate(self.steps, 1):
            lines.append(f"--- step {number}")
            for name, party in step.put.items():
                labels = ", ".join(f"{k}={v}" for k, (_, v) in party.labels.items())
                lines.append(f"# {name} becomes {labels} serving {party.ports}")
            if step.audited is not None:
                lines.append(f"# audited namespaces: {', '.join(step.audited) or 'none'}")
            for verb, objects in (("apply", step.apply), ("delete", step.delete)):
                lines += [
                    f"# {verb}:\n---\n{yaml.safe_dump(obj, sort_keys=False)}".rstrip()
                    for obj in objects
                ]
        return "\n".join(lines)


def options_of(chance: random.Random) -> PolicyOptions:
    """Options at random."""
    options = random_options(chance)
    if chance.random() < 0.05:
        options = replace(options, enforcement=EnforcementMode.NEVER)
    return options


def step_of(chance: random.Random, cast: Cast, *, first: bool) -> Step:
    """A change at random."""
    if first:
        policies = [random_policies.policy(chance) for _ in range(chance.randint(1, 5))]
        services = [random_policies.service(chance) for _ in range(chance.randint(0, 3))]
        return Step(apply=(*services, *policies))
    held = list(cast.objects.values())
    pods = [name for name in cast.parties if "/" in name]
    match chance.randrange(10):
        case 0 | 1 if held:
            return Step(delete=(chance.choice(held),))
        case 2:
            name = chance.choice(pods)
            return Step(put={name: relabelled(chance, cast.parties[name])})
        case 3:
            name = chance.choice(pods)
            return Step(put={name: random_policies.cast()[name]})
        case 4:
            return Step(apply=(random_policies.service(chance),))
        case 5:
            spaces = chance.sample(random_policies.SPACES, chance.randint(0, 2))
            return Step(audited=tuple(spaces))
    return Step(apply=tuple(random_policies.policy(chance) for _ in range(chance.randint(1, 2))))


def relabelled(chance: random.Random, party: oracle.Party) -> oracle.Party:
    """A pod with other labels, maybe in another namespace, maybe with other ports."""
    labels = {"app": chance.choice("ab"), "tier": chance.choice(("front", "back"))}
    space = chance.choice(random_policies.SPACES)
    team = {"team": "red" if space == "x" else "blue"}
    ports = chance.choice((party.ports, random_policies.WEB_80, random_policies.WEB_8080, ()))
    return pod(space, labels, namespace_labels=team, ports=ports)


def make(cast: Cast, step: Step) -> None:
    """Carry a step out. Raises PolicyError for an object that is refused."""
    for name, party in step.put.items():
        cast.put(name, party)
    for obj in step.delete:
        cast.delete(obj)
    if step.audited is not None:
        cast.audit_namespaces(*step.audited)
    cast.apply(*step.apply)


def play(plane: Plane, seed: int, tally: Counter[str]) -> Iterator[Finding]:
    """Play a round; yields the first disagreement, if any. What became of cases is in `tally`."""
    chance = random.Random(seed)
    options = options_of(chance)
    cast = Cast(plane, options)
    made: list[Step] = []
    living: list[Connection] = []
    ports = iter(range(_FIRST_PORT, _LAST_PORT))
    for number in range(STEPS):
        step = step_of(chance, cast, first=number == 0)
        make(cast, step)
        made.append(step)
        case: Case | None = None
        about = ""
        try:
            for connection in living:
                reply = chance.random() < 0.5
                about = "an answer: " if reply else "later in the connection: "
                case = connection.case
                check_later(cast, connection, reply=reply)
                tally["later"] += 1
            living.clear()
            about = ""
            for _ in range(PACKETS):
                case = draw(chance, cast)
                if case is None:
                    break
                begun = check(cast, case, next(ports), tally)
                if begun is not None and case.protocol == TCP and len(living) < _KEPT_OPEN:
                    living.append(begun)
        except Disagreement as disagreement:
            assert case is not None
            yield Finding(seed, options, tuple(made), case, f"{about}{disagreement}")
            return


def shrunk(plane: Plane, finding: Finding) -> Finding:
    """The finding with all left out that it does not need; itself when it takes its history."""

    def still(steps: tuple[Step, ...]) -> str | None:
        cast = Cast(plane, finding.options)
        try:
            for step in steps:
                make(cast, step)
            if finding.case.source not in cast.engine.conflicts():
                check(cast, finding.case, _FIRST_PORT, Counter())
        except Disagreement as disagreement:
            return str(disagreement)
        except (PolicyError, KeyError):
            return None
        return None

    if still(finding.steps) is None:
        return finding
    steps = finding.steps
    while (less := next((one for one in _candidates(steps) if still(one)), None)) is not None:
        steps = less
    return replace(finding, steps=steps, text=still(steps) or finding.text)


def _candidates(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    for number, step in enumerate(steps):
        before, after = steps[:number], steps[number + 1 :]
        yield (*before, *after)
        for index, obj in enumerate(step.apply):
            rest = step.apply[:index], step.apply[index + 1 :]
            yield (*before, replace(step, apply=(*rest[0], *rest[1])), *after)
            for candidate in smaller(obj):
                yield (*before, replace(step, apply=(*rest[0], candidate, *rest[1])), *after)
