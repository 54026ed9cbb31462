"""Rounds: a set of policies, many packets, a change, many packets more.

A round is told by its seed and the steps it made, so that a disagreement can be played again, with
less and less in it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import yaml
from cilium_core.policy import EnforcementMode, PolicyError, PolicyOptions

from tests.fuzz import generating
from tests.fuzz.casts import Cast, parties, relabelled
from tests.fuzz.judging import Case, Disagreement, check, check_ongoing, draw
from tests.fuzz.packets import TCP
from tests.unit.policy import oracle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.harness import Plane

PACKETS = 40
"""Cases after each step."""
STEPS = 6
SIZES = {"cilium_policy": 16384}
"""What the maps must hold at least."""
_FIRST_PORT, _LAST_PORT = 20_000, 60_000


@dataclass(frozen=True)
class Step:
    """One change of the world: objects to apply, to delete, and parties with other labels."""

    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[dict[str, Any], ...] = ()
    put: dict[str, oracle.Party] = field(default_factory=dict)


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
            for verb, objects in (("apply", step.apply), ("delete", step.delete)):
                lines += [
                    f"# {verb}:\n---\n{yaml.safe_dump(obj, sort_keys=False)}".rstrip()
                    for obj in objects
                ]
        return "\n".join(lines)


def options_of(chance: random.Random) -> PolicyOptions:
    """Options at random; mostly the defaults."""
    modes = [EnforcementMode.DEFAULT] * 6 + [EnforcementMode.ALWAYS] * 2 + [EnforcementMode.NEVER]
    return PolicyOptions(enforcement=chance.choice(modes), allow_localhost=chance.random() < 0.7)


def step_of(chance: random.Random, cast: Cast, *, first: bool) -> Step:
    """A change at random."""
    if first:
        return Step(apply=tuple(generating.policy(chance) for _ in range(chance.randint(1, 5))))
    held = list(cast.objects.values())
    match chance.randrange(5):
        case 0 if held:
            return Step(delete=(chance.choice(held),))
        case 1:
            name = chance.choice([name for name in cast.parties if "/" in name])
            return Step(put={name: relabelled(chance, cast.parties[name])})
        case 2:
            name = chance.choice([name for name in parties() if "/" in name])
            return Step(put={name: parties()[name]})
    return Step(apply=tuple(generating.policy(chance) for _ in range(chance.randint(1, 2))))


def make(cast: Cast, step: Step) -> None:
    """Carry a step out. Raises PolicyError for an object that is refused."""
    for name, party in step.put.items():
        cast.put(name, party)
    for obj in step.delete:
        cast.delete(obj)
    cast.apply(*step.apply)


def play(plane: Plane, seed: int, packets: int = PACKETS, steps: int = STEPS) -> Iterator[Finding]:
    """Play a round; yields the first disagreement, if any, after `packets` cases a step."""
    chance = random.Random(seed)
    options = options_of(chance)
    cast = Cast(plane, options)
    made: list[Step] = []
    open_connections: list[tuple[Case, int]] = []
    ports = iter(range(_FIRST_PORT, _LAST_PORT))
    for number in range(steps):
        step = step_of(chance, cast, first=number == 0)
        make(cast, step)
        made.append(step)
        case: Case | None = None
        about = ""
        try:
            for case, port in open_connections:
                reply = chance.random() < 0.5
                about = "an answer: " if reply else "later in the connection: "
                check_ongoing(cast, case, port, reply=reply)
            open_connections.clear()
            about = ""
            for _ in range(packets):
                case, port = draw(chance, cast), next(ports)
                if check(cast, case, port) and case.protocol == TCP and len(open_connections) < 8:
                    open_connections.append((case, port))
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
            check(cast, finding.case, _FIRST_PORT)
        except Disagreement as disagreement:
            return str(disagreement)
        except (PolicyError, KeyError):
            return None
        return None

    if still(finding.steps) is None:
        return finding
    steps = finding.steps
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(steps):
            if still(candidate) is not None:
                steps, smaller = candidate, True
                break
    return Finding(finding.seed, finding.options, steps, finding.case, still(steps) or finding.text)


def _candidates(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    for number, step in enumerate(steps):
        before, after = steps[:number], steps[number + 1 :]
        yield (*before, *after)
        for index in range(len(step.apply)):
            rest = step.apply[:index] + step.apply[index + 1 :]
            yield (*before, Step(rest, step.delete, step.put), *after)
        for index, obj in enumerate(step.apply):
            for candidate in generating.smaller(obj):
                rest = (*step.apply[:index], candidate, *step.apply[index + 1 :])
                yield (*before, Step(rest, step.delete, step.put), *after)
