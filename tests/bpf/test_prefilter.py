"""XDP in front of the data plane: denied prefixes and sources that send too fast."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from cilium_core import abi

from tests.bpf.harness import XDP_DROP, XDP_PASS
from tests.bpf.scenes import NODE, WORLD

if TYPE_CHECKING:
    from cilium_agent.datapath.maps import Map

    from tests.bpf.harness import Run
    from tests.bpf.scenes import Scene


def arrive(scene: Scene, source: str | None = None) -> Run:
    packet = scene.udp(source or scene.address(WORLD), NODE)
    return scene.plane.run("cil_xdp_entry", packet)


def deny(scene: Scene, prefix: str) -> None:
    network = ipaddress.ip_network(prefix)
    if scene.family == 4:
        address = int.from_bytes(network.network_address.packed, "little")
        key = abi.pack("cidr_key4", prefixlen=network.prefixlen, addr=address)
    else:
        key = abi.pack(
            "cidr_key6", prefixlen=network.prefixlen, addr=network.network_address.packed
        )
    _table(scene).set(key, abi.pack("cidr_info"))


def _table(scene: Scene) -> Map:
    return scene.plane.maps["CIDR4" if scene.family == 4 else "CIDR6"]


def _prefix(scene: Scene, ipv4: str, ipv6: str) -> str:
    return ipv4 if scene.family == 4 else ipv6


def limit(scene: Scene, pps: int, burst: int) -> None:
    scene.plane.configuration.patch(rate_limit_pps=pps, rate_limit_burst=burst)


def test_without_list_and_limit_everything_passes(scene: Scene) -> None:
    assert arrive(scene).verdict == XDP_PASS


def test_a_source_in_a_denied_prefix_is_dropped_without_an_event(scene: Scene) -> None:
    deny(scene, _prefix(scene, "198.51.100.0/24", "2001:db8::/64"))
    run = arrive(scene)
    assert (run.verdict, run.events) == (XDP_DROP, [])


def test_a_source_outside_the_prefix_passes(scene: Scene) -> None:
    deny(scene, _prefix(scene, "198.51.100.0/29", "2001:db8::/125"))
    assert arrive(scene).verdict == XDP_DROP
    assert arrive(scene, _prefix(scene, "198.51.100.8", "2001:db8::8")).verdict == XDP_PASS


def test_a_dropped_packet_counts_for_the_longest_prefix_and_in_the_metrics(
    scene: Scene,
) -> None:
    deny(scene, _prefix(scene, "198.51.0.0/16", "2001:db8::/32"))
    deny(scene, _prefix(scene, "198.51.100.7/32", "2001:db8::7/128"))
    for _ in range(3):
        arrive(scene)
    name = "cidr_key4" if scene.family == 4 else "cidr_key6"
    counted = {
        abi.unpack(name, key).prefixlen: abi.unpack("cidr_info", value).packets
        for key, value in _table(scene).items()
    }
    assert counted == ({16: 0, 32: 3} if scene.family == 4 else {32: 0, 128: 3})
    assert scene.plane.counter(181, abi.DIR_INGRESS) == 3


def test_a_source_may_send_its_burst_and_no_more(scene: Scene) -> None:
    limit(scene, pps=1, burst=5)
    verdicts = [arrive(scene).verdict for _ in range(8)]
    assert verdicts == [XDP_PASS] * 5 + [XDP_DROP] * 3
    assert scene.plane.counter(198, abi.DIR_INGRESS) == 3


def test_each_source_has_a_bucket_of_its_own(scene: Scene) -> None:
    limit(scene, pps=1, burst=1)
    other = _prefix(scene, "203.0.113.1", "2001:db8:1::1")
    assert [arrive(scene).verdict, arrive(scene).verdict] == [XDP_PASS, XDP_DROP]
    assert arrive(scene, other).verdict == XDP_PASS


def test_a_refusal_is_told_once_until_the_source_is_let_through_again(scene: Scene) -> None:
    limit(scene, pps=1, burst=1)
    runs = [arrive(scene) for _ in range(4)]
    assert [len(run.events) for run in runs] == [0, 1, 0, 0]
    (event,) = runs[1].events
    assert (event.type, event.subtype, event.file) == (abi.EVENT_DROP, 198, abi.FILE_XDP)
    assert event.source == scene.address(WORLD)


@pytest.mark.parametrize(("seconds", "earned"), [(1, 2), (2, 4), (60, 10)])
def test_a_bucket_fills_with_time_up_to_its_burst(scene: Scene, seconds: int, earned: int) -> None:
    limit(scene, pps=2, burst=10)
    while arrive(scene).verdict == XDP_PASS:
        pass
    table = scene.plane.maps["RATELIMIT"]
    ((key, value),) = table.items()
    bucket = abi.unpack("rate_bucket", value)
    bucket.last_ns = max(0, bucket.last_ns - seconds * 10**9)
    bucket.tokens = 0
    table.set(key, abi.as_bytes(bucket))
    passed = 0
    while arrive(scene).verdict == XDP_PASS:
        passed += 1
    # the walk itself may earn one
    assert earned <= passed <= earned + 1


def test_other_protocols_are_not_looked_at(scene4: Scene) -> None:
    from scapy.layers.l2 import ARP, Ether

    limit(scene4, pps=1, burst=1)
    for _ in range(5):
        assert scene4.plane.run("cil_xdp_entry", Ether() / ARP()).verdict == XDP_PASS
