"""What survives whom: Envoy, the agent, and the connections through them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from cilium_agent.proxies import ports as port_table
from cilium_agent.proxies.envoy.counting import statistics
from cilium_core.policy.l7 import HttpRule, L7Kind, Redirect

from tests.namespaces import SERVER, connected, inside
from tests.proxies.origins import DISCONNECTS, call, read_answer
from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.proxies.networks import Node

pytestmark = pytest.mark.asyncio(loop_scope="module")

A, B = (
    Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(path=path),)) for path in ("/a", "/b")
)


async def works(node: Node) -> bool:
    try:
        return (await call(node.namespaces, "GET", "/a")).status == 200
    except (*DISCONNECTS, TimeoutError):
        return False


def pid(node: Node) -> int:
    program = node.envoy.status().program
    return program.pid if program else 0


async def added(node: Node) -> dict[str, int]:
    """How often Envoy's listeners were touched."""
    admin = node.state_dir / "proxies" / "envoy-admin.sock"
    return await statistics(admin, "listener_manager.listener_(added|modified|removed)")


async def test_an_envoy_that_is_killed_enforces_again_within_two_seconds(node: Node) -> None:
    await node.enforce({80: A})
    assert await works(node)
    os.kill(pid(node), signal.SIGKILL)
    await eventually(lambda: works(node), limit_s=2.0)
    assert (await call(node.namespaces, "GET", "/secret")).status == 403


async def test_nothing_gets_through_while_envoy_is_dead(node: Node) -> None:
    await node.enforce({80: A})
    await eventually(lambda: works(node))
    os.kill(pid(node), signal.SIGSTOP)
    stopped = pid(node)
    try:
        with pytest.raises((*DISCONNECTS, TimeoutError)):
            await asyncio.wait_for(call(node.namespaces, "GET", "/a"), 0.5)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert await works(node)


async def test_without_an_agent_envoy_goes_on_and_the_next_agent_changes_nothing(
    node: Node,
) -> None:
    await node.enforce({80: A})
    await eventually(lambda: works(node))
    before, process = await added(node), pid(node)
    sock = await connected(node.namespaces.client, SERVER[4], 80)
    reader, writer = await asyncio.open_connection(sock=sock)
    ports = await node.proxies.realise([A])

    await node.proxies.stop()
    assert await works(node)

    node.start_parts()
    await node.proxies.start()
    assert await node.proxies.realise([A], limit_s=20) == ports
    await eventually(lambda: A in node.envoy.status().acknowledged)
    assert pid(node) == process
    assert await added(node) == before
    writer.write(b"GET /a HTTP/1.1\r\nhost: web\r\n\r\n")
    assert (await read_answer(reader)).status == 200
    writer.close()


async def test_an_envoy_that_died_with_the_agent_is_started_by_the_next(node: Node) -> None:
    await node.enforce({80: A})
    process = pid(node)
    await node.proxies.stop()
    os.kill(process, signal.SIGKILL)
    node.start_parts()
    await node.proxies.start()
    await eventually(lambda: works(node))
    assert pid(node) not in (0, process)


async def test_a_new_redirect_leaves_connections_of_others_alone(node: Node) -> None:
    await node.enforce({80: A})
    await eventually(lambda: works(node))
    sock = await connected(node.namespaces.client, SERVER[4], 80)
    reader, writer = await asyncio.open_connection(sock=sock)
    await node.proxies.realise([B], limit_s=20)
    writer.write(b"GET /a HTTP/1.1\r\nhost: web\r\n\r\n")
    assert (await read_answer(reader)).status == 200
    writer.close()


async def test_a_redirect_that_is_gone_closes_its_connections(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(path="/gone"),))
    await node.enforce({80: gone})
    sock = await connected(node.namespaces.client, SERVER[4], 80)
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(b"GET /gone HTTP/1.1\r\nhost: web\r\n\r\n")
    assert (await read_answer(reader)).status == 200
    monkeypatch.setattr(node.ports, "_grace_s", 0.0)
    node.proxies.release([gone])
    assert node.ports.expire() == [gone]
    node.envoy.want(node.ports.ports())
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


@pytest.fixture
async def stranger(node: Node) -> AsyncIterator[int]:
    """A port of the range that another program listens on."""
    with inside(node.namespaces.node):
        other = socket.socket()
    other.bind(("127.0.0.1", 10150))
    other.listen()
    yield 10150
    other.close()


async def test_a_port_that_a_stranger_took_is_given_up_for_another(
    node: Node, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(path="/fresh"),))
    picks = iter([stranger])
    usual = port_table.PortTable._pick
    monkeypatch.setattr(
        port_table.PortTable, "_pick", lambda table: next(picks, None) or usual(table)
    )
    ports = await node.proxies.realise([fresh], limit_s=20)
    assert ports[fresh] != stranger
    assert fresh in node.envoy.status().acknowledged


async def test_a_refusal_is_loud_and_spares_the_others(node: Node, stranger: int) -> None:
    lost = Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(path="/lost"),))
    ports = await node.proxies.realise([A], limit_s=20)
    node.envoy.want({A: ports[A], lost: stranger})
    await node.envoy.settled([A, lost])
    status = node.envoy.status()
    assert "Address already in use" in status.errors[lost]
    assert A in status.acknowledged
    assert lost not in status.acknowledged
    assert node.envoy.port_taken(lost)
    node.namespaces.steer({80: ports[A]})
    assert await works(node)


async def test_envoy_answers_for_its_numbers(node: Node) -> None:
    await node.enforce({80: A})
    await eventually(lambda: works(node))
    admin = node.state_dir / "proxies" / "envoy-admin.sock"
    numbers = await statistics(admin, "^http[.]redirect[.]downstream_rq_completed$")
    assert numbers["http.redirect.downstream_rq_completed"] >= 1
