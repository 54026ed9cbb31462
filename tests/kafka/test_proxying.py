"""librdkafka's client and broker with the proxy between them: what passes, what fails and how."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.policy.kafka_keys import ROLES
from cilium_core.policy.l7 import KafkaRule, L7Kind, Redirect
from cilium_core.proxying.transparent import packed
from flow import flow_pb2

from tests.kafka.network import PORT, PROXY_PORT
from tests.namespaces import CLIENT, NODE, SERVER
from tests.unit.kafka.messages import METADATA, framed, metadata, parse_response
from tests.unit.waiting import eventually

if TYPE_CHECKING:
    import socket

    from tests.kafka.network import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRODUCE, CONSUME = ROLES["produce"], ROLES["consume"]
DENIED = "TOPIC_AUTHORIZATION_FAILED"


def enforcing(*rules: KafkaRule, **more: Any) -> Redirect:
    return Redirect(False, L7Kind.KAFKA, kafka=rules, **more)


def produce(topic: str, *values: str, **more: Any) -> dict[str, Any]:
    return {"do": "produce", "topic": topic, "values": values or ("x",), **more}


def consume(topic: str, group: str, count: int = 1) -> dict[str, Any]:
    return {"do": "consume", "topic": topic, "group": group, "count": count}


def told(lab: Lab) -> set[tuple[str, str, str]]:
    return {
        (one.l7.kafka.api_key, one.l7.kafka.topic, flow_pb2.Verdict.Name(one.verdict))
        for one in lab.agent.records
        if one.l7.type == flow_pb2.REQUEST
    }


async def test_a_producer_of_one_topic_writes_it_and_no_other(lab: Lab) -> None:
    await lab.enforce(enforcing(KafkaRule(PRODUCE, topic="orders")))
    found = await lab.ask(produce("orders", "a", "b"), produce("secret"), produce("orders", "c"))
    assert found == [["ok", "ok"], [DENIED], ["ok"]], lab.log()
    expected = {("produce", "orders", "FORWARDED"), ("metadata", "secret", "DROPPED")}
    await eventually(lambda: expected <= told(lab))
    assert ("produce", "secret", "FORWARDED") not in told(lab)


async def test_a_consumer_of_one_topic_reads_it_in_a_group_and_no_other(lab: Lab) -> None:
    await lab.enforce(enforcing(KafkaRule()))
    await lab.ask(produce("orders", "one", "two"), produce("secret", "hidden"))
    await lab.enforce(enforcing(KafkaRule(CONSUME, topic="orders")))
    values, hidden = await lab.ask(consume("orders", "g1", 2), consume("secret", "g2"))
    assert len(values) == 2
    assert hidden == DENIED, lab.log()
    expected = {"joingroup", "syncgroup", "offsetfetch", "fetch", "offsetcommit"}
    await eventually(lambda: expected <= {one[0] for one in told(lab) if one[2] == "FORWARDED"})
    (written,) = await lab.ask(produce("orders"))
    assert written == [DENIED] or written == ["_MSG_TIMED_OUT"]
    await eventually(lambda: ("produce", "orders", "DROPPED") in told(lab))


async def test_rules_may_name_clients(lab: Lab) -> None:
    await lab.enforce(enforcing(KafkaRule(client_id="shop")))
    assert await lab.ask({"do": "describe", "topic": "orders"}, client="shop") == [{"orders": "ok"}]
    (other,) = await lab.ask({"do": "describe", "topic": "orders", "limit_s": 2}, client="thief")
    assert other != {"orders": "ok"}


async def test_where_all_is_allowed_requests_are_only_told(lab: Lab) -> None:
    await lab.enforce(enforcing(allow_all=True))
    assert await lab.ask(produce("secret"), produce("other", acks="0")) == [["ok"], ["ok"]]
    await eventually(lambda: {("produce", "secret", "FORWARDED"),
                              ("produce", "other", "FORWARDED")} <= told(lab))  # fmt: skip


async def test_an_audited_request_passes(lab: Lab) -> None:
    await lab.enforce(enforcing(KafkaRule(PRODUCE, topic="orders"), audit=True))
    assert await lab.ask(produce("secret")) == [["ok"]]
    await eventually(lambda: ("produce", "secret", "AUDIT") in told(lab))


async def test_the_broker_sees_the_client_and_records_name_both_ends(lab: Lab) -> None:
    for ingress, seen in ((False, CLIENT[4]), (True, NODE[4])):
        redirect = Redirect(ingress, L7Kind.KAFKA, kafka=(KafkaRule(),))
        await lab.enforce(redirect)
        with contextlib.closing(await lab.connected()) as sock:
            peers = await broker_peers(lab)
            assert any(peer.startswith(f"{seen}:") for peer in peers), peers
            await exchange(sock, metadata("orders"))
            await eventually(lambda: lab.agent.records)
            record = lab.agent.records[0]
            assert (packed(CLIENT[4]), packed(SERVER[4])) == (record.client, record.server)
            assert (sock.getsockname()[1], PORT) == (record.client_port, record.server_port)
            assert (ingress, PROXY_PORT, 6) == (record.ingress, record.proxy_port, record.protocol)


async def broker_peers(lab: Lab) -> list[str]:
    """Peers of the connections to the broker's port, once there are any."""
    found: list[str] = []
    async with asyncio.timeout(10):
        while not found:
            process = await asyncio.create_subprocess_exec(
                *("ip", "netns", "exec", lab.namespaces.server, "ss", "-Hnt", "sport", f":{PORT}"),
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await process.communicate()
            lines = output.decode().replace("[::ffff:", "").replace("]", "").splitlines()
            found = [line.split()[4] for line in lines]
    return found


async def test_clients_over_ipv6_are_served_alike(lab: Lab) -> None:
    await lab.enforce(enforcing(KafkaRule(topic="orders")))
    with contextlib.closing(await lab.connected(6)) as sock:
        for number, (topic, error) in enumerate((("orders", 0), ("secret", 29))):
            answer = await exchange(sock, metadata(topic, correlation_id=number, version=4))
            correlation_id, content = parse_response(METADATA, 4, answer)
            (found,) = content["topics"]
            assert (number, topic, error) == (correlation_id, found["name"], found["error_code"])


async def exchange(sock: socket.socket, request: bytes) -> bytes:
    """Send a request and return the next response with its length."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, framed(request))
    answer = b""
    async with asyncio.timeout(20):
        while len(answer) < 4 or len(answer) < 4 + int.from_bytes(answer[:4], "big"):
            piece = await loop.sock_recv(sock, 65536)
            assert piece, "the connection ended"
            answer += piece
    return answer


async def test_new_rules_end_the_connections_made_under_the_old(lab: Lab) -> None:
    await lab.enforce(enforcing(KafkaRule()))
    with contextlib.closing(await lab.connected()) as sock:
        await exchange(sock, metadata("secret"))
        await lab.enforce(enforcing(KafkaRule(topic="orders")))
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(sock, 65536)


async def test_the_proxy_goes_on_without_the_agent_and_restarts_without_it(lab: Lab) -> None:
    await lab.enforce(enforcing(KafkaRule(PRODUCE, topic="orders")))
    await lab.agent.stop()
    assert await lab.ask(produce("orders"), produce("secret")) == [["ok"], [DENIED]]
    lab.proxy.kill()
    await lab.proxy.wait()
    await lab.start_proxy()
    assert await lab.ask(produce("orders"), produce("secret")) == [["ok"], [DENIED]]
    lab.agent.records.clear()
    await lab.agent.start()
    await eventually(lambda: ("produce", "orders", "FORWARDED") in told(lab))
    assert lab.agent.lost == 0


async def test_the_proxy_ends_when_asked_to(lab: Lab) -> None:
    lab.proxy.terminate()
    async with asyncio.timeout(10):
        assert await lab.proxy.wait() == 0
    await lab.start_proxy()
