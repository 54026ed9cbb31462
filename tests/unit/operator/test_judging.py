"""Whether a policy is valid stands in its status, and is told in events."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore
from cilium_core.policy.options import PolicyOptions
from cilium_core.records import PolicyFinding, PolicyFindingsRecord
from cilium_core.resources.announcing import LIFETIME, Announcer
from cilium_core.resources.etcd import EtcdSource
from cilium_core.resources.keys import kind_of
from cilium_operator.judging import Judgement, PolicyJudge, judge, with_conditions

from ..policy.test_tiers import admin
from ..policy.worlds import cnp
from ..waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CNP, EVENT = kind_of("cnp"), kind_of("event")
GOOD = cnp(endpointSelector={}, ingress=[{}])
BAD = cnp(endpointSelector={}, ingress=[{"fromEntities": ["moon"]}, {"x": 1}])


class Cluster:
    """A store with a judge that watches it."""

    def __init__(self) -> None:
        self.memory = MemoryCluster()
        self.source = EtcdSource(MemoryStore(self.memory))
        store = MemoryStore(self.memory)
        self.store = MemoryStore(self.memory)
        self.judge = PolicyJudge(store, PolicyOptions(), Announcer(store, "cilium-operator"))

    async def condition(self, kind: str = "Valid", **expected: str) -> dict[str, Any]:
        """The condition, once it is as expected."""

        async def found() -> dict[str, Any] | None:
            item = await self.source.get(CNP, "x", "policy")
            conditions = item.get("status", {}).get("conditions") or []
            condition = next((one for one in conditions if one["type"] == kind), {})
            met = all(part in condition.get(key, "") for key, part in expected.items())
            return condition if condition and met else None

        result = await eventually(found)
        assert isinstance(result, dict)
        return result

    async def events(self) -> list[dict[str, Any]]:
        return await self.source.list(EVENT)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    found = Cluster()
    task = asyncio.create_task(found.judge.run())
    yield found
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_valid_policy_is_said_to_be(cluster: Cluster) -> None:
    await cluster.source.apply(GOOD)

    condition = await cluster.condition(status="True")
    assert condition["type"] == "Valid"
    assert condition["message"] == "accepted"
    assert not await cluster.events()


async def test_every_problem_of_an_invalid_policy_is_in_the_message_and_in_an_event(
    cluster: Cluster,
) -> None:
    await cluster.source.apply(BAD)

    condition = await cluster.condition(status="False")
    assert "spec.ingress[0].fromEntities[0]: 'moon' is not one of" in condition["message"]
    assert "spec.ingress[1].x: unknown field" in condition["message"]
    (event,) = await eventually(cluster.events)
    assert (event["reason"], event["involvedObject"]["name"]) == ("Invalid", "policy")
    assert event["metadata"]["namespace"] == "x"


async def test_warnings_are_told(cluster: Cluster) -> None:
    legacy = {"action": "Deny", "fromCIDR": ["10.0.0.0/8"]}
    await cluster.source.apply(cnp(endpointSelector={}, ingress=[legacy]))

    condition = await cluster.condition(status="True", message="accepted, with warnings: ")
    assert "`action: Deny` was read as" in condition["message"]
    (event,) = await eventually(cluster.events)
    assert event["reason"] == "Warning"


async def test_the_time_moves_only_when_the_status_flips(cluster: Cluster) -> None:
    first = with_conditions(None, [Judgement(False, "a")], "t1")
    second = with_conditions(first, [Judgement(False, "b")], "t2")
    third = with_conditions(second, [Judgement(True, "accepted")], "t3")

    times = [one["conditions"][0]["lastTransitionTime"] for one in (first, second, third) if one]
    assert times == ["t1", "t1", "t3"]
    assert with_conditions(third, [Judgement(True, "accepted")], "t4") is None


def test_other_parts_of_a_status_are_kept() -> None:
    other = {"type": "Other", "status": "True"}
    status = {"derivativePolicies": {}, "conditions": [other, {"type": "Valid", "status": "True"}]}

    found = with_conditions(status, [Judgement(False, "a")], "t")
    assert found is not None
    assert found["derivativePolicies"] == {}
    assert found["conditions"][1:] == [other]
    assert with_conditions({"conditions": 7}, [Judgement(True, "")], "t")


def finding(reason: str, message: str = "why", name: str = "policy") -> PolicyFinding:
    return PolicyFinding("CiliumNetworkPolicy", "x", name, reason, message)


async def test_what_nodes_do_not_enforce_is_said_with_their_names(cluster: Cluster) -> None:
    await cluster.source.apply(GOOD)
    await cluster.condition(status="True")
    records = [
        PolicyFindingsRecord("default", node, (finding("overflow"), finding("conflict", name="y")))
        for node in ("n2", "n1")
    ]
    for record in records:
        await cluster.store.put(record.key, record.to_json())

    condition = await cluster.condition("Enforced", status="False", message="n1, n2")
    assert condition["message"] == "overflow on n1, n2: why"
    assert any(event["reason"] == "NotEnforced" for event in await cluster.events())

    await cluster.store.delete(records[0].key)
    await cluster.condition("Enforced", message="overflow on n1: why")
    await cluster.store.delete(records[1].key)
    await cluster.condition("Enforced", status="True")
    await cluster.condition("Valid", status="True")


async def test_that_nodes_refuse_an_invalid_policy_goes_without_saying(cluster: Cluster) -> None:
    record = PolicyFindingsRecord("default", "n1", (finding("refused"),))
    await cluster.store.put(record.key, record.to_json())
    await cluster.source.apply(BAD)

    await cluster.condition("Valid", status="False")
    item = await cluster.source.get(CNP, "x", "policy")
    assert len(item["status"]["conditions"]) == 1

    await cluster.source.apply(GOOD)
    await cluster.condition("Enforced", message="refused on n1")


async def test_a_policy_that_is_mended_becomes_valid(cluster: Cluster) -> None:
    await cluster.source.apply(BAD)
    await cluster.condition(status="False")
    await cluster.source.apply(GOOD)

    await cluster.condition(status="True")
    item = await cluster.source.get(CNP, "x", "policy")
    assert item["metadata"]["generation"] == 2


async def test_a_status_survives_whoever_applies_the_object_again(cluster: Cluster) -> None:
    await cluster.source.apply(GOOD)
    before = await cluster.condition(status="True")
    await cluster.source.apply({**GOOD, "metadata": {**GOOD["metadata"], "labels": {"a": "b"}}})

    item = await cluster.source.get(CNP, "x", "policy")
    assert item["status"]["conditions"] == [before]
    assert item["metadata"]["labels"] == {"a": "b"}


async def test_policies_of_every_kind_are_judged(cluster: Cluster) -> None:
    await cluster.source.apply(admin(ingress=[{"action": "Deny", "from": [{}]}]))

    async def judged() -> list[Any]:
        item = await cluster.source.get(kind_of("anp"), "", "guard")
        return item.get("status", {}).get("conditions") or []

    (condition,) = await eventually(judged)
    assert condition["status"] == "True"
    assert "unknown kind" in condition["message"]


def test_options_decide_what_is_valid() -> None:
    nodes = cnp(endpointSelector={}, ingress=[{"fromNodes": [{}]}])

    assert not judge(nodes, PolicyOptions()).holds
    assert judge(nodes, PolicyOptions(node_selector_labels=True)).holds


async def test_a_status_written_at_the_same_time_is_not_lost() -> None:
    source = EtcdSource(MemoryStore())
    await source.apply(GOOD)
    asked = []

    def change(item: dict[str, Any]) -> dict[str, Any]:
        asked.append(item.get("status"))
        return {**item.get("status", {}), f"n{len(asked)}": True}

    await asyncio.gather(*(source.update_status(CNP, "x", "policy", change) for _ in range(4)))
    status = (await source.get(CNP, "x", "policy"))["status"]
    assert len(status) == 4


async def test_the_same_event_is_counted_and_old_ones_go() -> None:
    store = MemoryStore()
    announcer, source = Announcer(store, "cilium-operator"), EtcdSource(store)
    await source.apply(BAD)
    item = await source.get(CNP, "x", "policy")
    for _ in range(3):
        await announcer.announce(item, "Invalid", "why")

    (event,) = await source.list(EVENT)
    assert event["count"] == 3
    assert await announcer.sweep() == 0
    later = datetime.now(UTC) + LIFETIME + timedelta(minutes=1)
    assert await announcer.sweep(later) == 1
    assert not await source.list(EVENT)
