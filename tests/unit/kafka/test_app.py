"""The proxy as a whole, without a network: what it restores, and what it does when a part fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from cilium_core.policy.l7 import KafkaRule, L7Kind, Redirect
from cilium_core.proxying import redirects, running
from cilium_core.proxying.redirects import Assignment
from cilium_core.proxying.running import ProxySettings
from kafka_proxy import ports
from kafka_proxy.app import KafkaProxy
from kafka_proxy.budgets import Budget

if TYPE_CHECKING:
    import socket
    from pathlib import Path


def unprivileged(host: str, port: int, kind: socket.SocketKind, *, mark: int) -> socket.socket:
    """A listener that needs no privileges."""
    import socket as sockets

    made = sockets.socket(sockets.AF_INET6 if ":" in host else sockets.AF_INET, kind)
    made.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    made.listen()
    made.setblocking(False)
    return made


@pytest.fixture(autouse=True)
def _unprivileged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "listener", unprivileged)


def free_port() -> int:
    import socket as sockets

    with sockets.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def test_what_was_enforced_last_is_enforced_again(tmp_path: Path) -> None:
    proxy = KafkaProxy(ProxySettings(state_dir=tmp_path))
    proxy.copy.parent.mkdir()
    port = free_port()
    redirect = Redirect(False, L7Kind.KAFKA, kafka=(KafkaRule(topic="a"),))
    redirects.save(proxy.copy, Assignment({port: redirect}))
    await proxy.start()
    try:
        assert len(proxy.ports) == 1
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):  # it does not ask itself
            await reader.read()
        writer.close()
        assert proxy.ports.counters.unreachable == 1
    finally:
        await proxy.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_that_is_taken_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PORT_RETRY_S", 0.05)
    proxy = KafkaProxy(ProxySettings(state_dir=tmp_path))
    redirect = Redirect(False, L7Kind.KAFKA, allow_all=True)
    port = free_port()
    holder = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    await proxy.start()
    try:
        wanted = Assignment({port: redirect})
        errors = await proxy.subscription._take_up(wanted)
        proxy.subscription.assignment = wanted
        assert "in use" in errors[port]
        holder.close()
        await holder.wait_closed()
        async with asyncio.timeout(10):
            while len(proxy.ports) != 1:  # noqa: ASYNC110 - what is waited for knows no events
                await asyncio.sleep(0.02)
    finally:
        await proxy.stop()


async def test_a_part_that_fails_ends_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = KafkaProxy(ProxySettings(state_dir=tmp_path))

    async def fail(_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(proxy.reporter, "run", fail)
    with pytest.raises(ValueError, match="broken"):
        async with asyncio.timeout(20):
            await proxy.run()


async def test_a_budget_serves_in_order_and_forgets_who_gave_up() -> None:
    budget = Budget(10)
    await budget.take(8)
    order: list[str] = []

    async def want(name: str, amount: int) -> None:
        await budget.take(amount)
        order.append(name)

    large = asyncio.create_task(want("large", 9))
    small = asyncio.create_task(want("small", 1))
    await asyncio.sleep(0)
    assert order == []
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    await small
    assert (order, budget.free) == (["small"], 1)
    budget.give(9)
    assert budget.free == 10
