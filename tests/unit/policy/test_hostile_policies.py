"""Policies made to take long are read and resolved in a bounded time, or refused with a reason."""

from __future__ import annotations

import time
from typing import Any

import pytest
from cilium_core.labels import LabelSet
from cilium_core.policy import PolicyEngine, PolicyError, Subject, parse

from tests.unit.policy.worlds import cnp

LIMIT_S = 20.0
"""Far more than any of these takes, far less than any took without limits."""


def ports(many: int) -> list[dict[str, Any]]:
    return [{"port": str(number % 65000 + 1), "protocol": "TCP"} for number in range(many)]


def lists_of_ports(lists: int) -> list[dict[str, Any]]:
    every = ports(40 * lists)
    return [{"ports": every[40 * number : 40 * number + 40]} for number in range(lists)]


def clients(many: int) -> list[dict[str, Any]]:
    return [{"matchLabels": {"app": f"client{number}"}} for number in range(many)]


def http(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"toPorts": [{"ports": ports(1), "rules": {"http": list(rules)}}]}


def policy(*ingress: dict[str, Any]) -> dict[str, Any]:
    return cnp({"endpointSelector": {}, "ingress": list(ingress)})


@pytest.mark.parametrize(
    ("obj", "reason"),
    [
        (
            policy(http(*({"path": f"/(a{{1,900}})b{number}"} for number in range(9000)))),
            "regular expressions are too large together",
        ),
        (
            policy(http(*({"path": "\\pL" * 300 + str(number)} for number in range(1000)))),
            "regular expressions are too large together",
        ),
        (
            policy(http(*({"headers": [f"x ^{'(a{900})' * 9}{n}$"]} for n in range(3000)))),
            "regular expressions are too large together",
        ),
        (
            policy({"fromEndpoints": clients(1500), "toPorts": lists_of_ports(500)}),
            "peers, all told",
        ),
        (
            policy({"fromEndpoints": clients(1500), "toPorts": lists_of_ports(100)}),
            "pairs of peers and ports",
        ),
    ],
    ids=["expressions", "wrong expressions", "headers", "peers", "pairs"],
)
def test_a_policy_that_takes_long_to_read_or_resolve_is_refused(obj, reason):
    began = time.monotonic()
    with pytest.raises(PolicyError, match=reason):
        parse(obj)
    assert time.monotonic() - began < LIMIT_S


@pytest.mark.parametrize(
    "obj",
    [
        policy(*({"fromEndpoints": [one]} for one in clients(9000))),
        policy({"fromEndpoints": clients(10_000)}),
        policy(*({**http({"path": f"/{number}"})} for number in range(5000))),
        policy(
            *(
                {"fromEndpoints": [one], **http({"path": f"/{number}"})}
                for number, one in enumerate(clients(3000))
            )
        ),
        policy({"toPorts": lists_of_ports(500)}),
        cnp(
            {
                "endpointSelector": {},
                "egress": [{"toCIDR": [f"10.{n >> 8}.{n & 255}.0/24" for n in range(20_000)]}],
            }
        ),
    ],
    ids=["rules", "selectors", "http", "http by peer", "ports", "cidrs"],
)
def test_a_large_policy_is_read_and_resolved_within_seconds(obj):
    engine = engine_with(50)
    began = time.monotonic()
    engine.upsert_policy(obj)
    assert engine.flush()
    assert time.monotonic() - began < LIMIT_S


WIDE = policy({"fromEntities": ["cluster"], "toPorts": lists_of_ports(500)})
"""20,000 entries for every identity of the cluster."""

NARROW = policy({"fromEntities": ["cluster"], "toPorts": lists_of_ports(1)})


def refused(engine: PolicyEngine) -> bool:
    """Whether the endpoint's policy is told to be too large."""
    conflicts = engine.conflicts().get("web", ())
    return any("more than 262144; name fewer ports" in str(conflict) for conflict in conflicts)


def size(engine: PolicyEngine) -> int:
    found = engine.policy("web")
    assert found is not None
    assert found.ingress_enforced
    return len(found.entries)


def test_a_policy_with_too_many_entries_leaves_the_one_before_in_force():
    engine = engine_with(200)
    engine.upsert_policy(NARROW)
    engine.flush()
    before = size(engine)
    began = time.monotonic()
    engine.upsert_policy(WIDE)
    (update,) = engine.flush()
    assert time.monotonic() - began < LIMIT_S
    assert (size(engine), bool(update.delta), refused(engine)) == (before, False, True)
    engine.upsert_policy(NARROW)
    engine.flush()
    assert (size(engine), refused(engine)) == (before, False)


def test_without_a_policy_before_one_with_too_many_entries_lets_nobody_in():
    engine = engine_with(200)
    engine.upsert_policy(WIDE)
    began = time.monotonic()
    engine.upsert_endpoint("new", Subject(1001, labels(1)))
    engine.flush()
    assert time.monotonic() - began < LIMIT_S
    policy_of_new = engine.policy("new")
    assert policy_of_new is not None
    assert policy_of_new.ingress_enforced
    assert {key.identity for key, entry in policy_of_new.entries.items() if not entry.deny} <= {
        0,
        1,
    }


@pytest.mark.parametrize("step", [1, 200])
def test_a_policy_that_grows_too_large_is_closed_until_it_shrinks(step):
    engine = engine_with(5)
    engine.upsert_policy(WIDE)
    engine.flush()
    assert not refused(engine)
    began = time.monotonic()
    numbers = list(range(5, 25 if step == 1 else 205))
    for number in numbers:
        engine.upsert_identity(1000 + number, labels(number))
        if step == 1:
            engine.flush()
    updates = engine.flush()
    assert time.monotonic() - began < LIMIT_S
    assert refused(engine)
    assert size(engine) < 10
    assert step == 1 or [update.full for update in updates] == [True]
    for number in numbers:
        engine.delete_identity(1000 + number)
    assert len(engine.flush()) == 1
    assert not refused(engine)
    assert size(engine) > 100_000


def test_entries_are_counted_as_they_come_and_go():
    engine = engine_with(5)
    steps = [
        lambda: engine.upsert_policy(NARROW),
        lambda: engine.upsert_identity(2000, labels(6)),
        lambda: engine.upsert_policy(policy(http({"path": "/a"}), {})),
        lambda: engine.delete_identity(2000),
        lambda: engine.upsert_policy(NARROW),
        lambda: engine.upsert_identity(1003, labels(9)),
    ]
    for step in steps:
        step()
        engine.flush()
        resolved = engine._endpoints["web"].resolved
        assert resolved is not None
        assert resolved.size == size(engine)


def engine_with(identities: int) -> PolicyEngine:
    engine = PolicyEngine()
    for number in range(identities):
        engine.upsert_identity(1000 + number, labels(number))
    engine.upsert_endpoint("web", Subject(1000, labels(0)))
    engine.flush()
    return engine


def labels(number: int) -> LabelSet:
    return LabelSet.parse(
        [
            f"k8s:app=client{number}",
            "k8s:io.kubernetes.pod.namespace=x",
            "k8s:io.cilium.k8s.policy.cluster=default",
        ]
    )
