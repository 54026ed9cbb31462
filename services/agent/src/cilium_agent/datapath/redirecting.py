"""What brings a packet that the programs marked for a proxy to a socket of this node.

The programs give a packet the mark MARK_TO_PROXY and assign the proxy's socket to it. A rule sends
marked packets to a routing table in which every address is this node's own, so that the kernel
delivers what is addressed to anybody. Both are made once and stay when the agent goes.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from cilium_core import abi

from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath.netlink import NetlinkError
from cilium_agent.datapath.routes import FAMILIES, PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK: Final = abi.MARK_TO_PROXY
MASK: Final = abi.MARK_MASK
TABLE: Final = abi.PROXY_TABLE
PRIORITY: Final = abi.PROXY_RULE_PRIORITY
_LOCAL: Final = 2
_SCOPE_HOST: Final = 254
_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


def ensure(versions: Iterable[int]) -> None:
    """Have rule and table for these IP versions. Raises DeviceError when the kernel refuses."""
    with nl.session("routes to the proxies") as netlink:
        loopback = nl.index_of(netlink, "lo")
        netlink.link("set", index=loopback, state="up")
        for version in versions:
            family = FAMILIES[version]
            more = {"scope": _SCOPE_HOST} if version == 4 else {}
            netlink.route(
                "replace",
                family=family,
                dst=_EVERYWHERE[version],
                type=_LOCAL,
                oif=loopback,
                table=TABLE,
                proto=PROTOCOL,
                **more,
            )
            if not _has_rule(netlink, family):
                _rule(netlink, "add", family)


def remove() -> None:
    """Take rules and tables away; those that are not there are fine."""
    with nl.session("routes to the proxies") as netlink:
        for version, family in FAMILIES.items():
            while _has_rule(netlink, family):
                _rule(netlink, "del", family)
            more = {"scope": _SCOPE_HOST} if version == 4 else {}
            try:
                netlink.route(
                    "del",
                    family=family,
                    dst=_EVERYWHERE[version],
                    type=_LOCAL,
                    table=TABLE,
                    proto=PROTOCOL,
                    **more,
                )
            except NetlinkError as error:
                if error.code not in (errno.ESRCH, errno.ENOENT):
                    raise


def _rule(netlink: Any, command: str, family: int) -> None:
    netlink.rule(
        command,
        family=family,
        priority=PRIORITY,
        fwmark=MARK,
        fwmask=MASK,
        table=TABLE,
        protocol=PROTOCOL,
    )


def _has_rule(netlink: Any, family: int) -> bool:
    return any(
        rule.get_attr("FRA_PRIORITY") == PRIORITY
        and rule.get_attr("FRA_FWMARK") == MARK
        and rule.get_attr("FRA_FWMASK") == MASK
        and rule.get_attr("FRA_TABLE") == TABLE
        for rule in netlink.get_rules(family=family)
    )
