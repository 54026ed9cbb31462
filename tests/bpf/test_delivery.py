"""Where packets go: into pods, into the tunnel, to the node and to the world."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core import abi
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.bpf.harness import TC_OK, TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import (
    BLUE,
    GREEN,
    NOBODY,
    NODE,
    OTHER_NODE,
    RED,
    ROUTER,
    WORLD,
    drops,
    of_type,
    traces,
)

if TYPE_CHECKING:
    from tests.bpf.scenes import Scene

MARK_SNAT_DONE, MARK_OVERLAY, MARK_HOST = 0x0300, 0x0400, 0x0C00


def ttl(scene: Scene, packet: bytes) -> int:
    return int(Ether(packet)[IP].ttl if scene.family == 4 else Ether(packet)[IPv6].hlim)


def ttl_field(scene: Scene, value: int) -> dict[str, Any]:
    return {"ttl" if scene.family == 4 else "hlim": value}


def mark_of(identity: int) -> int:
    return 0x0F00 | (identity & 0xFFFF) << 16 | identity >> 16 & 0xFF


def test_a_packet_to_a_local_pod_gets_its_macs_and_one_hop_less(scene: Scene) -> None:
    run = scene.send(RED, scene.tcp(RED, BLUE, **ttl_field(scene, 64)))
    delivered = scene.parse(run.packet)
    assert run.verdict == TC_REDIRECT
    assert (delivered.src, delivered.dst) == (BLUE.node_mac, BLUE.mac)
    assert ttl(scene, run.packet) == 63


def test_the_header_checksum_follows_the_hop_count(scene4: Scene) -> None:
    for hops in (2, 64, 255):
        packet = Ether(scene4.send(RED, scene4.tcp(RED, BLUE, ttl=hops)).packet)
        given = packet[IP].chksum
        del packet[IP].chksum
        assert given == Ether(bytes(packet))[IP].chksum


def test_nothing_but_macs_and_hops_changes_on_the_way(scene: Scene) -> None:
    sent = scene.tcp(RED, BLUE, payload=b"payload", **ttl_field(scene, 64))
    received = scene.parse(scene.send(RED, sent).packet)
    assert bytes(received[TCP]) == bytes(scene.parse(bytes(sent))[TCP])


@pytest.mark.parametrize("hops", [0, 1])
def test_a_packet_at_its_last_hop_is_dropped(scene: Scene, hops: int) -> None:
    run = scene.send(RED, scene.tcp(RED, BLUE, **ttl_field(scene, hops)))
    assert (run.verdict, drops(run)) == (TC_SHOT, [196])


def test_local_delivery_is_traced_at_the_receiver(scene: Scene) -> None:
    (event,) = scene.send(RED, scene.tcp(RED, BLUE)).events
    assert (event.subtype, event.endpoint, event.dst_id) == (
        abi.TRACE_TO_LXC,
        BLUE.endpoint,
        BLUE.endpoint,
    )
    assert (event.src_identity, event.dst_identity) == (RED.identity, BLUE.identity)


def test_a_packet_to_a_remote_pod_goes_into_the_tunnel(scene: Scene) -> None:
    run = scene.send(RED, scene.tcp(RED, GREEN))
    assert (run.verdict, traces(run), run.mark) == (
        TC_REDIRECT,
        [abi.TRACE_TO_OVERLAY],
        MARK_OVERLAY,
    )


def test_the_event_of_a_tunnelled_packet_names_the_other_node(scene: Scene) -> None:
    (event,) = scene.send(RED, scene.tcp(RED, GREEN)).events
    peer = event.tunnel_peer.to_bytes(4, "little")
    assert str(ipaddress.IPv4Address(peer)) == OTHER_NODE.ipv4
    assert event.flags & abi.EVENT_TUNNEL
    assert (event.src_identity, event.dst_identity) == (RED.identity, GREEN.identity)


def test_a_remote_pod_behind_no_known_node_cannot_be_reached(scene: Scene) -> None:
    prefix = ipaddress.ip_network(scene.address(GREEN))
    key = next(
        key
        for key, _ in scene.plane.maps["IPCACHE"].items()
        if abi.unpack("ipcache_key", key).prefixlen == 32 + prefix.prefixlen
        and prefix.network_address.packed in key
    )
    row = abi.pack("ipcache_info", identity=GREEN.identity, flags=abi.IPCACHE_HAS_TUNNEL)
    scene.plane.maps["IPCACHE"].set(key, row)
    assert drops(scene.send(RED, scene.tcp(RED, GREEN))) == [160]


def test_a_cidr_identity_does_not_travel_in_the_tunnel(scene: Scene) -> None:
    # given a packet of the world that the stack routes to a remote pod
    scene.plane.ipcache.upsert(ipaddress.ip_network(scene.address(WORLD)), 0x01000001)
    assert drops(scene.host_sends(scene.tcp(WORLD, GREEN))) == [171]


@pytest.mark.parametrize("target", [NODE, ROUTER])
def test_a_packet_to_the_node_goes_up_the_stack_with_its_identity(
    scene: Scene, target: object
) -> None:
    node = NODE if target is NODE else ROUTER
    run = scene.send(RED, scene.tcp(RED, node))
    assert (run.verdict, traces(run)) == (TC_OK, [abi.TRACE_TO_STACK])
    assert run.mark == mark_of(RED.identity)
    assert run.packet == bytes(scene.tcp(RED, node))


def test_an_answer_to_the_node_is_marked_as_never_to_be_translated(scene: Scene) -> None:
    scene.stack_sends(RED, scene.tcp(ROUTER, RED))
    run = scene.send(RED, scene.tcp(RED, ROUTER, 80, 40000, flags="SA"))
    assert (run.verdict, run.mark) == (TC_OK, MARK_SNAT_DONE)


def test_a_packet_to_the_world_without_a_route_goes_up_the_stack(scene: Scene) -> None:
    run = scene.send(RED, scene.tcp(RED, WORLD))
    (event,) = of_type(run, abi.EVENT_TRACE)
    assert (run.verdict, event.subtype) == (TC_OK, abi.TRACE_TO_STACK)
    assert event.dst_identity == abi.ID_WORLD


def test_an_address_the_ipcache_knows_has_its_identity(scene: Scene) -> None:
    scene.plane.ipcache.upsert(ipaddress.ip_network(scene.address(WORLD)), 0x01000009)
    (event,) = scene.send(RED, scene.tcp(RED, WORLD)).events
    assert event.dst_identity == 0x01000009


def test_a_packet_out_of_the_tunnel_is_delivered(scene: Scene) -> None:
    run = scene.tunnel(scene.tcp(GREEN, BLUE, **ttl_field(scene, 64)))
    delivered = scene.parse(run.packet)
    assert (run.verdict, traces(run)) == (TC_REDIRECT, [abi.TRACE_TO_LXC])
    assert (delivered.src, delivered.dst) == (BLUE.node_mac, BLUE.mac)
    assert ttl(scene, run.packet) == 63
    assert scene.connection().flags & abi.CT_FROM_TUNNEL


def test_the_identity_in_the_tunnel_is_who_sent_it(scene: Scene) -> None:
    (event,) = scene.tunnel(scene.tcp(GREEN, BLUE), identity=4444).events
    assert event.src_identity == 4444


def test_a_remote_node_in_the_tunnel_is_refined_by_its_address(scene: Scene) -> None:
    prefix = ipaddress.ip_network(scene.address(OTHER_NODE))
    scene.plane.ipcache.upsert(prefix, abi.ID_KUBE_APISERVER)
    (event,) = scene.tunnel(scene.tcp(OTHER_NODE, BLUE), identity=abi.ID_REMOTE_NODE).events
    assert event.src_identity == abi.ID_KUBE_APISERVER


def test_a_remote_node_in_the_tunnel_never_becomes_the_host(scene: Scene) -> None:
    scene.plane.ipcache.upsert(ipaddress.ip_network(scene.address(OTHER_NODE)), abi.ID_HOST)
    (event,) = scene.tunnel(scene.tcp(OTHER_NODE, BLUE), identity=abi.ID_REMOTE_NODE).events
    assert event.src_identity == abi.ID_REMOTE_NODE


def test_a_packet_out_of_the_tunnel_for_the_node_goes_up_the_stack(scene: Scene) -> None:
    run = scene.tunnel(scene.tcp(GREEN, NODE))
    assert (run.verdict, run.mark) == (TC_OK, mark_of(GREEN.identity))


def test_the_tunnel_is_no_way_to_anybody_else(scene: Scene) -> None:
    for target in (NOBODY, WORLD, OTHER_NODE):
        run = scene.tunnel(scene.tcp(GREEN, target))
        assert (run.verdict, drops(run)) == (TC_SHOT, [151])


def test_a_packet_without_a_tunnel_key_is_dropped(scene: Scene) -> None:
    run = scene.plane.run("cil_from_overlay", scene.tcp(GREEN, BLUE), device="vxlan")
    assert (run.verdict, drops(run)) == (TC_SHOT, [147])


def test_what_goes_into_the_tunnel_is_marked_for_the_device_below(scene: Scene) -> None:
    run = scene.plane.run("cil_to_overlay", scene.tcp(RED, GREEN), device="vxlan")
    assert (run.verdict, run.mark) == (TC_OK, MARK_OVERLAY)


def test_the_node_reaches_a_local_pod_by_its_device(scene: Scene) -> None:
    run = scene.host_sends(scene.tcp(ROUTER, RED))
    delivered = scene.parse(run.packet)
    assert (run.verdict, run.mark) == (TC_REDIRECT, MARK_HOST)
    assert (delivered.src, delivered.dst) == (RED.node_mac, RED.mac)


def test_a_routed_packet_reaches_a_pod_with_its_own_identity(scene: Scene) -> None:
    assert scene.host_sends(scene.tcp(WORLD, RED)).mark == mark_of(abi.ID_WORLD)


def test_the_mark_tells_the_pods_device_who_sends(scene: Scene) -> None:
    (event,) = scene.stack_sends(RED, scene.tcp(WORLD, RED), mark=mark_of(0x30042)).events
    assert (event.src_identity, event.subtype) == (0x30042, abi.TRACE_TO_LXC)


def test_the_pods_device_takes_only_what_is_for_the_pod(scene: Scene) -> None:
    assert drops(scene.stack_sends(RED, scene.tcp(ROUTER, BLUE))) == [150]


def test_the_node_speaks_to_remote_pods_as_a_remote_node(scene: Scene) -> None:
    run = scene.host_sends(scene.tcp(ROUTER, GREEN))
    (event,) = of_type(run, abi.EVENT_TRACE)
    assert (run.verdict, event.subtype) == (TC_REDIRECT, abi.TRACE_TO_OVERLAY)
    assert (event.src_identity, event.dst_identity) == (abi.ID_HOST, GREEN.identity)


def test_a_pod_address_nobody_has_is_stale(scene: Scene) -> None:
    run = scene.host_sends(scene.tcp(ROUTER, NOBODY))
    assert (run.verdict, drops(run)) == (TC_SHOT, [151])


def test_what_the_network_has_for_the_node_is_left_alone(scene: Scene) -> None:
    packet = scene.tcp(WORLD, NODE)
    run = scene.arrive(packet)
    assert (run.verdict, run.packet, run.events) == (TC_OK, bytes(packet), [])


def test_the_outer_packets_of_the_tunnel_leave_untouched(scene: Scene) -> None:
    packet = scene.udp(RED, WORLD)
    run = scene.leave(packet, mark=MARK_OVERLAY)
    assert (run.verdict, run.packet) == (TC_OK, bytes(packet))


def test_forwarded_packets_are_counted_by_direction_and_bytes(scene: Scene) -> None:
    packet = scene.tcp(RED, BLUE)
    scene.send(RED, packet)
    scene.send(RED, scene.tcp(RED, GREEN))
    counted = {
        (row.direction, row.packets, row.bytes)
        for row in scene.plane.metrics.dump()
        if row.reason == 0
    }
    assert counted == {(1, 1, len(bytes(packet))), (2, 1, len(bytes(packet)))}


def test_drops_are_counted_with_file_and_line(scene: Scene) -> None:
    packet = scene.tcp(GREEN, BLUE)
    run = scene.send(RED, packet)
    (row,) = scene.plane.metrics.dump()
    (event,) = run.events
    assert (row.reason, row.direction, row.packets) == (132, abi.DIR_EGRESS, 1)
    assert row.bytes == len(bytes(packet))
    assert (row.file, row.line) == (event.file, event.line) != (0, 0)


def test_a_missing_tail_call_is_a_drop_of_its_own(scene: Scene) -> None:
    calls = scene.plane.generation.arrays
    from cilium_agent.datapath import specs, syscalls

    slots = specs.read_calls(specs.bpf_folder())
    program = f"tail_from_container_ipv{scene.family}"
    slot = slots[program].to_bytes(4, "little")
    array = calls[3]  # BPF_PROG_TYPE_SCHED_CLS
    syscalls.delete(array, slot)
    try:
        assert drops(scene.send(RED, scene.tcp(RED, BLUE))) == [140]
    finally:
        fd = scene.plane.generation.programs[program]
        syscalls.update(array, slot, fd.to_bytes(4, "little"))
