"""The parts between messages and sockets: caches, records, raw packets, what the agent is told."""

from __future__ import annotations

import asyncio
import socket

import dns.flags
import dns.message
import dns.rrset
import pytest
from cilium.proxy.v1 import proxy_pb2
from cilium_core.policy.l7 import DnsRule, L7Kind, Redirect
from cilium_core.proxying.transparent import packed
from dns_proxy import announcing, records
from dns_proxy.announcing import Announcer, Key
from dns_proxy.answers import Answer
from dns_proxy.caching import TwoGenerations
from dns_proxy.gates import Gate
from dns_proxy.messages import Query, parse_query
from dns_proxy.replies import internet_checksum, raw_packet, truncated
from flow import flow_pb2

from tests.unit.waiting import eventually

KEY = Key("10.0.0.1", "a.test.", (socket.inet_aton("192.0.2.1"),))
QUERY = Query("a.test.", 28, 1, b"\x01a\x04test\x00\x00\x1c\x00\x01")
REDIRECT = Redirect(ingress=False, kind=L7Kind.DNS, dns=(DnsRule(name="a.test"),))


class Agent:
    """Who is told of names."""

    def __init__(self) -> None:
        self.told: list[proxy_pb2.NameObservation] = []
        self.calls = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.broken = False
        self.lifetime_s = 60.0

    async def __call__(self, request: proxy_pb2.ReportNamesRequest) -> list[float]:
        self.calls += 1
        await self.answering.wait()
        if self.broken:
            raise ConnectionError("away")
        self.told.extend(request.observations)
        return [self.lifetime_s] * len(request.observations)


@pytest.fixture
async def agent() -> Agent:
    return Agent()


@pytest.fixture
async def announcer(agent: Agent) -> Announcer:
    announcer = Announcer(asyncio.get_running_loop())
    announcer.connect(agent)
    announcer.joined()
    return announcer


async def announce(announcer: Announcer, key: Key = KEY, ttl_s: int = 60) -> asyncio.Event:
    done = asyncio.Event()
    announcer.announce(key, ttl_s, done.set)
    return done


async def test_an_answer_leaves_when_the_agent_has_answered(announcer, agent):
    agent.answering.clear()
    announcer.max_delay_s = 60
    done = await announce(announcer)
    await eventually(lambda: agent.calls)
    assert not done.is_set()

    agent.answering.set()
    await asyncio.wait_for(done.wait(), 5)
    assert announcer.known(KEY, 60)
    assert announcer.late == 0


async def test_answers_that_come_together_are_told_together(announcer, agent):
    waiting = [await announce(announcer, KEY._replace(name=f"{n}.test.")) for n in range(50)]
    for done in waiting:
        await asyncio.wait_for(done.wait(), 5)

    assert (agent.calls, len(agent.told)) == (1, 50)


async def test_an_answer_that_waits_too_long_leaves_anyway(announcer, agent):
    agent.answering.clear()
    announcer.max_delay_s = 0.02
    for done in [
        await announce(announcer),
        await announce(announcer, KEY._replace(name="b.test.")),
    ]:
        await asyncio.wait_for(done.wait(), 5)

    assert announcer.late == 2
    agent.answering.set()


async def test_nobody_waits_for_an_agent_that_is_away(announcer, agent):
    announcer.left()
    assert (await announce(announcer)).is_set()
    assert not announcer.known(KEY, 60)
    assert agent.calls == 0

    announcer.joined()
    await eventually(lambda: announcer.known(KEY, 60))


async def test_a_new_agent_is_told_all_that_is_not_expired(announcer, agent):
    await (await announce(announcer)).wait()
    announcer.left()
    agent.told.clear()
    announcer.joined()

    await eventually(lambda: [one.name for one in agent.told] == ["a.test."])


async def test_a_later_expiry_is_told_without_delaying_anybody(announcer, agent):
    await (await announce(announcer, ttl_s=60)).wait()
    assert announcer.known(KEY, 60)
    assert announcer.known(KEY, 600)
    task = asyncio.create_task(announcer.run())
    await eventually(lambda: [one.ttl_s for one in agent.told] == [60, 600])
    task.cancel()


async def test_what_the_agent_no_longer_knows_is_told_again(announcer, agent):
    agent.lifetime_s = 0.0
    await (await announce(announcer)).wait()

    assert not announcer.known(KEY, 60)


async def test_names_that_could_not_be_told_are_told_later(announcer, agent):
    agent.broken = True
    done = await announce(announcer)
    await asyncio.wait_for(done.wait(), 5)
    assert not announcer.known(KEY, 60)

    agent.broken = False
    task = asyncio.create_task(announcer.run())
    await eventually(lambda: announcer.known(KEY, 60))
    task.cancel()


async def test_observations_have_a_limit_and_the_oldest_go_first(announcer, monkeypatch):
    monkeypatch.setattr(announcing, "MAX_ENTRIES", 10)
    announcer.left()
    for number in range(30):
        await announce(announcer, KEY._replace(name=f"{number}.test."))

    assert (announcer.size, announcer.forgotten) == (10, 20)


def test_a_cache_keeps_what_is_used_and_has_a_limit():
    cache: TwoGenerations[int, int] = TwoGenerations(10)
    cache.put(-1, -1)
    for number in range(1000):
        cache.put(number, number)
        assert cache.get(-1) == -1
        assert len(cache) <= 20
    assert cache.get(999) == 999
    assert cache.get(0) is None


def test_composed_records_read_like_whole_ones():
    client, server = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.96.0.10")
    connection = records.connection(client, server, 53, 17)
    constant = records.request(10053, REDIRECT, QUERY, by_rule=True)
    request = proxy_pb2.Record.FromString(
        records.complete_request(constant, connection, 40_000, 1_700_000_000_000_000_001)
    )
    answer = Answer(
        0, (socket.inet_pton(socket.AF_INET6, "2001:db8::1"),), 7, (), ("AAAA",), 7, False
    )
    response = proxy_pb2.Record.FromString(
        records.complete_response(
            records.response_head(10053, REDIRECT),
            connection,
            40_000,
            1_700_000_000_000_000_002,
            12_345_678,
            records.response_dns(QUERY, answer),
        )
    )
    common = {
        "proxy_port": 10053,
        "protocol": 17,
        "client": client,
        "client_port": 40_000,
        "server": server,
        "server_port": 53,
        "verdict": flow_pb2.FORWARDED,
    }
    dns_part = flow_pb2.DNS(query="a.test.", qtypes=["AAAA"], observation_source="proxy")
    assert request == proxy_pb2.Record(
        time_ns=1_700_000_000_000_000_001,
        l7=flow_pb2.Layer7(type=flow_pb2.REQUEST, dns=dns_part),
        **common,
    )
    dns_part.MergeFrom(flow_pb2.DNS(ips=["2001:db8::1"], ttl=7, rrtypes=["AAAA"]))
    assert response == proxy_pb2.Record(
        time_ns=1_700_000_000_000_000_002,
        l7=flow_pb2.Layer7(type=flow_pb2.RESPONSE, latency_ns=12_345_678, dns=dns_part),
        **common,
    )


@pytest.mark.parametrize(("host", "client"), [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")])
@pytest.mark.parametrize("data", [b"", b"odd", b"even"])
def test_raw_packets_have_the_right_sums(host, client, data):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6

    packet = raw_packet(packed(host), 53, packed(client), 40_000, data)
    kind = IPv6 if ":" in host else IP
    parsed = kind(packet)
    written = parsed[UDP].chksum
    del parsed[UDP].chksum
    assert kind(bytes(parsed))[UDP].chksum == written
    assert bytes(parsed[UDP].payload) == data
    assert (parsed[UDP].sport, parsed[UDP].dport, parsed.dst) == (53, 40_000, client)


def test_a_sum_over_itself_is_zero():
    data = b"\x45\x00\x01\x02"
    total = internet_checksum(data)
    assert internet_checksum(data + total.to_bytes(2, "big")) == 0


def test_an_answer_that_does_not_fit_becomes_one_that_says_so():
    query = dns.message.make_query("a.test.", "A")
    response = dns.message.make_response(query)
    response.answer.append(dns.rrset.from_text("a.test.", 1, "IN", "A", "192.0.2.1"))
    short = dns.message.from_wire(truncated(response.to_wire()))

    assert query.is_response(short)
    assert short.flags & dns.flags.TC
    assert short.answer == []


def test_a_judgement_is_found_again_whatever_the_id():
    gate = Gate(10053, REDIRECT)
    first = dns.message.make_query("a.test.", "A", id=1).to_wire()
    second = dns.message.make_query("a.test.", "A", id=2).to_wire()

    assert gate.judge(first) is gate.judge(second)
    assert gate.judge(first).query == parse_query(first)


@pytest.mark.parametrize(
    ("redirect", "name", "allowed", "verdict"),
    [
        (REDIRECT, "a.test.", True, flow_pb2.FORWARDED),
        (REDIRECT, "b.test.", False, flow_pb2.DROPPED),
        (Redirect(ingress=False, kind=L7Kind.DNS), "a.test.", False, flow_pb2.DROPPED),
        (Redirect(False, L7Kind.DNS, allow_all=True), "b.test.", True, flow_pb2.FORWARDED),
        (Redirect(False, L7Kind.DNS, audit=True), "b.test.", True, flow_pb2.AUDIT),
        (Redirect(False, L7Kind.DNS, dns=(DnsRule(pattern="*"),)), ".", True, flow_pb2.FORWARDED),
    ],
)
def test_what_a_redirect_says_of_a_name(redirect, name, allowed, verdict):
    judgement = Gate(1, redirect).judge(dns.message.make_query(name, "A").to_wire())

    assert judgement.allowed is allowed
    assert proxy_pb2.Record.FromString(judgement.request_record).verdict == verdict


def test_what_is_not_understood_is_refused_even_where_everything_is_allowed():
    gate = Gate(1, Redirect(ingress=False, kind=L7Kind.DNS, allow_all=True))
    judgement = gate.judge(dns.message.make_query("a.test.", "A").to_wire() + b"\0")

    assert not judgement.allowed
    assert judgement.query is None
