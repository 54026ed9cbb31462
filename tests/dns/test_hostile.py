"""Hostile clients and servers, with real packets: no crash, no bypass, every refusal counted."""

from __future__ import annotations

import asyncio
import contextlib
import random
import urllib.request

import dns.exception
import dns.message
from cilium_agent.proxies import serving
from cilium_core.policy.l7 import DnsRule, L7Kind, Redirect

from tests.dns.network import addresses, framed, lab
from tests.namespaces import SERVER, inside, udp
from tests.unit.waiting import eventually

RULES = Redirect(ingress=False, kind=L7Kind.DNS, dns=(DnsRule(pattern="*.allowed.test"),))
METRICS = "127.0.0.1:9555"


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The message with up to five changes."""
    changed = bytearray(data)
    for _ in range(rng.randint(0, 5)):
        place = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(5):
            case 0:
                changed[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[place : place + rng.randint(1, 5)]
            case 2:
                changed[place:place] = rng.randbytes(rng.randint(1, 5))
            case 3:
                changed[4 + rng.randrange(8) : 5] = bytes([rng.randrange(4)])
            case 4:
                changed += rng.choice([b"\xc0\x0c", b"\x00\x00\x01\x00\x01", data[12:]])
    return bytes(changed)


def counted(text: str, metric: str) -> float:
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(metric)
    )


async def metrics(namespace: str) -> str:
    def fetch() -> str:
        with inside(namespace), urllib.request.urlopen(f"http://{METRICS}/metrics") as response:
            return str(response.read().decode())

    return await asyncio.to_thread(fetch)


async def test_mutated_queries_reach_the_server_only_with_names_that_are_allowed(state_dir):
    rng = random.Random(7)
    async with lab(state_dir, proxy=False) as dns_lab:
        dns_lab.start_proxy("--metrics-listen-address", METRICS)
        await dns_lab.enforce(RULES)
        unreadable = []
        honest = dns_lab.server._answer

        def careful(data, sender):
            try:
                return honest(data, sender)
            except dns.exception.DNSException:
                unreadable.append(data)
                return []

        dns_lab.server._answer = careful
        names = ["x.allowed.test.", "a.b.allowed.test.", "evil.test.", "allowed.test."]
        messages = [
            mutated(
                rng,
                dns.message.make_query(
                    rng.choice(names), "A", use_edns=rng.choice([-1, 0])
                ).to_wire(),
            )
            for _ in range(3000)
        ]
        with contextlib.closing(udp(dns_lab.namespaces.client, 4)) as sock:
            for data in messages:
                with contextlib.suppress(BlockingIOError):
                    sock.sendto(data, (SERVER[4], 53))
                if rng.random() < 0.05:
                    await asyncio.sleep(0.005)
        for data in messages[:300]:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError, TimeoutError):
                _, writer = await dns_lab.connect()
                writer.write(framed(data) if rng.random() < 0.8 else data)
                writer.close()
        assert (await dns_lab.ask("last.allowed.test.")).answer

        assert unreadable == []
        asked = {str(query.question[0].name).lower() for query, _ in dns_lab.server.asked}
        assert all(name.endswith(".allowed.test.") and name.count(".") == 3 for name in asked)
        text = await metrics(dns_lab.namespaces.node)
        seen = counted(text, "cilium_dns_proxy_queries_total")
        refused = counted(text, "cilium_dns_proxy_refused_total")
        assert refused > 500
        assert seen - refused <= len(dns_lab.server.asked) + counted(
            text, "cilium_dns_proxy_failures_total"
        )
        await eventually(lambda: len(dns_lab.agent.records) >= seen)

        async def told() -> bool:
            """Whether the agent knows of every refusal; the last streams may still be read."""
            text = await metrics(dns_lab.namespaces.node)
            refused = counted(text, 'cilium_dns_proxy_refused_total{reason="policy"}')
            return serving.EVENTS.value("dns", "refused", "policy") == refused

        await eventually(told)
        assert dns_lab.process is not None
        assert dns_lab.process.poll() is None
        assert "Traceback" not in dns_lab.log()


async def test_mutated_answers_teach_only_what_they_say_of_the_name_asked_for(state_dir):
    rng = random.Random(11)
    async with lab(state_dir, proxy=False) as dns_lab:
        dns_lab.start_proxy("--metrics-listen-address", METRICS)
        await dns_lab.enforce(RULES)

        def hostile(query: dns.message.Message) -> list[bytes]:
            good = addresses(query, "192.0.2.1", "192.0.2.2", ttl=5)[0]
            extra = [mutated(rng, good) for _ in range(3)]
            return [*extra, good]

        dns_lab.server.respond = hostile
        for number in range(400):
            with contextlib.suppress(TimeoutError, dns.exception.DNSException):
                await dns_lab.ask(f"n{number}.allowed.test.", tcp=number % 4 == 0, limit_s=0.3)
        dns_lab.server.respond = addresses
        assert (await dns_lab.ask("last.allowed.test.")).answer

        assert {name for name, _ in dns_lab.agent.names.known()} <= {
            *(f"n{number}.allowed.test." for number in range(400)),
            "last.allowed.test.",
        }
        text = await metrics(dns_lab.namespaces.node)
        assert counted(text, "cilium_dns_proxy_disbelieved_total") > 100
        assert dns_lab.process is not None
        assert dns_lab.process.poll() is None
        assert "Traceback" not in dns_lab.log()


async def test_streams_that_promise_and_do_not_deliver_are_closed(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        reader, writer = await dns_lab.connect()
        writer.write(b"\x00\x05short")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()

        silent = [await dns_lab.connect() for _ in range(20)]
        for _, half in silent:
            half.write(b"\xff\xff" + bytes(100))
        assert (await dns_lab.ask("a.allowed.test.", tcp=True)).answer
        for each, half in silent:
            await asyncio.wait_for(each.read(), 20)
            half.close()
