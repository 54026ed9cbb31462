"""Names go on being resolved whoever dies: the agent, the proxy, or one after the other."""

from __future__ import annotations

import asyncio
import json
import time

import dns.rcode
import pytest
from cilium_core.policy.l7 import DnsRule, L7Kind, Redirect

from tests.dns.network import PROXY_PORT, Lab, lab
from tests.namespaces import udp
from tests.unit.waiting import eventually

RULES = Redirect(ingress=False, kind=L7Kind.DNS, dns=(DnsRule(pattern="*.allowed.test"),))


async def answered(dns_lab: Lab, name: str) -> bool:
    try:
        return bool((await dns_lab.ask(name, limit_s=1.0)).answer)
    except TimeoutError:
        return False


async def test_no_lookup_fails_while_the_agent_dies_and_comes_back(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        failed: list[str] = []
        stop = asyncio.Event()

        async def asking() -> int:
            number = 0
            while not stop.is_set():
                number += 1
                name = f"n{number % 50}.allowed.test."
                if not (await dns_lab.ask(name)).answer:
                    failed.append(name)
            return number

        task = asyncio.create_task(asking())
        await eventually(lambda: len(dns_lab.agent.records) > 50)
        await dns_lab.agent.stop()
        await asyncio.sleep(1)  # the outage itself
        await dns_lab.agent.start()
        await eventually(lambda: dns_lab.agent.board.connected)
        stop.set()

        assert await task > 100
        assert failed == []


async def test_what_was_learned_while_the_agent_was_away_is_told_when_it_is_back(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        await dns_lab.ask("before.allowed.test.")
        await dns_lab.agent.stop()
        began = time.monotonic()
        await dns_lab.ask("during.allowed.test.")
        assert time.monotonic() - began < 0.09  # nobody to wait for
        dns_lab.agent.names.observed.clear()
        dns_lab.agent.records.clear()

        await dns_lab.agent.start()
        wanted = {("before.allowed.test.", "192.0.2.1"), ("during.allowed.test.", "192.0.2.1")}
        await eventually(lambda: dns_lab.agent.names.known() >= wanted)
        await eventually(
            lambda: {r.l7.dns.query for r in dns_lab.agent.records} >= {"during.allowed.test."}
        )


async def test_a_proxy_that_is_killed_serves_again_within_a_second_without_an_agent(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        assert await answered(dns_lab, "a.allowed.test.")
        await dns_lab.agent.stop()
        await dns_lab.stop_proxy(9)
        assert not await answered(dns_lab, "a.allowed.test.")

        began = time.monotonic()
        dns_lab.start_proxy()
        await eventually(lambda: answered(dns_lab, "a.allowed.test."))
        took_s = time.monotonic() - began
        refused = await dns_lab.ask("other.test.")

        assert refused.rcode() == dns.rcode.REFUSED
        assert took_s < 5, f"{took_s:.2f} s"  # one second on a machine with nothing else to do


async def test_a_proxy_without_anything_to_do_serves_when_the_agent_comes(state_dir):
    async with lab(state_dir, agent=False) as dns_lab:
        await eventually(lambda: "serving" in dns_lab.log())
        await dns_lab.agent.start()
        await dns_lab.enforce(RULES)
        assert await answered(dns_lab, "a.allowed.test.")


@pytest.mark.parametrize("content", ["", "{", '{"redirects": [{"port": 70000}]}', "\0"])
async def test_a_copy_that_cannot_be_read_serves_nothing_and_waits_for_the_agent(
    state_dir, content
):
    copy = state_dir / "proxies" / "dns.json"
    copy.parent.mkdir()
    copy.write_text(content)
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        assert await answered(dns_lab, "a.allowed.test.")
        assert "restored nothing" in dns_lab.log()
        assert json.loads(copy.read_text())["redirects"][0]["port"] == PROXY_PORT


async def test_a_port_that_is_taken_is_told_and_served_once_it_is_free(state_dir):
    async with lab(state_dir) as dns_lab:
        taken = udp(dns_lab.namespaces.node, 4, ("127.0.0.1", PROXY_PORT))
        dns_lab.agent.board.publish({PROXY_PORT: RULES})
        await eventually(lambda: dns_lab.agent.board.errors)
        assert "in use" in dns_lab.agent.board.errors[PROXY_PORT]
        assert not dns_lab.agent.board.serves(PROXY_PORT)

        taken.close()
        assert await dns_lab.agent.board.served([PROXY_PORT], timeout_s=10)
        assert await answered(dns_lab, "a.allowed.test.")


async def test_a_port_that_is_withdrawn_is_closed(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        dns_lab.agent.board.publish({})
        await eventually(lambda: not dns_lab.agent.board.assignment.redirects)

        async def closed() -> bool:
            return not await answered(dns_lab, "a.allowed.test.")

        await eventually(closed)


async def test_a_proxy_that_is_asked_to_stop_does_so_cleanly(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        assert await answered(dns_lab, "a.allowed.test.")
        assert await dns_lab.stop_proxy(15) == 0
