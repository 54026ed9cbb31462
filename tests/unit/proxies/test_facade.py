"""Redirects are realised by backends, early or late, and never wrongly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cilium_agent.proxies import facade
from cilium_agent.proxies.backends import BackendStatus
from cilium_agent.proxies.facade import Proxies
from cilium_agent.proxies.ports import PortTable
from cilium_agent.proxies.secrets import Secrets
from cilium_core.policy.l7 import HttpRule, KafkaRule, L7Kind, Redirect

from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import pytest

A, B, C = (Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(path=path),)) for path in "abc")


class Fake:
    """A backend that does as it is told."""

    def __init__(self) -> None:
        self.wanted: Mapping[Redirect, int] = {}
        self.bad_ports: set[int] = set()
        self.answers = True
        self.never = asyncio.Event()
        self.started = self.stopped = 0

    @property
    def kinds(self) -> Collection[L7Kind]:
        return (L7Kind.HTTP, L7Kind.TLS)

    async def start(self) -> None:
        self.started += 1

    async def stop(self) -> None:
        self.stopped += 1

    def want(self, ports: Mapping[Redirect, int]) -> None:
        self.wanted = dict(ports)

    async def settled(self, redirects: Collection[Redirect]) -> None:
        assert set(redirects) <= self.wanted.keys()
        if not self.answers:
            await self.never.wait()

    def port_taken(self, redirect: Redirect) -> bool:
        return self.wanted.get(redirect) in self.bad_ports

    def status(self) -> BackendStatus:
        acknowledged = frozenset(self.wanted) if self.answers else frozenset()
        return BackendStatus("fake", acknowledged=acknowledged)


def make(path: Path, backend: Fake, ports: range = range(10000, 10010)) -> Proxies:
    table = PortTable(path / "ports.json", ports, free=lambda _: True)
    return Proxies(table, [backend], Secrets())


async def test_a_redirect_has_its_port_once_its_proxy_enforces_it(tmp_path: Path) -> None:
    backend = Fake()
    proxies = make(tmp_path, backend)
    ports = await proxies.realise([A, B])
    assert dict(ports) == backend.wanted
    assert all(one.acknowledged and one.in_use for one in proxies.status().redirects)


async def test_waiting_for_a_proxy_has_a_limit(tmp_path: Path) -> None:
    backend = Fake()
    backend.answers = False
    proxies = make(tmp_path, backend)
    ports = await proxies.realise([A], limit_s=0.05)
    assert A in ports
    assert not proxies.status().redirects[0].acknowledged


async def test_a_known_redirect_waits_for_nothing(tmp_path: Path) -> None:
    backend = Fake()
    proxies = make(tmp_path, backend)
    ports = await proxies.realise([A])
    backend.answers = False
    assert await proxies.realise([A], limit_s=60) == ports


async def test_a_port_that_somebody_else_has_is_given_up(tmp_path: Path) -> None:
    backend = Fake()
    proxies = make(tmp_path, backend)
    first = (await proxies.realise([A]))[A]
    backend.bad_ports = set(range(10000, 10009)) - {first}
    ports = await proxies.realise([B])
    while ports[B] in backend.bad_ports:  # five attempts may not be enough
        ports = {B: (await proxies.realise([B, C]))[B]}
        backend.bad_ports.discard(ports[B])
    assert ports[B] != first


async def test_a_full_range_leaves_a_redirect_without_port_and_says_so(tmp_path: Path) -> None:
    proxies = make(tmp_path, Fake(), range(10000, 10001))
    ports = await proxies.realise([A, B])
    assert list(ports) == [A]
    assert "proxy-port-range" in proxies.status().line


async def test_a_redirect_without_port_gets_one_when_one_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facade, "SWEEP_S", 0.01)
    table = PortTable(tmp_path / "p", range(10000, 10001), free=lambda _: True, grace_s=0.0)
    proxies = Proxies(table, [Fake()], Secrets())
    told: list[Redirect] = []
    proxies.on_ports_changed = told.extend
    await proxies.start()
    assert list(await proxies.realise([A, B])) == [A]
    proxies.release([A])
    await eventually(lambda: told == [B])
    assert list(await proxies.realise([B])) == [B]
    assert proxies.status().problems == []
    await proxies.stop()


async def test_a_kind_without_proxy_has_no_port(tmp_path: Path) -> None:
    kafka = Redirect(ingress=True, kind=L7Kind.KAFKA, kafka=(KafkaRule(topic="t"),))
    proxies = make(tmp_path, Fake())
    assert await proxies.realise([kafka]) == {}
    assert "no proxy for kafka" in proxies.status().problems[0]


async def test_a_restarted_agent_tells_its_proxies_what_they_did_before(tmp_path: Path) -> None:
    first = make(tmp_path, Fake())
    await first.start()
    ports = await first.realise([A, B])
    await first.stop()
    backend = Fake()
    second = make(tmp_path, backend)
    await second.start()
    assert backend.wanted == ports
    assert (backend.started, backend.stopped) == (1, 0)
    assert await second.realise([A, B]) == ports
    await second.stop()
