"""Dry runs: the attached programs tell what would become of a packet, and do nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cilium_core import abi

from tests.bpf.harness import TC_SHOT
from tests.bpf.scenes import (
    ALLOW,
    BLUE,
    DENY,
    EGRESS,
    GREEN,
    INGRESS,
    RED,
    ROUTER,
    UDP_PROTO,
    WORLD,
    port_rule,
)

if TYPE_CHECKING:
    from cilium_core.policy import PolicyEntry

    from tests.bpf.harness import Run
    from tests.bpf.scenes import Scene

ANY = 0
UNASKED, ALLOWED, DENIED, REDIRECTED, AUDITED = range(5)


def outcomes(run: Run) -> tuple[int, int]:
    """Of egress and ingress."""
    word = run.field("cb", abi.DRY_RUN_OUTCOMES)
    return word & 0xFF, word >> 8 & 0xFF


def reason(run: Run) -> int:
    return run.field("cb", abi.DRY_RUN_REASON)


def left_behind(scene: Scene, run: Run) -> tuple[object, ...]:
    return run.events, scene.connections(), scene.plane.metrics.dump()


NOTHING: tuple[object, ...] = ([], [], [])


@pytest.mark.parametrize(
    ("entry", "outcome", "told"),
    [
        (ALLOW, ALLOWED, 0),
        (DENY, DENIED, 181),
        (ALLOW._replace(redirect=10500), REDIRECTED, 10500),
        (DENY._replace(audit=True), AUDITED, 0),
    ],
    ids=["allow", "deny", "redirect", "audit"],
)
def test_the_outcome_of_the_senders_policy_is_told(
    scene: Scene, entry: PolicyEntry, outcome: int, told: int
) -> None:
    scene.rules(RED, {port_rule(EGRESS, ANY): entry._replace(cookie=9)})
    run = scene.send(RED, scene.tcp(RED, BLUE), mark=abi.MARK_DRY_RUN)
    assert run.verdict == TC_SHOT
    assert (outcomes(run), reason(run)) == ((outcome, UNASKED), told)
    assert run.field("cb", abi.DRY_RUN_EGRESS_COOKIE) == 9
    assert run.field("cb", abi.DRY_RUN_MATCHES) == abi.MATCH_L4_ONLY
    assert left_behind(scene, run) == NOTHING


def test_both_policies_are_told_between_pods_of_one_node(scene: Scene) -> None:
    scene.rules(RED, {port_rule(EGRESS, BLUE): ALLOW._replace(cookie=3)})
    scene.rules(BLUE, {port_rule(INGRESS, RED, bits=0): DENY._replace(cookie=4)})
    run = scene.send(RED, scene.tcp(RED, BLUE), mark=abi.MARK_DRY_RUN)
    assert (outcomes(run), reason(run)) == ((ALLOWED, DENIED), 181)
    assert [run.field("cb", index) for index in (1, 2)] == [3, 4]
    assert run.field("cb", abi.DRY_RUN_MATCHES) == abi.MATCH_L3_L4 | abi.MATCH_L3_ONLY << 8
    assert left_behind(scene, run) == NOTHING


def test_a_connection_that_exists_does_not_count(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, UDP_PROTO, 53): ALLOW})
    scene.send(RED, scene.udp(RED, BLUE))
    before = scene.connection()
    # given rules that no longer allow it, unnoticed so far
    scene.plane.policy.replace(BLUE.endpoint, {})
    run = scene.send(RED, scene.udp(RED, BLUE), mark=abi.MARK_DRY_RUN)
    assert (outcomes(run), reason(run)) == ((UNASKED, DENIED), 133)
    assert (run.events, scene.connection()) == ([], before)


def test_a_packet_of_another_node_can_be_tried(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, GREEN): ALLOW})
    for port, expected in ((80, (ALLOWED, 0)), (81, (DENIED, 133))):
        run = scene.plane.run(
            f"tail_from_overlay_ipv{scene.family}",
            scene.tcp(GREEN, BLUE, dport=port),
            device="vxlan",
            mark=abi.MARK_DRY_RUN,
            cb=[GREEN.identity, 0],
        )
        assert (outcomes(run)[1], reason(run)) == expected
        assert left_behind(scene, run) == NOTHING


def test_a_packet_of_the_world_can_be_tried(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, abi.ID_WORLD): ALLOW})
    run = scene.plane.run(
        "cil_from_netdev", scene.tcp(WORLD, BLUE), device="eth0", mark=abi.MARK_DRY_RUN
    )
    assert outcomes(run) == (UNASKED, ALLOWED)
    assert left_behind(scene, run) == NOTHING


def test_a_packet_of_the_node_can_be_tried(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, abi.ID_HOST): ALLOW})
    run = scene.stack_sends(BLUE, scene.tcp(ROUTER, BLUE), mark=abi.MARK_DRY_RUN)
    assert outcomes(run) == (UNASKED, ALLOWED)
    assert left_behind(scene, run) == NOTHING


def test_a_packet_that_ends_before_policy_tells_why(scene: Scene) -> None:
    run = scene.send(RED, scene.tcp(BLUE, RED), mark=abi.MARK_DRY_RUN)
    assert (outcomes(run), reason(run)) == ((UNASKED, UNASKED), 132)
    assert left_behind(scene, run) == NOTHING
