"""Nobody speaks with an address that is not theirs, from whichever side it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core import abi

from tests.bpf.harness import TC_OK, TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import BLUE, GREEN, NODE, RED, WORLD, drops

if TYPE_CHECKING:
    from tests.bpf.scenes import Scene


def test_a_pod_with_another_pods_address_is_dropped(scene: Scene) -> None:
    run = scene.send(RED, scene.tcp(GREEN, BLUE))
    assert (run.verdict, drops(run)) == (TC_SHOT, [132])


def test_a_pod_with_the_address_of_the_node_is_dropped(scene: Scene) -> None:
    assert drops(scene.send(RED, scene.udp(NODE, BLUE))) == [132]


def test_a_spoofed_packet_leaves_no_connection(scene: Scene) -> None:
    scene.send(RED, scene.tcp(BLUE, GREEN))
    assert scene.connections() == []


def test_the_event_of_a_spoofed_packet_names_the_endpoint_that_sent_it(scene: Scene) -> None:
    (event,) = scene.send(RED, scene.tcp(GREEN, BLUE)).events
    assert (event.endpoint, event.src_identity) == (RED.endpoint, RED.identity)
    assert event.source == scene.address(GREEN)


def test_a_packet_to_oneself_has_no_business_on_the_wire(scene: Scene) -> None:
    assert drops(scene.send(RED, scene.tcp(RED, RED))) == [132]


def test_a_local_pods_address_cannot_come_out_of_the_tunnel(scene: Scene) -> None:
    run = scene.tunnel(scene.tcp(RED, BLUE))
    assert (run.verdict, drops(run)) == (TC_SHOT, [132])


def test_the_nodes_own_address_cannot_come_out_of_the_tunnel(scene: Scene) -> None:
    run = scene.tunnel(scene.tcp(NODE, BLUE), identity=abi.ID_REMOTE_NODE)
    assert (run.verdict, drops(run)) == (TC_SHOT, [132])


def test_a_remote_pods_address_cannot_come_from_the_network(scene: Scene) -> None:
    run = scene.arrive(scene.tcp(GREEN, BLUE))
    assert (run.verdict, drops(run)) == (TC_SHOT, [132])


def test_a_local_pods_address_cannot_come_from_the_network(scene: Scene) -> None:
    run = scene.arrive(scene.tcp(RED, BLUE))
    assert (run.verdict, drops(run)) == (TC_SHOT, [132])


def test_remote_pods_come_from_the_network_where_there_is_no_tunnel(scene: Scene) -> None:
    scene.configure(tunnel=False)
    assert scene.arrive(scene.tcp(GREEN, BLUE)).verdict == TC_REDIRECT


def test_the_world_comes_from_the_network(scene: Scene) -> None:
    assert scene.arrive(scene.tcp(WORLD, BLUE)).verdict == TC_REDIRECT


def test_what_arrives_for_the_node_is_not_looked_at(scene: Scene) -> None:
    assert scene.arrive(scene.tcp(WORLD, NODE)).verdict == TC_OK
