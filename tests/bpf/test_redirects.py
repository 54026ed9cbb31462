"""Redirects to proxies: what is decided, marked, tracked and told; see also test_proxied_traffic.

A run by prog-test-run is at no hook, so that it cannot assign a socket: what is for a listener ends
in 178 where nobody listens, and nothing of it goes on.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent.datapath import NO_PORT
from cilium_core import abi
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Raw

from tests.bpf.harness import TC_OK, TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import (
    ALLOW,
    BLUE,
    DENY,
    EGRESS,
    GREEN,
    INGRESS,
    NODE,
    OTHER_NODE,
    RED,
    ROUTER,
    SCTP_PROTO,
    TCP_PROTO,
    UDP_PROTO,
    WORLD,
    drops,
    of_type,
    port_rule,
    traces,
    verdicts,
)

if TYPE_CHECKING:
    from cilium_agent.datapath.models import Connection

    from tests.bpf.harness import Run
    from tests.bpf.scenes import Inhabitant, Scene

PORT = 10500
NO_PROXY, NO_SUPPORT, DENIED, FRAGMENTED = 178, 180, 133, 157
THROUGH = ALLOW._replace(redirect=PORT, cookie=7)
ANY = 0


def marked(kind: int, who: Inhabitant) -> int:
    """Mark of what a proxy sends, as cilium_host's program passes it on."""
    return kind | (who.identity & 0xFFFF) << 16 | who.identity >> 16


def to_proxy(port: int) -> int:
    """Mark of a packet for the proxy at a port."""
    return abi.MARK_TO_PROXY | int.from_bytes(port.to_bytes(2, "big"), "little") << 16


def redirect(scene: Scene, pod: Inhabitant, direction: int, proto: int = TCP_PROTO) -> None:
    """All of a pod's traffic in one direction goes through the proxy."""
    scene.rules(pod, {port_rule(direction, ANY, proto, bits=8): THROUGH})


def zones(scene: Scene) -> dict[int, Connection]:
    return {connection.zone: connection for connection in scene.connections()}


@pytest.mark.parametrize(
    ("pod", "direction", "flags"),
    [
        (RED, EGRESS, abi.CT_PROXY_REDIRECT),
        (BLUE, INGRESS, abi.CT_PROXY_REDIRECT | abi.CT_PROXY_INGRESS),
    ],
    ids=["egress", "ingress"],
)
def test_a_redirected_connection_is_tracked_with_its_port_and_told(
    scene: Scene, pod: Inhabitant, direction: int, flags: int
) -> None:
    redirect(scene, pod, direction)
    run = scene.send(RED, scene.tcp(RED, BLUE))
    connection = scene.connection()
    proxied = abi.CT_PROXY_REDIRECT | abi.CT_PROXY_INGRESS | abi.CT_PROXY
    assert (connection.proxy_port, connection.flags & proxied) == (PORT, flags)
    (verdict,) = of_type(run, abi.EVENT_POLICY_VERDICT)
    assert (verdict.verdict, verdict.endpoint, verdict.cookie) == (PORT, pod.endpoint, 7)


@pytest.mark.parametrize(("pod", "direction"), [(RED, EGRESS), (BLUE, INGRESS)])
def test_segments_of_a_redirected_connection_go_up_the_stack_with_the_port(
    scene: Scene, pod: Inhabitant, direction: int
) -> None:
    redirect(scene, pod, direction)
    scene.send(RED, scene.tcp(RED, BLUE))
    scene.configure(aggregation=0)
    run = scene.send(RED, scene.tcp(RED, BLUE, flags="A"))
    assert (run.verdict, run.mark) == (TC_OK, to_proxy(PORT))
    (told,) = [event for event in run.events if event.subtype == abi.TRACE_TO_PROXY]
    assert (told.dst_id, told.endpoint) == (PORT, RED.endpoint)


@pytest.mark.parametrize("proto", [TCP_PROTO, UDP_PROTO], ids=["tcp", "udp"])
def test_without_a_listener_the_packet_ends(scene: Scene, proto: int) -> None:
    redirect(scene, RED, EGRESS, proto)
    packet = scene.tcp(RED, BLUE) if proto == TCP_PROTO else scene.udp(RED, BLUE)
    for _ in range(2):
        run = scene.send(RED, packet)
        assert (run.verdict, drops(run)) == (TC_SHOT, [NO_PROXY])


def test_a_redirect_without_a_port_yet_passes_nothing(scene: Scene) -> None:
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=8): ALLOW._replace(redirect=NO_PORT)})
    assert drops(scene.send(RED, scene.tcp(RED, BLUE))) == [NO_PROXY]
    assert scene.connections() == []


def test_a_redirect_passes_nothing_where_proxies_are_off(scene: Scene) -> None:
    redirect(scene, RED, EGRESS)
    scene.configure(proxy=False)
    assert drops(scene.send(RED, scene.tcp(RED, BLUE))) == [NO_PROXY]


def sctp(scene: Scene, port: int = 80) -> Any:
    return scene.ip(RED, BLUE, **protocol(scene)) / SCTP(sport=9, dport=port) / SCTPChunkInit()


def protocol(scene: Scene) -> dict[str, int]:
    return {"proto" if scene.family == 4 else "nh": SCTP_PROTO}


def test_no_proxy_speaks_sctp(scene: Scene) -> None:
    scene.rules(RED, {port_rule(EGRESS, ANY, SCTP_PROTO, bits=8): THROUGH})
    assert drops(scene.send(RED, sctp(scene))) == [NO_SUPPORT]


def test_sctp_is_judged_by_its_ports(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, SCTP_PROTO, 80): ALLOW})
    assert scene.send(RED, sctp(scene, 80)).verdict == TC_REDIRECT
    assert drops(scene.send(RED, sctp(scene, 81))) == [DENIED]
    (connection,) = scene.connections()
    assert (connection.proto, connection.source_port, connection.destination_port) == (132, 9, 80)


def test_sctp_rules_are_not_those_of_tcp(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, TCP_PROTO, 80): ALLOW})
    assert drops(scene.send(RED, sctp(scene, 80))) == [DENIED]


def test_sctp_answers_pass_whatever_the_rules(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, SCTP_PROTO, 80): ALLOW}, abi.ENDPOINT_ENFORCE_EGRESS)
    scene.send(RED, sctp(scene, 80))
    answer = scene.ip(BLUE, RED, **protocol(scene)) / SCTP(sport=80, dport=9) / SCTPChunkInit()
    assert scene.send(BLUE, answer).verdict == TC_REDIRECT


def test_ingress_policy_waits_for_the_egress_proxy(scene: Scene) -> None:
    redirect(scene, RED, EGRESS)
    scene.rules(BLUE, {port_rule(INGRESS, ANY, bits=0): DENY})
    run = scene.send(RED, scene.tcp(RED, BLUE))
    assert verdicts(run) == [(RED.endpoint, PORT)]


def test_a_plain_allow_of_any_precedence_is_no_redirect(scene: Scene) -> None:
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=8): ALLOW._replace(precedence=0x1F0)})
    assert scene.send(RED, scene.tcp(RED, BLUE)).verdict == TC_REDIRECT


def test_an_audited_denial_is_told_and_goes_through_the_proxy(scene: Scene) -> None:
    audited = DENY._replace(audit=True, redirect=PORT)
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=8): audited})
    run = scene.send(RED, scene.tcp(RED, BLUE))
    (verdict,) = of_type(run, abi.EVENT_POLICY_VERDICT)
    assert verdict.flags & abi.EVENT_AUDITED
    assert scene.connection().proxy_port == PORT
    assert scene.send(RED, scene.tcp(RED, BLUE, flags="A")).mark == to_proxy(PORT)


def test_audit_does_not_make_up_for_a_missing_proxy(scene: Scene) -> None:
    audited = DENY._replace(audit=True, redirect=NO_PORT)
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=8): audited}, abi.ENDPOINT_AUDIT)
    assert drops(scene.send(RED, scene.tcp(RED, BLUE))) == [NO_PROXY]


def test_an_audited_denial_without_a_redirect_passes(scene: Scene) -> None:
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=8): DENY._replace(audit=True, cookie=3)})
    run = scene.send(RED, scene.tcp(RED, BLUE))
    (verdict,) = of_type(run, abi.EVENT_POLICY_VERDICT)
    assert (run.verdict, verdict.verdict, verdict.cookie) == (TC_REDIRECT, 0, 3)
    assert verdict.flags & abi.EVENT_AUDITED


def test_a_default_denial_names_who_closes_the_direction(scene: Scene) -> None:
    closes = DENY._replace(precedence=0x100, cookie=5)
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=0): closes})
    run = scene.send(RED, scene.tcp(RED, BLUE))
    (verdict,) = of_type(run, abi.EVENT_POLICY_VERDICT)
    assert drops(run) == [DENIED]
    assert (verdict.cookie, verdict.match) == (5, abi.MATCH_NONE)


# ---- from the node to a pod ----


def test_the_node_is_sent_back_into_itself_to_the_ingress_proxy_of_a_pod(scene: Scene) -> None:
    redirect(scene, BLUE, INGRESS)
    host_mac = bytes.fromhex("020000000a0a")
    scene.configure()
    scene.plane.configuration.patch(host_mac=host_mac)
    run = scene.stack_sends(BLUE, scene.tcp(ROUTER, BLUE))
    assert (run.verdict, run.mark) == (TC_REDIRECT, to_proxy(PORT) | abi.MARK_LISTENER)
    assert traces(run) == [abi.TRACE_TO_PROXY]
    assert Ether(run.packet).dst == "02:00:00:00:0a:0a"
    segment = scene.stack_sends(BLUE, scene.tcp(ROUTER, BLUE, flags="A"))
    assert (segment.verdict, segment.mark) == (TC_REDIRECT, to_proxy(PORT))


def test_what_comes_back_for_a_listener_that_is_gone_ends(scene: Scene) -> None:
    packet = scene.tcp(ROUTER, BLUE)
    mark = to_proxy(PORT) | abi.MARK_LISTENER
    run = scene.plane.run("cil_to_host", packet, device="hostside", mark=mark)
    assert (run.verdict, drops(run)) == (TC_SHOT, [NO_PROXY])


def test_what_comes_back_for_a_connection_of_the_proxy_goes_up(scene: Scene) -> None:
    packet = scene.tcp(ROUTER, BLUE, flags="A")
    run = scene.plane.run("cil_to_host", packet, device="hostside", mark=to_proxy(PORT))
    assert (run.verdict, run.mark, run.events) == (TC_OK, to_proxy(PORT), [])


# ---- what proxies send ----


def through_egress_proxy(scene: Scene, sport: int = 50000) -> Run:
    """Red's connection is redirected, and its proxy opens one to blue from another port."""
    redirect(scene, RED, EGRESS)
    scene.send(RED, scene.tcp(RED, BLUE))
    packet = scene.tcp(RED, BLUE, sport=sport)
    return scene.stack_sends(BLUE, packet, mark=marked(abi.MARK_PROXY_EGRESS, RED))


@pytest.mark.parametrize("kind", [abi.MARK_PROXY_EGRESS, 0], ids=["socket", "no socket left"])
def test_a_proxys_answer_to_the_client_is_an_answer_of_the_server(scene: Scene, kind: int) -> None:
    redirect(scene, RED, EGRESS)
    scene.send(RED, scene.tcp(RED, BLUE))
    answer = scene.tcp(BLUE, RED, 80, 40000, flags="SA")
    run = scene.stack_sends(RED, answer, mark=marked(kind, BLUE) if kind else 0)
    (event,) = run.events
    assert (run.verdict, event.subtype) == (TC_OK, abi.TRACE_TO_LXC)
    assert (event.reason, event.src_identity) == (abi.REASON_REPLY, BLUE.identity)


def test_a_connection_of_an_egress_proxy_has_the_pods_identity_and_a_zone_of_its_own(
    scene: Scene,
) -> None:
    run = through_egress_proxy(scene)
    connection = zones(scene)[abi.CT_ZONE_PROXIES]
    assert run.verdict == TC_OK
    assert connection.flags & abi.CT_PROXY
    assert (connection.source_identity, connection.proxy_port) == (RED.identity, 0)


def test_a_connection_of_an_egress_proxy_meets_the_ingress_policy(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, port=81): ALLOW})
    assert drops(through_egress_proxy(scene)) == [DENIED]


def test_a_connection_of_an_egress_proxy_may_be_redirected_on_ingress(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW._replace(redirect=PORT + 1)})
    run = through_egress_proxy(scene)
    assert (run.verdict, run.mark) == (TC_REDIRECT, to_proxy(PORT + 1) | abi.MARK_LISTENER)
    # then the answer of that proxy goes to the first one
    answer = scene.tcp(BLUE, RED, 80, 50000, flags="SA")
    back = scene.stack_sends(RED, answer, mark=marked(abi.MARK_PROXY_INGRESS, BLUE))
    assert (back.verdict, back.mark) == (TC_REDIRECT, to_proxy(0))


@pytest.mark.parametrize("sport", [50000, 40000], ids=["own port", "the client's port"])
def test_the_servers_answer_goes_to_the_proxy(scene: Scene, sport: int) -> None:
    through_egress_proxy(scene, sport)
    run = scene.send(BLUE, scene.tcp(BLUE, RED, 80, sport, flags="SA"))
    (event,) = run.events
    assert (run.verdict, run.mark) == (TC_OK, to_proxy(0))
    assert (event.subtype, event.reason) == (abi.TRACE_TO_PROXY, abi.REASON_REPLY)


def test_an_answer_past_the_proxy_is_refused(scene: Scene) -> None:
    redirect(scene, RED, EGRESS)
    scene.send(RED, scene.tcp(RED, BLUE))
    run = scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags="SA"))
    assert (run.verdict, drops(run)) == (TC_SHOT, [DENIED])


def test_a_server_cannot_speak_past_its_ingress_proxy(scene: Scene) -> None:
    redirect(scene, BLUE, INGRESS)
    scene.send(RED, scene.tcp(RED, BLUE))
    run = scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags="A", payload=b"inject"))
    assert (run.verdict, drops(run)) == (TC_SHOT, [DENIED])


def test_the_pod_does_not_get_into_the_connections_of_its_proxy(scene: Scene) -> None:
    through_egress_proxy(scene)
    run = scene.send(RED, scene.tcp(RED, BLUE, sport=50000, flags="A", payload=b"inject"))
    assert run.mark == to_proxy(PORT)


def test_an_error_about_a_proxys_datagram_goes_to_the_proxy(scene: Scene) -> None:
    asked = scene.udp(RED, BLUE, 5000)
    scene.stack_sends(BLUE, asked, mark=marked(abi.MARK_PROXY_EGRESS, RED))
    error = ICMP(type=3, code=3) if scene.family == 4 else ICMPv6DestUnreach(code=4)
    quoted = bytes(asked)[14 : 14 + (28 if scene.family == 4 else 48)]
    run = scene.send(BLUE, scene.ip(BLUE, RED) / error / Raw(quoted))
    assert (run.verdict, run.mark) == (TC_OK, to_proxy(0))


def test_an_ingress_proxy_reaches_its_pod_whatever_the_policy(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, ANY, bits=0): DENY})
    request = scene.tcp(ROUTER, BLUE)
    run = scene.stack_sends(BLUE, request, mark=marked(abi.MARK_PROXY_INGRESS, ROUTER))
    assert (run.verdict, traces(run)) == (TC_OK, [abi.TRACE_TO_LXC])
    # also when that changes
    scene.rules(BLUE, {port_rule(INGRESS, ANY, bits=8): DENY})
    answer = scene.send(BLUE, scene.tcp(BLUE, ROUTER, 80, 40000, flags="SA"))
    assert (answer.verdict, drops(answer)) == (TC_OK, [])


def test_without_its_mark_nobody_is_a_proxy(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, ANY, bits=0): DENY})
    assert drops(scene.stack_sends(BLUE, scene.tcp(ROUTER, BLUE))) == [181]
    assert drops(scene.send(RED, scene.tcp(RED, BLUE))) == [181]


@pytest.mark.parametrize("kind", [abi.MARK_PROXY_EGRESS, abi.MARK_PROXY_INGRESS])
def test_the_node_tells_the_pods_device_that_a_proxy_sends(scene: Scene, kind: int) -> None:
    source = RED if kind == abi.MARK_PROXY_EGRESS else ROUTER
    packet = scene.tcp(source, BLUE)
    run = scene.plane.run("cil_from_host", packet, device="hostside", mark=kind)
    assert (run.verdict, run.mark) == (TC_REDIRECT, marked(kind, source))


# ---- other nodes ----


def test_a_packet_of_another_node_goes_to_the_ingress_proxy(scene: Scene) -> None:
    redirect(scene, BLUE, INGRESS)
    scene.tunnel(scene.tcp(GREEN, BLUE))
    run = scene.tunnel(scene.tcp(GREEN, BLUE, flags="A"))
    assert (run.verdict, run.mark) == (TC_OK, to_proxy(PORT))


def test_an_ingress_proxy_answers_another_node_as_the_pod(scene: Scene) -> None:
    redirect(scene, BLUE, INGRESS)
    scene.tunnel(scene.tcp(GREEN, BLUE))
    answer = scene.tcp(BLUE, GREEN, 80, 40000, flags="SA")
    run = scene.plane.run("cil_from_host", answer, device="hostside", mark=abi.MARK_PROXY_INGRESS)
    (event,) = run.events
    assert (run.verdict, event.subtype) == (TC_REDIRECT, abi.TRACE_TO_OVERLAY)
    assert (event.reason, event.src_identity) == (abi.REASON_REPLY, BLUE.identity)


def test_an_egress_proxy_reaches_another_node_as_the_pod(scene: Scene) -> None:
    # given a pod that may not send anything by itself
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=0): DENY})
    run = scene.plane.run(
        "cil_from_host", scene.tcp(RED, GREEN), device="hostside", mark=abi.MARK_PROXY_EGRESS
    )
    (event,) = run.events
    assert (run.verdict, event.subtype) == (TC_REDIRECT, abi.TRACE_TO_OVERLAY)
    assert event.src_identity == RED.identity
    # then the answer is the proxy's
    back = scene.tunnel(scene.tcp(GREEN, RED, 80, 40000, flags="SA"))
    assert (back.verdict, back.mark) == (TC_OK, to_proxy(0))


# ---- the world ----


def test_an_ingress_proxy_answers_the_world_with_the_pods_address(scene: Scene) -> None:
    redirect(scene, BLUE, INGRESS)
    scene.arrive(scene.tcp(WORLD, BLUE))
    answer = scene.tcp(BLUE, WORLD, 80, 40000, flags="SA")
    run = scene.leave(answer, mark=abi.MARK_PROXY_INGRESS)
    assert (run.verdict, run.packet) == (TC_OK, bytes(answer))


def test_an_egress_proxy_reaches_the_world_with_the_nodes_address(scene: Scene) -> None:
    request = scene.tcp(RED, WORLD, sport=50000)
    run = scene.leave(request, mark=abi.MARK_PROXY_EGRESS)
    sent = scene.parse(run.packet)
    layer = type(sent.payload)
    assert (run.verdict, sent[layer].src) == (TC_OK, scene.address(NODE))
    assert list(zones(scene)) == [abi.CT_ZONE_PROXIES]
    # then the answer is restored and goes up to the proxy
    answer = scene.tcp(WORLD, NODE, 80, sent.payload.payload.sport, flags="SA")
    back = scene.arrive(answer)
    received = scene.parse(back.packet)
    assert (back.verdict, back.mark) == (TC_OK, to_proxy(0))
    assert received[layer].dst == scene.address(RED)


def test_an_egress_proxy_reaches_a_node_through_the_tunnel_where_pods_do(scene: Scene) -> None:
    away = ipaddress.IPv4Address(OTHER_NODE.ipv4)
    node = ipaddress.ip_network(scene.address(OTHER_NODE))
    scene.plane.ipcache.upsert(node, abi.ID_REMOTE_NODE, away)
    run = scene.leave(scene.tcp(RED, OTHER_NODE), mark=abi.MARK_PROXY_EGRESS)
    (event,) = run.events
    assert (run.verdict, event.subtype) == (TC_REDIRECT, abi.TRACE_TO_OVERLAY)
    assert event.src_identity == RED.identity


def test_mappings_of_proxies_are_kept_as_long_as_their_connections(scene: Scene) -> None:
    scene.leave(scene.tcp(RED, WORLD, sport=50000), mark=abi.MARK_PROXY_EGRESS)
    (connection,) = scene.connections()
    assert scene.plane.conntrack.gc(connection.expires_s - 1).nat_deleted == 0
    assert scene.plane.conntrack.gc(connection.expires_s + 60).nat_deleted == 2


# ---- fragments ----


def test_datagrams_in_pieces_do_not_go_through_a_proxy(scene: Scene) -> None:
    redirect(scene, RED, EGRESS, UDP_PROTO)
    whole = scene.udp(RED, BLUE, payload=bytes(16))
    if scene.family == 4:
        whole[IP].flags = "MF"
    else:
        whole = scene.ip(RED, BLUE) / IPv6ExtHdrFragment(m=1, nh=UDP_PROTO) / whole[2]
    assert drops(scene.send(RED, whole)) == [FRAGMENTED]


# ---- rules that change ----


def test_a_connection_whose_redirect_changes_reaches_nobody_but_a_listener(scene: Scene) -> None:
    redirect(scene, RED, EGRESS)
    scene.send(RED, scene.tcp(RED, BLUE))
    for entry in (ALLOW._replace(redirect=PORT + 1), ALLOW):
        scene.rules(RED, {port_rule(EGRESS, ANY, bits=8): entry})
        run = scene.send(RED, scene.tcp(RED, BLUE, flags="A", payload=b"secret"))
        assert (run.verdict, drops(run)) == (TC_SHOT, [NO_PROXY])
    # and the same when it was plain
    plain = scene.tcp(RED, BLUE, sport=41000)
    scene.send(RED, plain)
    redirect(scene, RED, EGRESS)
    run = scene.send(RED, scene.tcp(RED, BLUE, sport=41000, flags="A", payload=b"secret"))
    assert (run.verdict, drops(run)) == (TC_SHOT, [NO_PROXY])


def test_a_new_connection_on_the_same_ports_follows_the_new_rules(scene: Scene) -> None:
    redirect(scene, RED, EGRESS)
    scene.send(RED, scene.tcp(RED, BLUE))
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=8): ALLOW})
    assert scene.send(RED, scene.tcp(RED, BLUE)).verdict == TC_REDIRECT
    assert (scene.connection().proxy_port, scene.connection().tx_packets) == (0, 1)
    assert scene.send(RED, scene.tcp(RED, BLUE, flags="A")).verdict == TC_REDIRECT


def test_datagrams_follow_the_rules_at_once(scene: Scene) -> None:
    redirect(scene, RED, EGRESS, UDP_PROTO)
    scene.send(RED, scene.udp(RED, BLUE))
    scene.rules(RED, {port_rule(EGRESS, ANY, UDP_PROTO, bits=8): ALLOW})
    assert scene.send(RED, scene.udp(RED, BLUE)).verdict == TC_REDIRECT
    redirect(scene, RED, EGRESS, UDP_PROTO)
    assert drops(scene.send(RED, scene.udp(RED, BLUE))) == [NO_PROXY]
    assert scene.connection().proxy_port == PORT


def test_a_redirect_that_stays_goes_on_through_a_change_of_policy(scene: Scene) -> None:
    redirect(scene, RED, EGRESS)
    scene.send(RED, scene.tcp(RED, BLUE))
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=8): THROUGH, port_rule(EGRESS, GREEN): ALLOW})
    run = scene.send(RED, scene.tcp(RED, BLUE, flags="A"))
    assert (run.verdict, run.mark) == (TC_OK, to_proxy(PORT))


def test_an_answer_is_judged_by_the_identities_of_the_moment(scene: Scene) -> None:
    # given a connection of a peer whose identity changes, and with it the rules
    peer = ipaddress.ip_network(scene.address(WORLD))
    scene.plane.ipcache.upsert(peer, 0x01000001)
    scene.rules(BLUE, {port_rule(INGRESS, 0x01000001): ALLOW})
    scene.arrive(scene.tcp(WORLD, BLUE))
    scene.plane.ipcache.upsert(peer, 0x01000002)
    scene.rules(BLUE, {port_rule(INGRESS, 0x01000002): ALLOW})
    # when blue speaks first, then it is heard
    run = scene.send(BLUE, scene.tcp(BLUE, WORLD, 80, 40000, flags="A"))
    assert (run.verdict, drops(run)) == (TC_OK, [])


@pytest.mark.parametrize("kind", [abi.MARK_PROXY_EGRESS, abi.MARK_PROXY_INGRESS])
def test_what_a_proxy_sends_is_traced_as_such(scene: Scene, kind: int) -> None:
    scene.configure(aggregation=0)
    source = RED if kind == abi.MARK_PROXY_EGRESS else ROUTER
    run = scene.stack_sends(BLUE, scene.tcp(source, BLUE), mark=marked(kind, source))
    assert traces(run) == [abi.TRACE_FROM_PROXY, abi.TRACE_TO_LXC]
    assert all(event.flags & abi.EVENT_PROXIED for event in run.events)
    sent = scene.plane.run("cil_from_host", scene.tcp(source, BLUE), device="hostside", mark=kind)
    assert traces(sent) == [abi.TRACE_FROM_PROXY]


@pytest.mark.parametrize("kind", [abi.MARK_PROXY_EGRESS, 0], ids=["proxy", "node"])
def test_an_identity_of_this_node_alone_gets_through_the_stack(scene: Scene, kind: int) -> None:
    # given a server of the world whose prefix a policy names
    scene.plane.ipcache.upsert(ipaddress.ip_network(scene.address(WORLD)), 0x01000005)
    redirect(scene, RED, EGRESS)
    scene.send(RED, scene.tcp(RED, WORLD))
    # when it answers, as the proxy does in its place
    answer = scene.tcp(WORLD, RED, 80, 40000, flags="SA")
    sent = scene.plane.run("cil_from_host", answer, device="hostside", mark=kind)
    (event,) = scene.stack_sends(RED, answer, mark=sent.mark).events
    assert (event.src_identity, event.reason) == (0x01000005, abi.REASON_REPLY)
