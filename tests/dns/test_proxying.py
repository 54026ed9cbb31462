"""The DNS proxy with real packets: what passes, what does not, and from where it seems to come."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import dns.flags
import dns.message
import dns.rcode
import pytest
from cilium_core.policy.l7 import DnsRule, L7Kind, Redirect
from cilium_core.proxying import transparent
from cilium_core.proxying.redirects import DnsOptions
from flow import flow_pb2

from tests.dns.network import PROXY_PORT, DnsServer, addresses, framed, lab, read_framed
from tests.namespaces import CLIENT, NODE, inside, udp
from tests.unit.waiting import eventually

RULES = Redirect(
    ingress=False,
    kind=L7Kind.DNS,
    dns=(DnsRule(name="api.example.com"), DnsRule(pattern="*.allowed.test")),
)
TRANSPORTS = [
    pytest.param(4, False, id="udp4"),
    pytest.param(6, False, id="udp6"),
    pytest.param(4, True, id="tcp4"),
    pytest.param(6, True, id="tcp6"),
]


@pytest.mark.parametrize(("family", "tcp"), TRANSPORTS)
async def test_allowed_names_are_resolved_and_others_refused(state_dir, family, tcp):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)

        allowed = await dns_lab.ask("API.example.com.", family=family, tcp=tcp)
        refused = await dns_lab.ask("www.example.com.", family=family, tcp=tcp)

        assert [str(item) for item in allowed.answer[0]] == ["192.0.2.1"]
        assert (refused.rcode(), refused.answer) == (dns.rcode.REFUSED, [])
        assert refused.question[0].name.to_text() == "www.example.com."
        assert [str(query.question[0].name) for query, _ in dns_lab.server.asked] == [
            "API.example.com."
        ]
        assert dns_lab.server.asked[0][1][0] == CLIENT[family]
        await eventually(lambda: len(dns_lab.agent.records) == 3)
        assert dns_lab.agent.names.known() == {("api.example.com.", "192.0.2.1")}


async def test_a_refusal_can_say_that_the_name_does_not_exist(state_dir):
    async with lab(state_dir) as dns_lab:
        dns_lab.agent.board.publish_options(DnsOptions(reject_rcode=3))
        await dns_lab.enforce(RULES)

        assert (await dns_lab.ask("www.example.com.")).rcode() == dns.rcode.NXDOMAIN


async def test_rules_change_between_two_queries_of_one_socket(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        assert (await dns_lab.ask("a.allowed.test.")).rcode() == 0

        await dns_lab.enforce(Redirect(ingress=False, kind=L7Kind.DNS))
        assert (await dns_lab.ask("a.allowed.test.")).rcode() == dns.rcode.REFUSED

        await dns_lab.enforce(Redirect(ingress=False, kind=L7Kind.DNS, allow_all=True))
        assert (await dns_lab.ask("www.example.com.")).rcode() == 0


async def test_an_audited_redirect_lets_pass_what_it_would_refuse_and_says_so(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(Redirect(ingress=False, kind=L7Kind.DNS, audit=True))

        assert (await dns_lab.ask("www.example.com.")).rcode() == 0
        await eventually(lambda: len(dns_lab.agent.records) == 2)
        assert dns_lab.agent.records[0].verdict == flow_pb2.AUDIT


async def test_records_tell_who_asked_whom_for_what_and_what_came_back(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        await dns_lab.ask("api.example.com.", "AAAA", family=6)
        await dns_lab.ask("evil.example.com.", "MX")
        await eventually(lambda: len(dns_lab.agent.records) == 3)
        request, response, refused = dns_lab.agent.records

    assert (request.verdict, request.l7.type) == (flow_pb2.FORWARDED, flow_pb2.REQUEST)
    assert (request.protocol, request.server_port, request.proxy_port) == (17, 53, 10053)
    assert len(request.client) == len(request.server) == 16
    assert (request.l7.dns.query, list(request.l7.dns.qtypes)) == ("api.example.com.", ["AAAA"])
    assert request.l7.dns.observation_source == "proxy"
    assert (response.client_port, response.client) == (request.client_port, request.client)
    assert list(response.l7.dns.ips) == ["2001:db8::1"]
    assert (response.l7.dns.ttl, list(response.l7.dns.rrtypes)) == (60, ["AAAA"])
    assert 0 < response.l7.latency_ns < 5e9
    assert abs(response.time_ns - time.time_ns()) < 60e9
    assert (refused.verdict, refused.l7.dns.query) == (flow_pb2.DROPPED, "evil.example.com.")


async def test_an_answer_waits_until_the_agent_has_told_the_kernel(state_dir):
    async with lab(state_dir) as dns_lab:
        dns_lab.agent.board.publish_options(DnsOptions(response_max_delay_s=30))
        await dns_lab.enforce(RULES)
        dns_lab.agent.names.go.clear()
        asking = asyncio.create_task(dns_lab.ask("api.example.com."))
        await eventually(lambda: dns_lab.agent.names.observed)
        assert not asking.done()

        dns_lab.agent.names.go.set()
        assert (await asking).answer


async def test_an_answer_waits_no_longer_than_told(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        dns_lab.agent.names.go.clear()
        began = time.monotonic()

        assert (await dns_lab.ask("api.example.com.")).answer
        assert 0.09 < time.monotonic() - began < 3
        dns_lab.agent.names.go.set()


async def test_an_answer_that_the_agent_knows_does_not_wait(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        for _ in range(5):
            await dns_lab.ask("api.example.com.")

        assert len(dns_lab.agent.names.observed) == 1


async def test_a_response_to_another_question_is_not_believed(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)

        def forged(query: dns.message.Message) -> list[bytes]:
            other = dns.message.make_query("b.allowed.test.", "A", id=query.id)
            wrong_id = dns.message.from_wire(query.to_wire())
            wrong_id.id ^= 1
            real = addresses(query, "192.0.2.5")
            return [*addresses(other, "192.0.2.66"), *addresses(wrong_id, "192.0.2.67"), *real]

        dns_lab.server.respond = forged
        answer = await dns_lab.ask("a.allowed.test.")

        assert [str(item) for item in answer.answer[0]] == ["192.0.2.5"]
        assert dns_lab.agent.names.known() == {("a.allowed.test.", "192.0.2.5")}


async def test_a_malformed_answer_is_not_passed_on(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        dns_lab.server.respond = lambda query: [addresses(query)[0][:-3]]

        answer = await dns_lab.ask("api.example.com.")

        assert (answer.rcode(), answer.answer) == (dns.rcode.SERVFAIL, [])
        assert dns_lab.agent.names.observed == []


async def test_a_truncated_answer_makes_the_client_ask_by_tcp(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)

        def truncated(query: dns.message.Message) -> list[bytes]:
            response = dns.message.make_response(query)
            response.flags |= dns.flags.TC
            return [response.to_wire()]

        dns_lab.server.respond = truncated
        assert (await dns_lab.ask("api.example.com.")).flags & dns.flags.TC
        many = [f"192.0.2.{n}" for n in range(250)]
        dns_lab.server.respond = lambda query: addresses(query, *many)
        whole = await dns_lab.ask("api.example.com.", tcp=True)
        assert len(whole.answer[0]) == 250
        assert len(dns_lab.agent.names.known()) == 250


async def test_options_of_a_query_reach_the_server(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        await dns_lab.ask("api.example.com.", use_edns=0, payload=1400, want_dnssec=True)
        seen = dns_lab.server.asked[0][0]

    assert (seen.payload, seen.ednsflags & dns.flags.DO) == (1400, dns.flags.DO)


async def test_a_server_that_is_silent_gets_no_answer_invented_for_it(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        dns_lab.server.respond = lambda _: []
        with pytest.raises(TimeoutError):
            await dns_lab.ask("api.example.com.", limit_s=0.5)
        await eventually(
            lambda: any(r.verdict == flow_pb2.ERROR for r in dns_lab.agent.records), 20
        )


async def test_a_server_that_is_not_there_is_a_failure_told_at_once(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        await dns_lab.server.stop()
        for tcp in (False, True):
            answer = await dns_lab.ask("api.example.com.", tcp=tcp)
            assert answer.rcode() == dns.rcode.SERVFAIL


async def test_queries_of_one_stream_are_judged_one_by_one(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        reader, writer = await dns_lab.connect()
        names = ["api.example.com.", "bad.test.", "x.allowed.test.", "x.y.allowed.test."]
        queries = [dns.message.make_query(name, "A", id=i) for i, name in enumerate(names)]
        writer.write(b"".join(framed(query.to_wire()) for query in queries))
        answers = {}
        for _ in names:
            response = dns.message.from_wire(await read_framed(reader))
            answers[names[response.id]] = response.rcode()
        writer.close()

        assert answers == {
            "api.example.com.": 0,
            "x.allowed.test.": 0,
            "bad.test.": dns.rcode.REFUSED,
            "x.y.allowed.test.": dns.rcode.REFUSED,
        }
        assert len({sender for _, sender in dns_lab.server.asked}) == 1


async def test_a_zone_transfer_of_several_messages_passes(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(Redirect(ingress=False, kind=L7Kind.DNS, allow_all=True))

        def transfer(query: dns.message.Message) -> list[bytes]:
            first = dns.message.make_response(query).to_wire()
            return [first, first, first]

        dns_lab.server.respond = transfer
        reader, writer = await dns_lab.connect()
        writer.write(framed(dns.message.make_query("allowed.test.", "AXFR").to_wire()))
        for _ in range(3):
            await asyncio.wait_for(read_framed(reader), 5)
        writer.close()


async def test_server_ports_change_and_ids_do_not_repeat_in_order(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        for number in range(600):
            await dns_lab.ask(f"n{number}.allowed.test.", "TXT")
        ids = [query.id for query, _ in dns_lab.server.asked]
        ports = {sender[1] for _, sender in dns_lab.server.asked}

    assert len(ports) >= 3
    assert len(set(ids)) > 580


async def test_a_server_on_the_node_itself_is_asked_from_there(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        for family in (4, 6):
            local = DnsServer(dns_lab.namespaces.node, host=NODE[family])
            await local.start()
            try:
                for tcp in (False, True):
                    answer = await dns_lab.ask(
                        "api.example.com.", family=family, tcp=tcp, server=NODE[family]
                    )
                    assert answer.answer
                assert {sender[0] for _, sender in local.asked} == {NODE[family]}
            finally:
                await local.stop()


async def test_a_process_of_the_node_cannot_make_the_proxy_ask_itself(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        query = dns.message.make_query("api.example.com.", "A").to_wire()
        place = ("127.0.0.1", PROXY_PORT)
        with contextlib.closing(udp(dns_lab.namespaces.node, 4)) as sock:
            sock.sendto(query, place)
        with inside(dns_lab.namespaces.node):
            sock = socket.create_connection(place, timeout=5)
        with contextlib.closing(sock):
            assert sock.recv(1) == b""
        assert (await dns_lab.ask("api.example.com.")).answer
        assert len(dns_lab.server.asked) == 1


@pytest.mark.parametrize("family", [4, 6])
async def test_queries_above_the_limit_are_failures(state_dir, family):
    async with lab(state_dir) as dns_lab:
        dns_lab.agent.board.publish_options(DnsOptions(concurrency_limit=1))
        await dns_lab.enforce(RULES)
        dns_lab.server.respond = lambda _: []
        first = asyncio.create_task(dns_lab.ask("api.example.com.", family=family, limit_s=1))
        await eventually(lambda: dns_lab.server.asked)

        second = await dns_lab.ask("a.allowed.test.", family=family)

        assert second.rcode() == dns.rcode.SERVFAIL
        with pytest.raises(TimeoutError):
            await first


async def test_a_client_that_has_finished_speaking_still_gets_its_answers(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        reader, writer = await dns_lab.connect()
        writer.write(framed(dns.message.make_query("a.allowed.test.", "A").to_wire()))
        writer.write_eof()

        assert dns.message.from_wire(await asyncio.wait_for(read_framed(reader), 5)).answer
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


@pytest.mark.parametrize("family", [4, 6])
async def test_an_answer_larger_than_a_packet_arrives(state_dir, family):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        many = [f"192.0.2.{n}" for n in range(250)]
        dns_lab.server.respond = lambda query: addresses(query, *many)
        answer = await dns_lab.ask("a.allowed.test.", family=family, use_edns=0, payload=8192)

        assert len(answer.answer[0]) == 250


async def test_a_server_can_start_on_the_node_while_clients_are_served(state_dir):
    async with lab(state_dir) as dns_lab:
        await dns_lab.enforce(RULES)
        await dns_lab.ask("a.allowed.test.")
        everywhere = DnsServer(dns_lab.namespaces.node)
        await everywhere.start()
        try:
            assert (await dns_lab.ask("b.allowed.test.")).answer
            assert everywhere.asked == []
        finally:
            await everywhere.stop()


@pytest.mark.usefixtures("state_dir")
def test_streams_say_their_protocol_or_answers_would_wait_for_more():
    made = [
        transparent.listener("127.0.0.1", 0, socket.SOCK_STREAM, mark=0),
        transparent.upstream(socket.SOCK_STREAM, None, family=socket.AF_INET, mark=0),
        transparent.upstream(socket.SOCK_STREAM, ("::1", 0), family=socket.AF_INET6, mark=0),
    ]
    for sock in made:
        sock.close()

    assert {sock.proto for sock in made} == {socket.IPPROTO_TCP}
