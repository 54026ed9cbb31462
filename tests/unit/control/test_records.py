from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest
from cilium_core.errors import InvalidError
from cilium_core.records import (
    CILIUM_INTERNAL_IP,
    INTERNAL_IP,
    IPRecord,
    NodeAddress,
    NodeRecord,
    PodCIDRRecord,
    prefix_of_ip_key,
)

NODE = NodeRecord(
    "n1",
    "default",
    (
        NodeAddress(INTERNAL_IP, ip_address("172.30.0.11")),
        NodeAddress(CILIUM_INTERNAL_IP, ip_address("10.244.0.1")),
        NodeAddress(INTERNAL_IP, ip_address("fd00:30::b")),
    ),
    (ip_network("10.244.0.0/24"), ip_network("10.9.0.0/24"), ip_network("fd00:244::/64")),
    labels={"zone": "a"},
    boot_id="b",
)


def test_a_node_record_survives_the_store() -> None:
    assert NodeRecord.from_json(NODE.to_json()) == NODE
    assert NODE.key == "cilium/state/nodes/v1/default/n1"
    assert str(NODE.address(6)) == "fd00:30::b"
    assert str(NODE.address(4, CILIUM_INTERNAL_IP)) == "10.244.0.1"
    assert NODE.address(6, CILIUM_INTERNAL_IP) is None


def test_a_node_record_has_ciliums_names() -> None:
    data = json.loads(NODE.to_json())
    assert data["IPAddresses"][0] == {"Type": "InternalIP", "IP": "172.30.0.11"}
    assert data["IPv4AllocCIDR"] == {"IP": "10.244.0.0", "Mask": "////AA=="}
    assert data["IPv4SecondaryAllocCIDRs"] == [{"IP": "10.9.0.0", "Mask": "////AA=="}]
    assert data["IPv6AllocCIDR"]["IP"] == "fd00:244::"


@pytest.mark.parametrize("prefix", ["10.244.0.7/32", "fd00::7/128", "10.0.0.0/8", "fd00::/8"])
def test_an_ip_record_survives_the_store(prefix: str) -> None:
    record = IPRecord(
        ip_network(prefix),
        4242,
        ip_address("172.30.0.11"),
        namespace="ns",
        pod_name="p",
        named_ports=(("http", 80, "TCP"),),
    )
    assert IPRecord.from_json(record.to_json()) == record
    assert prefix_of_ip_key(record.key) == record.prefix


def test_the_key_of_a_single_address_has_no_prefix_length() -> None:
    assert IPRecord(ip_network("10.0.0.7/32"), 1).key == "cilium/state/ip/v1/default/10.0.0.7"


def test_a_pod_cidr_record_survives_the_store() -> None:
    record = PodCIDRRecord("n1", (ip_network("10.244.0.0/24"),), "no IPv6")
    assert PodCIDRRecord.from_json(record.key, record.to_json()) == record


@pytest.mark.parametrize(
    "value",
    [b"", b"[]", b"\xff", b"{}", b'{"Name":1,"Cluster":"c","IPAddresses":[{"IP":"x"}]}'],
)
def test_what_is_no_record_is_refused_without_a_crash(value: bytes) -> None:
    with pytest.raises(InvalidError):
        NodeRecord.from_json(value)
    with pytest.raises(InvalidError):
        IPRecord.from_json(value)
    if value != b"{}":
        try:
            PodCIDRRecord.from_json("cilium/state/podcidrs/v1/n", value)
        except InvalidError:
            return
        assert value.startswith(b'{"Name"')
