"""The node as an endpoint, as user space writes it, and what its policy spares."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from cilium_agent.datapath.endpoints import Endpoints
from cilium_agent.datapath.exemptions import Exemption, Exemptions
from cilium_core import abi

from tests.bpf.scenes import EGRESS, INGRESS, TCP_PROTO

if TYPE_CHECKING:
    from tests.bpf.harness import Plane

ID, IFINDEX = 4000, 77
ENFORCED = abi.ENDPOINT_ENFORCE_INGRESS


def test_the_node_has_a_row_under_its_device_and_none_of_an_address(plane: Plane) -> None:
    written = plane.endpoints.upsert_node(ID, IFINDEX, ENFORCED)
    assert (written.identity, written.flags) == (abi.ID_HOST, ENFORCED | abi.ENDPOINT_HOST)
    assert [key for key, _ in plane.maps["DEVICES"].items()] == [IFINDEX.to_bytes(4, "little")]
    assert list(plane.maps["LXC"].items()) == []


def test_its_revision_rises_with_its_flags_and_its_policy(plane: Plane) -> None:
    first = plane.endpoints.upsert_node(ID, IFINDEX).policy_rev
    assert plane.endpoints.upsert_node(ID, IFINDEX).policy_rev == first
    assert plane.endpoints.upsert_node(ID, IFINDEX, ENFORCED).policy_rev == first + 1
    plane.policy.replace(ID, {})
    row = abi.unpack("endpoint_info", dict(plane.maps["DEVICES"].items()).popitem()[1])
    assert (row.policy_rev, row.flags) == (first + 2, ENFORCED | abi.ENDPOINT_HOST)


def test_a_restarted_agent_knows_the_node(plane: Plane) -> None:
    before = plane.endpoints.upsert_node(ID, IFINDEX, ENFORCED)
    assert Endpoints(plane.maps).get(ID) == before


def test_the_node_can_cease_to_be_an_endpoint(plane: Plane) -> None:
    plane.endpoints.upsert_node(ID, IFINDEX)
    assert plane.endpoints.delete(ID)
    assert list(plane.maps["DEVICES"].items()) == []


def test_exemptions_are_replaced_as_a_set(plane: Plane) -> None:
    exemptions = Exemptions(plane.maps)
    store = Exemption(EGRESS, TCP_PROTO, 2379, ipaddress.IPv4Address("172.30.0.1"))
    exemptions.sync([store, Exemption(INGRESS, TCP_PROTO, 4240)])
    exemptions.sync([store])
    ((key, _),) = plane.maps["HOST_EXEMPT"].items()
    row = abi.unpack("exempt_key", key)
    assert (bytes(row.peer)[:4], row.proto, row.direction) == (b"\xac\x1e\x00\x01", 6, EGRESS)
    assert row.port == int.from_bytes((2379).to_bytes(2, "big"), "little")
