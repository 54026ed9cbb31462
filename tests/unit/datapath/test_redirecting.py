"""Packets marked for a proxy are delivered on this node, whomever they are addressed to."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath import redirecting

if TYPE_CHECKING:
    from tests.bpf.harness import Namespace

_LOCAL = 2
_FOREIGN = {socket.AF_INET: "192.0.2.9", socket.AF_INET6: "2001:db8::9"}


def _rules() -> int:
    with nl.session("test") as netlink:
        return sum(
            rule.get_attr("FRA_TABLE") == redirecting.TABLE
            for family in _FOREIGN
            for rule in netlink.get_rules(family=family)
        )


def _delivered_here(family: int, mark: int) -> bool:
    with nl.session("test") as netlink:
        try:
            (route,) = netlink.route("get", family=family, dst=_FOREIGN[family], mark=mark)
        except nl.NetlinkError:
            return False
        return bool(route["type"] == _LOCAL)


def test_marked_packets_to_anybody_are_delivered_here(namespace: Namespace) -> None:
    namespace.call(redirecting.ensure, (4, 6))
    namespace.call(redirecting.ensure, (4, 6))
    assert namespace.call(_rules) == 2
    for family in _FOREIGN:
        assert namespace.call(_delivered_here, family, 0x1234_0200)
        assert not namespace.call(_delivered_here, family, 0)
        assert not namespace.call(_delivered_here, family, 0xB00)


def test_removing_leaves_nothing(namespace: Namespace) -> None:
    namespace.call(redirecting.remove)
    namespace.call(redirecting.ensure, (4,))
    namespace.call(redirecting.remove)
    assert namespace.call(_rules) == 0
