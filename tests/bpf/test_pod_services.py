"""Services that pods ask packet by packet: to the backend, and back with the address asked."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent.datapath.models import ServiceConfig
from cilium_core import abi
from cilium_core.policy.ports import Protocol
from cilium_core.services.models import BackendState, FrontendKind, Scope
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit

from tests.bpf.harness import TC_OK, TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import (
    ALLOW,
    BLUE,
    EGRESS,
    GREEN,
    INGRESS,
    NODE,
    RED,
    TCP_PROTO,
    WORLD,
    drops,
    of_type,
    port_rule,
    traces,
    verdicts,
)
from tests.bpf.services import (
    HAIRPIN,
    PORT,
    SERVICE,
    TARGET,
    assert_checksums_right,
    backend,
    layer3,
    ports,
    serve,
    source,
    target,
)
from tests.bpf.test_fragments import pieces

if TYPE_CHECKING:
    from cilium_agent.datapath.models import Connection

    from tests.bpf.harness import Run
    from tests.bpf.scenes import Inhabitant, Scene

CLIENT = 40000
NO_BACKEND, NO_TARGET, NOT_TRANSLATED = 158, 150, 168
PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP}


def ask(scene: Scene, kind: str = "tcp", sport: int = CLIENT, **fields: Any) -> Run:
    """Red asks the service."""
    return scene.send(RED, getattr(scene, kind)(RED, SERVICE, sport, PORT, **fields))


def answer(scene: Scene, kind: str, who: Inhabitant | str, **fields: Any) -> Any:
    """Make a backend's packet back to red."""
    if kind == "tcp":
        fields = {"flags": "SA", **fields}
    return getattr(scene, kind)(who, RED, TARGET, CLIENT, **fields)


def of_kind(scene: Scene, kind: int) -> list[Connection]:
    return [entry for entry in scene.connections() if entry.kind == kind]


def assert_answered(scene: Scene, run: Run) -> None:
    """The packet is an answer of the service to red."""
    assert drops(run) == []
    assert (source(run.packet), target(run.packet)) == (
        scene.address(SERVICE),
        scene.address(RED),
    )
    assert ports(run.packet) == (PORT, CLIENT)
    assert_checksums_right(run.packet)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_packet_to_a_service_goes_to_its_backend(scene: Scene, kind: str) -> None:
    serve(scene, BLUE, proto=PROTOCOLS[kind])
    run = ask(scene, kind)
    assert (run.verdict, traces(run)) == (TC_REDIRECT, [abi.TRACE_TO_LXC])
    assert (source(run.packet), target(run.packet)) == (scene.address(RED), scene.address(BLUE))
    assert (ports(run.packet), Ether(run.packet).dst) == ((CLIENT, TARGET), BLUE.mac)
    assert_checksums_right(run.packet)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_an_answer_of_this_node_has_the_services_address(scene: Scene, kind: str) -> None:
    serve(scene, BLUE, proto=PROTOCOLS[kind])
    ask(scene, kind)
    run = scene.send(BLUE, answer(scene, kind, BLUE))
    assert_answered(scene, run)
    assert (run.verdict, Ether(run.packet).dst) == (TC_REDIRECT, RED.mac)


def test_an_answer_is_told_with_both_addresses(scene: Scene) -> None:
    serve(scene, BLUE)
    ask(scene)
    (told,) = of_type(scene.send(BLUE, answer(scene, "tcp", BLUE)), abi.EVENT_TRACE)
    assert (told.source, told.source_port) == (scene.address(SERVICE), PORT)
    assert told._address(told.orig_saddr) == scene.address(BLUE)
    assert told.reason == abi.REASON_REPLY


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_backend_of_another_node_is_asked_through_the_tunnel(scene: Scene, kind: str) -> None:
    serve(scene, GREEN, proto=PROTOCOLS[kind])
    run = ask(scene, kind)
    assert (run.verdict, traces(run)) == (TC_REDIRECT, [abi.TRACE_TO_OVERLAY])
    assert target(run.packet) == scene.address(GREEN)
    back = scene.tunnel(answer(scene, kind, GREEN))
    assert_answered(scene, back)
    assert back.verdict == TC_REDIRECT


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_backend_in_the_world_is_asked_with_the_nodes_address(scene: Scene, kind: str) -> None:
    serve(scene, WORLD, proto=PROTOCOLS[kind])
    run = ask(scene, kind)
    assert target(run.packet) == scene.address(WORLD)
    left = scene.leave(run.packet, mark=run.mark)
    assert (left.verdict, source(left.packet)) == (TC_OK, scene.address(NODE))
    fields = {"flags": "SA"} if kind == "tcp" else {}
    back = getattr(scene, kind)(WORLD, NODE, TARGET, ports(left.packet)[0], **fields)
    assert_answered(scene, scene.arrive(back))


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_process_of_the_node_serves(scene: Scene, kind: str) -> None:
    serve(scene, NODE, proto=PROTOCOLS[kind])
    run = ask(scene, kind)
    assert (run.verdict, target(run.packet)) == (TC_OK, scene.address(NODE))
    back = scene.stack_sends(RED, answer(scene, kind, NODE), mark=abi.MARK_HOST)
    assert (back.verdict, traces(back)) == (TC_OK, [abi.TRACE_TO_LXC])
    assert_answered(scene, back)


def test_a_proxy_answers_with_the_services_address(scene: Scene) -> None:
    through = ALLOW._replace(redirect=10500)
    scene.rules(RED, {port_rule(EGRESS, BLUE, TCP_PROTO, TARGET): through})
    serve(scene, BLUE)
    ask(scene)
    (flow,) = of_kind(scene, abi.CT_FLOW)
    assert flow.proxy_port == 10500
    back = scene.stack_sends(RED, answer(scene, "tcp", BLUE), mark=abi.MARK_PROXY_EGRESS)
    assert back.verdict == TC_OK
    assert_answered(scene, back)


def test_nobody_is_translated_without_the_option(scene: Scene) -> None:
    serve(scene, BLUE)
    scene.configure(services=ServiceConfig(pods=False))
    assert target(ask(scene).packet) == scene.address(SERVICE)


# ---- who serves ----


def test_connections_are_spread_over_all_backends(scene: Scene) -> None:
    serve(scene, BLUE, GREEN, WORLD)
    chosen = Counter(target(ask(scene, sport=port).packet) for port in range(20000, 20120))
    assert set(chosen) == {scene.address(who) for who in (BLUE, GREEN, WORLD)}
    assert min(chosen.values()) > 15


def test_a_connection_keeps_its_backend(scene: Scene) -> None:
    serve(scene, BLUE, GREEN, WORLD)
    first = target(ask(scene).packet)
    assert {target(ask(scene, flags="A").packet) for _ in range(20)} == {first}


def test_a_terminating_backend_keeps_its_connections_and_gets_no_new_ones(scene: Scene) -> None:
    serve(scene, BLUE)
    ask(scene)
    ask(scene, flags="A")
    leaving = backend(scene, BLUE, state=BackendState.TERMINATING)
    serve(scene, leaving, GREEN)
    assert target(ask(scene, flags="PA", payload=b"x").packet) == scene.address(BLUE)
    assert target(ask(scene, sport=CLIENT + 1).packet) == scene.address(GREEN)


def test_a_connection_whose_backend_is_gone_goes_to_another(scene: Scene) -> None:
    serve(scene, BLUE)
    ask(scene, "udp")
    serve(scene, GREEN, proto=Protocol.UDP)
    assert target(ask(scene, "udp").packet) == scene.address(GREEN)


def test_a_repeated_syn_goes_to_the_same_backend(scene: Scene) -> None:
    serve(scene, BLUE, GREEN, WORLD)
    assert len({target(ask(scene).packet) for _ in range(20)}) == 1


def test_a_new_connection_from_the_same_port_is_chosen_for_anew(scene: Scene) -> None:
    serve(scene, BLUE)
    for flags in ("S", "A", "FA"):
        ask(scene, flags=flags)
    serve(scene, GREEN)
    assert target(ask(scene).packet) == scene.address(GREEN)


def test_a_client_with_affinity_keeps_its_backend_over_connections(scene: Scene) -> None:
    serve(scene, BLUE, GREEN, WORLD, affinity_timeout=100)
    chosen = {target(ask(scene, sport=port).packet) for port in range(20000, 20020)}
    assert len(chosen) == 1


def test_affinity_ends_with_the_backend(scene: Scene) -> None:
    serve(scene, BLUE, affinity_timeout=100)
    ask(scene)
    serve(scene, GREEN, affinity_timeout=100)
    assert target(ask(scene, sport=CLIENT + 1).packet) == scene.address(GREEN)


def test_pods_ask_the_inner_scope_where_there_are_two(scene: Scene) -> None:
    serve(scene, GREEN, two_scopes=True)
    serve(scene, BLUE, two_scopes=True, scope=Scope.INTERNAL)
    assert target(ask(scene).packet) == scene.address(BLUE)


def test_a_connection_lives_on_when_pods_get_a_scope_of_their_own(scene: Scene) -> None:
    serve(scene, BLUE)
    ask(scene)
    ask(scene, flags="A")
    serve(scene, BLUE, two_scopes=True)
    serve(scene, GREEN, two_scopes=True, scope=Scope.INTERNAL)
    assert target(ask(scene, flags="A").packet) == scene.address(BLUE)
    assert_answered(scene, scene.send(BLUE, answer(scene, "tcp", BLUE, flags="A")))


def test_a_node_port_of_the_own_node_is_served(scene: Scene) -> None:
    serve(scene, BLUE, address=NODE, port=30080, kind=FrontendKind.NODE_PORT)
    run = scene.send(RED, scene.tcp(RED, NODE, CLIENT, 30080))
    assert (target(run.packet), ports(run.packet)) == (scene.address(BLUE), (CLIENT, TARGET))
    back = scene.send(BLUE, answer(scene, "tcp", BLUE))
    assert (source(back.packet), ports(back.packet)) == (scene.address(NODE), (30080, CLIENT))


def test_other_ports_of_the_node_are_left_to_it(scene: Scene) -> None:
    serve(scene, BLUE, address=NODE, port=30080, kind=FrontendKind.NODE_PORT)
    run = scene.send(RED, scene.tcp(RED, NODE, CLIENT, 22))
    assert (run.verdict, target(run.packet)) == (TC_OK, scene.address(NODE))


@pytest.mark.parametrize("flag", [0, abi.ENDPOINT_NO_REDIRECT])
def test_who_serves_by_a_local_redirect_may_be_left_alone(scene: Scene, flag: int) -> None:
    serve(scene, BLUE, address=WORLD, skip_own=True, kind=FrontendKind.LOCAL_REDIRECT)
    scene.enforce(RED, flag)
    run = scene.send(RED, scene.tcp(RED, WORLD, CLIENT, PORT))
    assert target(run.packet) == scene.address(WORLD if flag else BLUE)


# ---- connections ----


def test_a_connection_to_a_service_is_two_entries(scene: Scene) -> None:
    made = serve(scene, BLUE)
    ask(scene)
    (service,) = of_kind(scene, abi.CT_SERVICE)
    (flow,) = of_kind(scene, abi.CT_FLOW)
    number = scene.plane.services.rev_nat(made.at)
    assert (service.rev_nat, flow.rev_nat) == (number, number)
    assert (str(service.source), str(service.destination)) == (
        scene.address(RED),
        scene.address(SERVICE),
    )
    assert (flow.destination_port, str(flow.destination)) == (TARGET, scene.address(BLUE))


def test_both_ends_closing_shorten_the_services_entry(scene: Scene) -> None:
    serve(scene, BLUE)
    ask(scene)
    scene.send(BLUE, answer(scene, "tcp", BLUE))
    ask(scene, flags="A")
    (before,) = of_kind(scene, abi.CT_SERVICE)
    ask(scene, flags="FA")
    (half,) = of_kind(scene, abi.CT_SERVICE)
    scene.send(BLUE, answer(scene, "tcp", BLUE, flags="FA"))
    (after,) = of_kind(scene, abi.CT_SERVICE)
    assert before.expires_s - 1000 <= half.expires_s
    assert after.expires_s < before.expires_s - 1000


def test_one_who_asks_past_the_service_is_answered_by_the_backend(scene: Scene) -> None:
    serve(scene, BLUE, proto=Protocol.UDP)
    ask(scene, "udp")
    scene.send(RED, scene.udp(RED, BLUE, CLIENT, TARGET))
    run = scene.send(BLUE, answer(scene, "udp", BLUE))
    assert (source(run.packet), ports(run.packet)[0]) == (scene.address(BLUE), TARGET)


def speak(scene: Scene, sport: int = CLIENT) -> None:
    """Red and blue have a connection of their own, past the service."""
    for who, whom, between, flags in (
        (RED, BLUE, (sport, TARGET), "S"),
        (BLUE, RED, (TARGET, sport), "SA"),
        (RED, BLUE, (sport, TARGET), "A"),
    ):
        assert drops(scene.send(who, scene.tcp(who, whom, *between, flags=flags))) == []


def test_a_backend_that_the_clients_port_already_speaks_to_is_not_chosen(scene: Scene) -> None:
    serve(scene, BLUE, GREEN, WORLD)
    asked = Counter()
    for sport in range(CLIENT, CLIENT + 40):
        speak(scene, sport)
        asked[target(ask(scene, sport=sport).packet)] += 1
    assert set(asked) == {scene.address(GREEN), scene.address(WORLD)}


def test_a_port_that_speaks_to_every_backend_harms_none_of_its_connections(scene: Scene) -> None:
    serve(scene, BLUE)
    speak(scene)
    assert target(ask(scene).packet) == scene.address(BLUE)
    # what blue says to that is about the connection it has
    told = scene.send(BLUE, answer(scene, "tcp", BLUE, flags="A"))
    assert (source(told.packet), ports(told.packet)) == (scene.address(BLUE), (TARGET, CLIENT))


def test_a_dead_connection_makes_room_for_one_through_the_service(scene: Scene) -> None:
    serve(scene, BLUE)
    speak(scene)
    ask(scene)
    scene.send(BLUE, answer(scene, "tcp", BLUE, flags="A"))
    scene.send(RED, scene.tcp(RED, BLUE, CLIENT, TARGET, flags="R"))
    ask(scene)
    assert_answered(scene, scene.send(BLUE, answer(scene, "tcp", BLUE)))


# ---- policy ----


def test_policy_is_that_of_the_backend(scene: Scene) -> None:
    scene.rules(RED, {port_rule(EGRESS, BLUE, TCP_PROTO, TARGET): ALLOW})
    serve(scene, BLUE)
    run = ask(scene)
    assert (run.verdict, verdicts(run)) == (TC_REDIRECT, [(RED.endpoint, 0)])


def test_a_rule_for_the_frontends_port_allows_nothing(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, TCP_PROTO, PORT): ALLOW})
    serve(scene, BLUE)
    run = ask(scene)
    assert (run.verdict, drops(run)) == (TC_SHOT, [133])


# ---- to oneself ----


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_pod_that_serves_itself_hears_from_the_link(scene: Scene, kind: str) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS | abi.ENDPOINT_ENFORCE_EGRESS)
    serve(scene, RED, proto=PROTOCOLS[kind])
    for _ in range(2):
        run = ask(scene, kind)
        assert (run.verdict, drops(run)) == (TC_REDIRECT, [])
        assert (source(run.packet), target(run.packet)) == (
            scene.address(HAIRPIN),
            scene.address(RED),
        )
        assert (ports(run.packet), Ether(run.packet).dst) == ((CLIENT, TARGET), RED.mac)
        assert_checksums_right(run.packet)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_pod_that_serves_itself_is_answered_by_the_service(scene: Scene, kind: str) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS | abi.ENDPOINT_ENFORCE_EGRESS)
    serve(scene, RED, proto=PROTOCOLS[kind])
    ask(scene, kind)
    fields = {"flags": "SA"} if kind == "tcp" else {}
    run = scene.send(RED, getattr(scene, kind)(RED, HAIRPIN, TARGET, CLIENT, **fields))
    assert run.verdict == TC_REDIRECT
    assert_answered(scene, run)


def test_the_address_of_the_link_is_asked_by_nobody(scene: Scene) -> None:
    serve(scene, RED)
    run = scene.send(RED, scene.tcp(RED, HAIRPIN, TARGET, CLIENT))
    assert (run.verdict, drops(run), scene.connections()) == (TC_SHOT, [NO_TARGET], [])


# ---- SCTP, fragments ----


def test_sctp_keeps_its_checksum_when_ports_are_equal(scene: Scene) -> None:
    serve(scene, BLUE, proto=Protocol.SCTP, target=PORT)
    packet = scene.ip(RED, SERVICE) / SCTP(sport=CLIENT, dport=PORT, tag=1) / SCTPChunkInit()
    run = scene.send(RED, packet)
    assert (run.verdict, target(run.packet)) == (TC_REDIRECT, scene.address(BLUE))
    assert bytes(layer3(run.packet).payload) == bytes(layer3(bytes(packet)).payload)


def test_sctp_to_another_port_is_dropped(scene: Scene) -> None:
    serve(scene, BLUE, proto=Protocol.SCTP)
    packet = scene.ip(RED, SERVICE) / SCTP(sport=CLIENT, dport=PORT, tag=1) / SCTPChunkInit()
    run = scene.send(RED, packet)
    assert (run.verdict, drops(run)) == (TC_SHOT, [NOT_TRANSLATED])


def test_all_fragments_go_to_one_backend(scene: Scene) -> None:
    serve(scene, BLUE, GREEN, WORLD, proto=Protocol.UDP)
    whole = scene.udp(RED, SERVICE, CLIENT, PORT, payload=bytes(200))
    runs = [scene.send(RED, piece) for piece in pieces(scene, whole)]
    assert len({target(run.packet) for run in runs}) == 1
    assert [drops(run) for run in runs] == [[]] * len(runs)


# ---- dry runs ----


def test_a_dry_run_chooses_and_leaves_nothing(scene: Scene) -> None:
    made = serve(scene, BLUE, affinity_timeout=100)
    run = scene.send(RED, scene.tcp(RED, SERVICE, CLIENT, PORT), mark=abi.MARK_DRY_RUN)
    assert (run.events, scene.connections(), scene.plane.metrics.dump()) == ([], [], [])
    assert run.field("cb", abi.DRY_RUN_OUTCOMES) >> 16
    assert run.field("cb", abi.DRY_RUN_MATCHES) >> 16 == scene.plane.services.rev_nat(made.at)
    assert target(run.packet) == scene.address(BLUE)


def test_a_dry_run_tells_that_nobody_serves(scene: Scene) -> None:
    serve(scene)
    run = scene.send(RED, scene.tcp(RED, SERVICE, CLIENT, PORT), mark=abi.MARK_DRY_RUN)
    assert (run.verdict, run.events) == (TC_SHOT, [])
    assert run.field("cb", abi.DRY_RUN_REASON) == NO_BACKEND
