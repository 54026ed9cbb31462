"""Redirects keep their ports, and never share one."""

from __future__ import annotations

import json
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from cilium_agent.proxies import encoding
from cilium_agent.proxies.errors import PortsExhaustedError
from cilium_agent.proxies.ports import PortTable, is_free
from cilium_core.errors import InvalidError
from cilium_core.policy.l7 import (
    DnsRule,
    HeaderMatch,
    HttpRule,
    KafkaRule,
    L7Kind,
    Mismatch,
    Redirect,
    SecretRef,
    TlsContext,
)

if TYPE_CHECKING:
    from pathlib import Path

A, B, C = (Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(path=path),)) for path in "abc")
EVERYTHING = Redirect(
    ingress=False,
    kind=L7Kind.HTTP,
    http=(
        HttpRule(
            path="/a",
            method="GET",
            host="h",
            headers=(
                HeaderMatch("x", "v", True, SecretRef("ns", "s"), Mismatch.REPLACE),
                HeaderMatch("y"),
            ),
        ),
    ),
    dns=(DnsRule(name="a."), DnsRule(pattern="*")),
    kafka=(KafkaRule(frozenset({3, 1}), 0, "c", "t"), KafkaRule()),
    server_names=frozenset({"b", "a"}),
    terminating=TlsContext(SecretRef("ns", "t"), "ca"),
    originating=TlsContext(SecretRef("ns", "o")),
    audit=True,
)


class Clock:
    """Time by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(path: Path, ports: range = range(10000, 10010), clock: Clock | None = None) -> PortTable:
    return PortTable(path / "ports.json", ports, free=lambda _: True, clock=clock or Clock())


def keep(path: Path, redirect: Redirect) -> None:
    """Leave a file behind, as an agent does."""
    table = make(path)
    table.claim(redirect)
    table.save()


def test_equal_redirects_share_a_port_and_others_do_not(tmp_path: Path) -> None:
    table = make(tmp_path)
    again = Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(path="a"),))
    assert table.claim(A) == table.claim(again)
    assert table.claim(A) != table.claim(B)


def test_ports_survive_a_restart_of_the_agent(tmp_path: Path) -> None:
    before = make(tmp_path)
    ports = {one: before.claim(one) for one in (A, B, EVERYTHING)}
    before.save()
    after = make(tmp_path)
    after.load()
    assert dict(after.ports()) == ports
    assert {one: after.claim(one) for one in ports} == ports


def test_the_file_is_for_root_alone(tmp_path: Path) -> None:
    keep(tmp_path, EVERYTHING)
    assert stat.S_IMODE((tmp_path / "ports.json").stat().st_mode) == 0o600


def test_a_port_stays_for_five_minutes_after_its_last_use(tmp_path: Path) -> None:
    clock = Clock()
    table = make(tmp_path, clock=clock)
    port = table.claim(A)
    table.release([A])
    clock.now += 299
    assert table.expire() == []
    assert table.claim(A) == port
    clock.now += 1000
    assert table.expire() == []
    table.release([A])
    clock.now += 300
    assert table.expire() == [A]
    assert table.ports() == {}


def test_what_was_on_disk_stays_until_policies_are_in_force(tmp_path: Path) -> None:
    keep(tmp_path, A)
    clock = Clock()
    table = make(tmp_path, clock=clock)
    table.load()
    clock.now += 10_000
    assert table.expire() == []
    table.release_unclaimed()
    clock.now += 300
    assert table.expire() == [A]


def test_what_was_claimed_since_the_start_is_not_let_go(tmp_path: Path) -> None:
    keep(tmp_path, A)
    clock = Clock()
    table = make(tmp_path, clock=clock)
    table.load()
    table.claim(A)
    table.release_unclaimed()
    clock.now += 10_000
    assert table.expire() == []


def test_a_full_range_is_said_to_be_full(tmp_path: Path) -> None:
    table = make(tmp_path, range(10000, 10002))
    table.claim(A)
    table.claim(B)
    with pytest.raises(PortsExhaustedError, match="proxy-port-range 10000-10001"):
        table.claim(C)


def test_a_port_in_use_by_another_program_is_passed_over(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        assert not is_free(taken)
        table = PortTable(tmp_path / "p", range(taken, taken + 1))
        with pytest.raises(PortsExhaustedError):
            table.claim(A)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"ports": [{"port": 10000}]}',
        b'{"ports": [{"port": 1, "redirect": {"ingress": true, "kind": "http"}}]}',
        b'{"ports": [{"port": 10000, "redirect": {"ingress": 1, "kind": "http"}}]}',
        b'{"ports": [{"port": 10000, "redirect": {"ingress": true, "kind": "x"}}]}',
    ],
)
def test_a_file_that_makes_no_sense_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ports.json").write_bytes(content)
    table = make(tmp_path)
    table.load()
    assert table.ports() == {}


def test_a_redirect_survives_its_text_form() -> None:
    text = json.dumps(encoding.encode(EVERYTHING))
    assert encoding.decode(json.loads(text)) == EVERYTHING
    assert encoding.key(encoding.decode(json.loads(text))) == encoding.key(EVERYTHING)


def test_different_redirects_have_different_keys() -> None:
    assert len({encoding.key(one) for one in (A, B, C, EVERYTHING)}) == 4


def test_a_text_with_unknown_fields_is_refused() -> None:
    with pytest.raises(InvalidError, match="not a redirect"):
        encoding.decode({"ingress": True, "kind": "http", "colour": "red"})
