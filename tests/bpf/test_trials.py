"""Trials: what explanations ask the loaded programs, packet by packet."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from cilium_agent.datapath import Outcome, Packet
from cilium_agent.datapath.devices import Devices
from cilium_agent.datapath.trials import Trials
from cilium_core import abi

from tests.bpf.scenes import (
    ALLOW,
    BLUE,
    DENY,
    EGRESS,
    GREEN,
    INGRESS,
    RED,
    ROUTER,
    WORLD,
    port_rule,
)

if TYPE_CHECKING:
    from cilium_agent.datapath.trials import Trial

    from tests.bpf.scenes import Inhabitant, Scene

PROTOCOLS = (6, 17, 132)


def packet(
    scene: Scene, source: Inhabitant, destination: Inhabitant, protocol: int = 6, port: int = 80
) -> Packet:
    ends = (source, destination)
    addresses = [end.ipv4 if scene.family == 4 else end.ipv6 for end in ends]
    first, second = map(ipaddress.ip_address, addresses)
    return Packet(first, second, protocol, port)


def trials(scene: Scene) -> Trials:
    plane = scene.plane
    made = Devices(
        host=plane.device("hostside"),
        net=plane.device("hostside"),
        tunnel=plane.device("vxlan"),
        host_mac="",
        net_mac="",
        node={"eth0": plane.device("eth0")},
    )
    return Trials(plane.generation.programs, made)


def try_from(scene: Scene, pod: Inhabitant, sent: Packet) -> Trial:
    found: Trial = scene.plane.namespace.call(
        trials(scene).from_pod, sent, scene.plane.device(pod.name), pod.mac, pod.node_mac
    )
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_ends_of_one_node_answer_for_every_protocol(scene: Scene, protocol: int) -> None:
    egress = port_rule(EGRESS, BLUE, protocol, 80)
    ingress = port_rule(INGRESS, RED, protocol, 80)
    scene.rules(RED, {egress: ALLOW._replace(cookie=3)})
    scene.rules(BLUE, {ingress: DENY._replace(cookie=4)})
    found = try_from(scene, RED, packet(scene, RED, BLUE, protocol))
    assert (found.egress, found.ingress) == ((Outcome.ALLOWED, 3), (Outcome.DENIED, 4))
    assert (found.reason, found.proxy_port) == (181, 0)


def test_an_icmp_type_stands_for_the_port(scene: Scene) -> None:
    protocol, echo = (1, 8) if scene.family == 4 else (58, 128)
    for allowed, outcome in ((echo, Outcome.ALLOWED), (echo + 1, Outcome.DENIED)):
        scene.rules(RED, {port_rule(EGRESS, BLUE, protocol, allowed): ALLOW})
        found = try_from(scene, RED, packet(scene, RED, BLUE, protocol, echo))
        assert found.egress.outcome is outcome


def test_a_redirect_tells_the_proxys_port(scene: Scene) -> None:
    scene.rules(RED, {port_rule(EGRESS, BLUE): ALLOW._replace(redirect=10500)})
    found = try_from(scene, RED, packet(scene, RED, BLUE))
    assert (found.egress.outcome, found.reason, found.proxy_port) == (Outcome.REDIRECTED, 0, 10500)


def test_senders_elsewhere_are_tried_by_identity_and_address(scene: Scene) -> None:
    scene.rules(
        BLUE, {port_rule(INGRESS, peer): ALLOW for peer in (GREEN, abi.ID_WORLD, abi.ID_HOST)}
    )
    asked = trials(scene)
    blue = scene.plane.device(BLUE.name)
    for port, outcome in ((80, Outcome.ALLOWED), (81, Outcome.DENIED)):
        for run in (
            lambda p=port: asked.from_node(packet(scene, GREEN, BLUE, port=p), GREEN.identity),
            lambda p=port: asked.from_network(packet(scene, WORLD, BLUE, port=p)),
            lambda p=port: asked.from_host(packet(scene, ROUTER, BLUE, port=p), blue),
        ):
            assert scene.plane.namespace.call(run).ingress.outcome is outcome
