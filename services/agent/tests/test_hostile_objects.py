"""The agent goes on answering while it reads policies made to take long."""

import asyncio
import time

from services.agent.tests.benches import FROM_CIDR, REF, Bench, policy

LONGEST_GAP_S = 5.0
"""How long nothing else may run, on a busy machine; reading took half a minute without bounds."""


async def longest_gap(work):
    """Seconds for which the event loop did nothing else, at most, while `work` was done."""
    gaps = [0.0]

    async def beat():
        while True:
            before = time.monotonic()
            await asyncio.sleep(0)
            gaps.append(time.monotonic() - before)

    beating = asyncio.create_task(beat())
    await work
    beating.cancel()
    return max(gaps)


async def test_reading_hostile_policies_holds_nobody_up(tmp_path):
    bench = Bench(tmp_path)
    await bench.policies.build(bench.endpoint())
    expressions = [{"path": f"/(a{{1,900}})b{number}"} for number in range(9000)]
    port = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": expressions}}
    hostile = policy(toPorts=[port])
    selectors = [{"matchLabels": {"app": f"client{number}"}} for number in range(10_000)]
    many = policy(fromEndpoints=selectors)
    bench.policies.upsert_object(REF, FROM_CIDR)
    bench.policies.upsert_object(REF._replace(name="hostile"), hostile)
    bench.policies.upsert_object(REF._replace(name="many"), named(many, "many"))
    gap = await longest_gap(bench.policies.reconcile())
    assert gap < LONGEST_GAP_S
    assert "too large together" in bench.policies.refused[REF._replace(name="hostile")].error
    assert {one.ref.name for one in bench.policies.engine.repository} == {"p", "many"}


def named(document, name):
    return {**document, "metadata": {**document["metadata"], "name": name}}
