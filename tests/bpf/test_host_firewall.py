"""The node's own policy: at its device, with pods here and elsewhere, and what it spares."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent.datapath.exemptions import Exemption, Exemptions
from cilium_core import abi
from scapy.layers.inet import ICMP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6ND_NS
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
    TCP_PROTO,
    UDP_PROTO,
    WORLD,
    drops,
    of_type,
    port_rule,
    verdicts,
)
from tests.bpf.test_masquerade import quote_of

if TYPE_CHECKING:
    from cilium_core.policy import PolicyEntry, PolicyKey

    from tests.bpf.harness import Run
    from tests.bpf.scenes import Inhabitant, Scene

ID = 4000
ANY = 0
DENIED, DENY_RULE, NOT_READY, SPOOFED, TRUNCATED = 133, 181, 202, 132, 135
SSH, TUNNEL = 22, 8472


def firewall(scene: Scene, rules: dict[PolicyKey, PolicyEntry], flags: int = 0) -> None:
    """Enforce these rules on the node, in the directions that they speak of or that flags say."""
    for key in rules:
        ingress = key.direction == INGRESS
        flags |= abi.ENDPOINT_ENFORCE_INGRESS if ingress else abi.ENDPOINT_ENFORCE_EGRESS
    scene.plane.policy.replace(ID, rules)
    scene.plane.endpoints.upsert_node(ID, scene.plane.device("hostside"), flags)
    scene.configure(host_firewall=True)


def leave(scene: Scene, target: Inhabitant, port: int = 80, **more: Any) -> Run:
    return scene.leave(scene.tcp(NODE, target, dport=port, **more))


def arrive(scene: Scene, source: Inhabitant, port: int = SSH, **more: Any) -> Run:
    return scene.arrive(scene.tcp(source, NODE, dport=port, **more))


# ---- at the device ----


def test_without_the_option_rules_for_the_node_do_nothing(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, ANY, bits=0): DENY, port_rule(EGRESS, ANY, bits=0): DENY})
    scene.configure(host_firewall=False)
    assert (arrive(scene, WORLD).verdict, leave(scene, WORLD).verdict) == (TC_OK, TC_OK)
    assert scene.connections() == []


def test_without_rules_everything_passes_and_is_tracked(scene: Scene) -> None:
    firewall(scene, {})
    assert (arrive(scene, WORLD).verdict, leave(scene, WORLD).verdict) == (TC_OK, TC_OK)
    assert len(scene.connections()) == 2


def test_ingress_rules_say_who_reaches_the_node(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, abi.ID_WORLD, port=SSH): ALLOW})
    assert arrive(scene, WORLD).verdict == TC_OK
    run = arrive(scene, WORLD, 23)
    assert (run.verdict, drops(run), verdicts(run)) == (TC_SHOT, [DENIED], [(ID, -DENIED)])
    assert drops(arrive(scene, OTHER_NODE)) == [DENIED]


def test_egress_rules_say_whom_the_node_reaches(scene: Scene) -> None:
    firewall(scene, {port_rule(EGRESS, abi.ID_WORLD): ALLOW})
    assert leave(scene, WORLD).verdict == TC_OK
    run = leave(scene, WORLD, 81)
    assert (run.verdict, drops(run), verdicts(run)) == (TC_SHOT, [DENIED], [(ID, -DENIED)])
    assert drops(leave(scene, OTHER_NODE)) == [DENIED]


def test_a_verdict_names_both_identities_and_the_rules(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, abi.ID_WORLD, port=SSH): ALLOW._replace(cookie=8)})
    (event,) = of_type(arrive(scene, WORLD), abi.EVENT_POLICY_VERDICT)
    assert (event.src_identity, event.dst_identity) == (abi.ID_WORLD, abi.ID_HOST)
    assert (event.endpoint, event.cookie, event.match) == (ID, 8, abi.MATCH_L3_L4)
    assert event.flags & abi.EVENT_INGRESS


def test_answers_pass_in_both_directions(scene: Scene) -> None:
    firewall(
        scene,
        {
            port_rule(INGRESS, abi.ID_WORLD, port=SSH): ALLOW,
            port_rule(EGRESS, abi.ID_WORLD, port=80): ALLOW,
        },
    )
    arrive(scene, WORLD)
    assert scene.leave(scene.tcp(NODE, WORLD, SSH, 40000, flags="SA")).verdict == TC_OK
    leave(scene, WORLD)
    assert scene.arrive(scene.tcp(WORLD, NODE, 80, 40000, flags="SA")).verdict == TC_OK


def test_connections_end_when_the_rules_no_longer_allow_them(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, abi.ID_WORLD, port=SSH): ALLOW})
    arrive(scene, WORLD)
    firewall(scene, {port_rule(INGRESS, abi.ID_WORLD, port=SSH): DENY})
    assert drops(arrive(scene, WORLD, flags="A")) == [DENY_RULE]
    answer = scene.tcp(NODE, WORLD, SSH, 40000, flags="A")
    assert drops(scene.leave(answer)) == [DENY_RULE]


def test_audited_denials_pass_and_are_told(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, ANY, bits=0): DENY}, abi.ENDPOINT_AUDIT)
    run = arrive(scene, WORLD)
    (event,) = of_type(run, abi.EVENT_POLICY_VERDICT)
    assert (run.verdict, event.flags & abi.EVENT_AUDITED) == (TC_OK, abi.EVENT_AUDITED)


def test_rules_that_are_not_there_yet_let_nothing_pass(scene: Scene) -> None:
    firewall(scene, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    scene.plane.policy.delete(ID)
    assert drops(arrive(scene, WORLD)) == [NOT_READY]


def test_errors_about_connections_of_the_node_pass(scene: Scene) -> None:
    firewall(scene, {port_rule(EGRESS, ANY, UDP_PROTO, 53): ALLOW}, abi.ENDPOINT_ENFORCE_INGRESS)
    asked = scene.udp(NODE, WORLD)
    scene.leave(asked)
    error = ICMP(type=3, code=3) if scene.family == 4 else ICMPv6DestUnreach(code=4)
    packet = scene.ip(WORLD, NODE) / error / Raw(quote_of(scene, bytes(asked)))
    assert scene.arrive(packet).verdict == TC_OK


def test_what_cannot_be_judged_passes_only_without_rules(scene: Scene) -> None:
    cut = scene.ip(WORLD, NODE, **{"proto" if scene.family == 4 else "nh": TCP_PROTO}) / Raw(b"cut")
    firewall(scene, {})
    assert scene.arrive(cut).verdict == TC_OK
    firewall(scene, {port_rule(INGRESS, ANY, bits=0): ALLOW})
    assert drops(scene.arrive(cut)) == [TRUNCATED]


@pytest.mark.parametrize("source", [RED, GREEN], ids=["own pod", "other pod"])
def test_nobody_comes_from_the_network_as_a_pod(scene: Scene, source: Inhabitant) -> None:
    firewall(scene, {})
    assert drops(arrive(scene, source)) == [SPOOFED]


def test_what_is_not_for_the_node_is_left_alone(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, ANY, bits=0): DENY, port_rule(EGRESS, ANY, bits=0): DENY})
    routed = scene.tcp(WORLD, "192.0.2.1" if scene.family == 4 else "2001:db8:9::1")
    assert (scene.arrive(routed).verdict, scene.leave(routed).verdict) == (TC_OK, TC_OK)


def test_link_local_addresses_are_no_way_around(scene6: Scene) -> None:
    firewall(scene6, {port_rule(INGRESS, ANY, bits=0): DENY, port_rule(EGRESS, ANY, bits=0): DENY})
    assert drops(scene6.arrive(scene6.tcp("fe80::1", "fe80::2"))) == [DENY_RULE]
    assert drops(scene6.leave(scene6.tcp("fe80::2", "fe80::1"))) == [DENY_RULE]


# ---- with pods ----


def test_pods_meet_the_policies_of_both_ends(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, RED): ALLOW})
    assert scene.send(RED, scene.tcp(RED, ROUTER)).verdict == TC_OK
    run = scene.send(BLUE, scene.tcp(BLUE, ROUTER))
    assert (run.verdict, drops(run), verdicts(run)) == (TC_SHOT, [DENIED], [(ID, -DENIED)])
    scene.rules(RED, {port_rule(EGRESS, abi.ID_HOST, port=81): ALLOW})
    run = scene.send(RED, scene.tcp(RED, ROUTER, sport=41000))
    assert verdicts(run) == [(RED.endpoint, -DENIED)]


def test_the_node_meets_the_policies_of_both_ends(scene: Scene) -> None:
    firewall(scene, {port_rule(EGRESS, BLUE): ALLOW})
    assert scene.stack_sends(BLUE, scene.tcp(ROUTER, BLUE)).verdict == TC_OK
    run = scene.stack_sends(RED, scene.tcp(ROUTER, RED))
    assert (run.verdict, drops(run), verdicts(run)) == (TC_SHOT, [DENIED], [(ID, -DENIED)])
    scene.rules(BLUE, {port_rule(INGRESS, abi.ID_HOST, port=81): ALLOW})
    run = scene.stack_sends(BLUE, scene.tcp(ROUTER, BLUE, sport=41000))
    assert verdicts(run) == [(ID, 0), (BLUE.endpoint, -DENIED)]


def test_answers_pass_between_pods_and_the_node(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, RED): ALLOW, port_rule(EGRESS, BLUE): ALLOW})
    scene.send(RED, scene.tcp(RED, ROUTER))
    answer = scene.tcp(ROUTER, RED, 80, 40000, flags="SA")
    assert scene.stack_sends(RED, answer).verdict == TC_OK
    scene.stack_sends(BLUE, scene.tcp(ROUTER, BLUE))
    assert scene.send(BLUE, scene.tcp(BLUE, ROUTER, 80, 40000, flags="SA")).verdict == TC_OK


def test_pods_of_other_nodes_meet_the_policy_of_the_node(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, GREEN): ALLOW})
    assert scene.tunnel(scene.tcp(GREEN, ROUTER)).verdict == TC_OK
    run = scene.tunnel(scene.tcp(GREEN, ROUTER, dport=81))
    assert (run.verdict, drops(run), verdicts(run)) == (TC_SHOT, [DENIED], [(ID, -DENIED)])


def test_the_node_reaches_pods_of_other_nodes_as_its_policy_says(scene: Scene) -> None:
    firewall(scene, {port_rule(EGRESS, GREEN): ALLOW})
    assert scene.host_sends(scene.tcp(ROUTER, GREEN)).verdict == TC_REDIRECT
    run = scene.host_sends(scene.tcp(ROUTER, GREEN, dport=81))
    assert (run.verdict, drops(run), verdicts(run)) == (TC_SHOT, [DENIED], [(ID, -DENIED)])
    back = scene.tunnel(scene.tcp(GREEN, ROUTER, 80, 40000, flags="SA"))
    assert back.verdict == TC_OK


def test_pods_among_themselves_are_none_of_the_nodes_business(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, ANY, bits=0): DENY, port_rule(EGRESS, ANY, bits=0): DENY})
    assert scene.send(RED, scene.tcp(RED, BLUE)).verdict == TC_REDIRECT
    assert scene.send(RED, scene.tcp(RED, GREEN)).verdict == TC_REDIRECT
    assert scene.tunnel(scene.tcp(GREEN, BLUE)).verdict == TC_REDIRECT
    assert scene.send(RED, scene.tcp(RED, WORLD)).verdict == TC_OK
    assert scene.arrive(scene.tcp(WORLD, BLUE)).verdict == TC_REDIRECT


def test_ingress_proxies_are_not_stopped_by_the_nodes_policy(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, ANY, bits=0): DENY, port_rule(EGRESS, ANY, bits=0): DENY})
    mark = abi.MARK_PROXY_INGRESS | abi.ID_HOST << 16
    assert scene.stack_sends(BLUE, scene.tcp(ROUTER, BLUE), mark=mark).verdict == TC_OK
    assert scene.send(BLUE, scene.tcp(BLUE, ROUTER, 80, 40000, flags="SA")).verdict == TC_OK


def test_a_proxy_is_no_way_around_the_policy_of_its_own_node(scene: Scene) -> None:
    # given a pod that reaches the node through a proxy, which speaks to the node past all devices
    through = ALLOW._replace(redirect=10500)
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=8): through})
    firewall(scene, {port_rule(INGRESS, RED, port=80): ALLOW})
    run = scene.send(RED, scene.tcp(RED, ROUTER))
    assert verdicts(run) == [(RED.endpoint, 10500), (ID, 0)]
    connection = scene.connection()
    assert connection.flags & (abi.CT_PROXY_REDIRECT | abi.CT_PROXY_INGRESS) == (
        abi.CT_PROXY_REDIRECT
    )
    segment = scene.send(RED, scene.tcp(RED, ROUTER, flags="A"))
    assert segment.mark & abi.MARK_MASK == abi.MARK_TO_PROXY
    refused = scene.send(RED, scene.tcp(RED, ROUTER, dport=81))
    assert (drops(refused), verdicts(refused)[1:]) == ([DENIED], [(ID, -DENIED)])
    # and when the node's policy changes, the connection ends
    firewall(scene, {port_rule(INGRESS, RED, port=81): ALLOW})
    assert drops(scene.send(RED, scene.tcp(RED, ROUTER, flags="A"))) == [DENIED]


# ---- what is spared ----


def closed(scene: Scene) -> None:
    firewall(scene, {port_rule(INGRESS, ANY, bits=0): DENY, port_rule(EGRESS, ANY, bits=0): DENY})


def test_the_tunnel_passes_whatever_the_rules(scene: Scene) -> None:
    closed(scene)
    outer = scene.udp(OTHER_NODE, NODE, 5000, TUNNEL)
    assert (scene.arrive(outer).verdict, scene.connections()) == (TC_OK, [])
    sent = scene.leave(scene.udp(NODE, OTHER_NODE, 5000, TUNNEL), mark=abi.MARK_OVERLAY)
    assert sent.verdict == TC_OK


def test_without_a_tunnel_its_port_is_a_port(scene: Scene) -> None:
    closed(scene)
    scene.plane.configuration.patch(tunnel_ifindex=0)
    assert drops(scene.arrive(scene.udp(OTHER_NODE, NODE, 5000, TUNNEL))) == [DENY_RULE]


def test_neighbours_find_each_other_whatever_the_rules(scene6: Scene) -> None:
    closed(scene6)
    asked = scene6.ip(OTHER_NODE, NODE, hlim=255) / ICMPv6ND_NS(tgt=scene6.address(NODE))
    assert scene6.arrive(asked).verdict == TC_OK
    answer = scene6.ip(NODE, OTHER_NODE, hlim=255) / ICMPv6ND_NS(tgt=scene6.address(OTHER_NODE))
    assert scene6.leave(answer).verdict == TC_OK


def test_exempt_connections_pass_with_their_answers(scene: Scene) -> None:
    closed(scene)
    store = ipaddress.ip_address(scene.address(OTHER_NODE))
    Exemptions(scene.plane.maps).sync(
        [Exemption(EGRESS, TCP_PROTO, 2379, store), Exemption(INGRESS, TCP_PROTO, 4240)]
    )
    assert leave(scene, OTHER_NODE, 2379).verdict == TC_OK
    assert scene.arrive(scene.tcp(OTHER_NODE, NODE, 2379, 40000, flags="SA")).verdict == TC_OK
    assert arrive(scene, WORLD, 4240).verdict == TC_OK
    assert scene.leave(scene.tcp(NODE, WORLD, 4240, 40000, flags="SA")).verdict == TC_OK
    # and a change of the rules does not end them
    firewall(scene, {port_rule(INGRESS, ANY, bits=8): DENY, port_rule(EGRESS, ANY, bits=8): DENY})
    assert leave(scene, OTHER_NODE, 2379, flags="A").verdict == TC_OK
    assert scene.arrive(scene.tcp(OTHER_NODE, NODE, 2379, 40000, flags="A")).verdict == TC_OK


def test_an_exemption_is_for_its_peer_port_and_direction_alone(scene: Scene) -> None:
    closed(scene)
    store = ipaddress.ip_address(scene.address(OTHER_NODE))
    exemptions = Exemptions(scene.plane.maps)
    exemptions.sync([Exemption(EGRESS, TCP_PROTO, 2379, store)])
    assert drops(leave(scene, WORLD, 2379)) == [DENY_RULE]
    assert drops(leave(scene, OTHER_NODE, 2380)) == [DENY_RULE]
    assert drops(arrive(scene, OTHER_NODE, 2379)) == [DENY_RULE]
    exemptions.sync([])
    assert drops(leave(scene, OTHER_NODE, 2379)) == [DENY_RULE]


def test_an_exemption_of_the_node_is_none_of_a_pod(scene: Scene) -> None:
    Exemptions(scene.plane.maps).sync([Exemption(EGRESS, TCP_PROTO, 80)])
    scene.rules(RED, {port_rule(EGRESS, ANY, bits=0): DENY})
    assert drops(scene.send(RED, scene.tcp(RED, BLUE))) == [DENY_RULE]


def test_masqueraded_traffic_of_pods_is_not_the_nodes(scene: Scene) -> None:
    closed(scene)
    asked = scene.udp(RED, WORLD, 50000)
    scene.send(RED, asked)
    sent = scene.parse(scene.leave(asked, mark=abi.MARK_IDENTITY | RED.identity << 16).packet)
    back = scene.udp(WORLD, NODE, 53, sent[UDP].sport)
    assert scene.arrive(back).verdict == TC_REDIRECT
