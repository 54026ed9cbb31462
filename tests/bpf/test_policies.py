"""Policy look-up: who wins, what is told, and what passes whatever the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cilium_core import abi

from tests.bpf.harness import TC_OK, TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import (
    ALLOW,
    BLUE,
    DENY,
    EGRESS,
    GREEN,
    INGRESS,
    NODE,
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

if TYPE_CHECKING:
    from cilium_core.policy import PolicyEntry, PolicyKey

    from tests.bpf.scenes import Scene

ANY = 0
ENFORCE_BOTH = abi.ENDPOINT_ENFORCE_INGRESS | abi.ENDPOINT_ENFORCE_EGRESS


def test_without_enforcement_everything_passes_and_nothing_is_told(scene: Scene) -> None:
    run = scene.send(RED, scene.tcp(RED, BLUE))
    assert (run.verdict, verdicts(run)) == (TC_REDIRECT, [])


@pytest.mark.parametrize(
    ("enforced", "endpoint"),
    [(abi.ENDPOINT_ENFORCE_INGRESS, BLUE), (abi.ENDPOINT_ENFORCE_EGRESS, RED)],
    ids=["ingress", "egress"],
)
def test_enforcement_without_rules_denies_by_default(
    scene: Scene, enforced: int, endpoint: object
) -> None:
    assert endpoint in (RED, BLUE)
    pod = RED if endpoint is RED else BLUE
    scene.rules(pod, {}, enforced)
    run = scene.send(RED, scene.tcp(RED, BLUE))
    assert (run.verdict, drops(run)) == (TC_SHOT, [133])
    assert verdicts(run) == [(pod.endpoint, -133)]


def test_enforcement_of_one_direction_leaves_the_other_alone(scene: Scene) -> None:
    scene.rules(BLUE, {}, abi.ENDPOINT_ENFORCE_EGRESS)
    assert scene.send(RED, scene.tcp(RED, BLUE)).verdict == TC_REDIRECT


def test_rules_that_are_not_there_yet_let_nothing_pass(scene: Scene) -> None:
    scene.enforce(BLUE, abi.ENDPOINT_ENFORCE_INGRESS)
    assert drops(scene.send(RED, scene.tcp(RED, BLUE))) == [203]


@pytest.mark.parametrize("sender", [RED, BLUE])
def test_an_endpoint_that_is_not_ready_neither_sends_nor_receives(
    scene: Scene, sender: object
) -> None:
    scene.enforce(BLUE, abi.ENDPOINT_NOT_READY)
    source, target = (RED, BLUE) if sender is RED else (BLUE, RED)
    run = scene.send(source, scene.tcp(source, target))
    assert (run.verdict, drops(run)) == (TC_SHOT, [203])


def judge(scene: Scene, rules: dict[PolicyKey, PolicyEntry], port: int = 80) -> int:
    """Drop reason of a new connection of red to blue under these rules, 0 is allowed."""
    scene.rules(BLUE, rules, abi.ENDPOINT_ENFORCE_INGRESS)
    run = scene.send(RED, scene.tcp(RED, BLUE, dport=port))
    assert (run.verdict == TC_SHOT) == bool(drops(run))
    return (drops(run) or [0])[0]


def test_an_allow_of_the_exact_port_lets_only_it_pass(scene: Scene) -> None:
    rules = {port_rule(INGRESS, RED): ALLOW}
    assert [judge(scene, rules, port) for port in (80, 81)] == [0, 133]


def test_an_allow_for_another_identity_does_not_count(scene: Scene) -> None:
    assert judge(scene, {port_rule(INGRESS, GREEN): ALLOW}) == 133


def test_an_allow_for_another_protocol_does_not_count(scene: Scene) -> None:
    assert judge(scene, {port_rule(INGRESS, RED, UDP_PROTO): ALLOW}) == 133


def test_an_allow_for_the_other_direction_does_not_count(scene: Scene) -> None:
    assert judge(scene, {port_rule(EGRESS, RED): ALLOW}) == 133


def test_a_range_is_a_shorter_prefix(scene: Scene) -> None:
    # given 8080 to 8095, which is twelve bits of the port
    rules = {port_rule(INGRESS, RED, TCP_PROTO, 8080, 8 + 12): ALLOW}
    assert [judge(scene, rules, port) for port in (8079, 8080, 8095, 8096)] == [133, 0, 0, 133]


def test_an_allow_of_the_protocol_covers_every_port(scene: Scene) -> None:
    assert judge(scene, {port_rule(INGRESS, RED, TCP_PROTO, 0, 8): ALLOW}, 12345) == 0


def test_an_allow_of_the_identity_covers_everything(scene: Scene) -> None:
    assert judge(scene, {port_rule(INGRESS, RED, bits=0): ALLOW}) == 0


def test_an_allow_of_anybody_covers_everything(scene: Scene) -> None:
    assert judge(scene, {port_rule(INGRESS, ANY, bits=0): ALLOW}) == 0


def test_a_deny_has_a_reason_of_its_own(scene: Scene) -> None:
    assert judge(scene, {port_rule(INGRESS, RED): DENY}) == 181


def test_a_deny_of_anybody_beats_an_allow_of_the_identity(scene: Scene) -> None:
    rules = {port_rule(INGRESS, RED): ALLOW, port_rule(INGRESS, ANY, bits=0): DENY}
    assert judge(scene, rules) == 181


def test_a_deny_of_the_identity_beats_an_allow_of_anybody(scene: Scene) -> None:
    rules = {port_rule(INGRESS, RED, bits=0): DENY, port_rule(INGRESS, ANY): ALLOW}
    assert judge(scene, rules) == 181


def test_the_higher_precedence_wins_whatever_the_prefix(scene: Scene) -> None:
    strong = ALLOW._replace(precedence=0x1FF)
    weak = DENY._replace(precedence=0x0FF)
    rules = {port_rule(INGRESS, ANY, bits=0): strong, port_rule(INGRESS, RED): weak}
    assert judge(scene, rules) == 0


def test_equal_precedence_goes_to_the_longer_prefix(scene: Scene) -> None:
    rules = {
        port_rule(INGRESS, ANY): ALLOW._replace(precedence=7),
        port_rule(INGRESS, RED, bits=0): DENY._replace(precedence=7),
    }
    assert judge(scene, rules) == 0


def test_equal_precedence_and_prefix_go_to_the_exact_identity(scene: Scene) -> None:
    rules = {
        port_rule(INGRESS, ANY): ALLOW._replace(precedence=7),
        port_rule(INGRESS, RED): DENY._replace(precedence=7),
    }
    assert judge(scene, rules) == 181


def test_within_one_identity_the_longest_prefix_decides(scene: Scene) -> None:
    rules = {port_rule(INGRESS, RED, bits=0): ALLOW, port_rule(INGRESS, RED): DENY}
    assert [judge(scene, rules, port) for port in (80, 81)] == [181, 0]


def test_a_rule_that_wants_a_proxy_is_refused_where_there_is_none(scene: Scene) -> None:
    assert judge(scene, {port_rule(INGRESS, RED): ALLOW._replace(redirect=10000)}) == 178


@pytest.mark.parametrize(
    ("peer", "bits", "match"),
    [
        (RED, 0, abi.MATCH_L3_ONLY),
        (RED, 8, abi.MATCH_L3_PROTO),
        (RED, 20, abi.MATCH_L3_L4),
        (RED, 24, abi.MATCH_L3_L4),
        (ANY, 0, abi.MATCH_ALL),
        (ANY, 8, abi.MATCH_PROTO_ONLY),
        (ANY, 24, abi.MATCH_L4_ONLY),
    ],
)
def test_the_verdict_says_what_matched_and_which_rules(
    scene: Scene, peer: object, bits: int, match: int
) -> None:
    key = port_rule(INGRESS, RED if peer is RED else ANY, TCP_PROTO, 80, bits)
    scene.rules(BLUE, {key: ALLOW._replace(cookie=77)})
    run = scene.send(RED, scene.tcp(RED, BLUE))
    (event,) = of_type(run, abi.EVENT_POLICY_VERDICT)
    assert (event.verdict, event.match, event.cookie) == (0, match, 77)
    assert (event.endpoint, event.src_identity, event.dst_identity) == (2, 1001, 1002)
    assert event.flags & abi.EVENT_INGRESS
    assert not event.flags & abi.EVENT_EGRESS


def test_the_cookie_stays_with_the_connection(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW._replace(cookie=77)})
    scene.send(RED, scene.tcp(RED, BLUE))
    assert scene.connection().cookie == 77


def test_a_miss_matches_nothing(scene: Scene) -> None:
    scene.rules(BLUE, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    run = scene.send(RED, scene.tcp(RED, BLUE))
    (event,) = of_type(run, abi.EVENT_POLICY_VERDICT)
    assert (event.verdict, event.match, event.cookie) == (-133, abi.MATCH_NONE, 0)


def test_a_new_connection_is_told_once(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW})
    runs = [scene.send(RED, scene.tcp(RED, BLUE, flags=flags)) for flags in ("S", "A", "A")]
    assert [len(verdicts(run)) for run in runs] == [1, 0, 0]


def test_a_denial_is_told_each_time(scene: Scene) -> None:
    scene.rules(BLUE, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    runs = [scene.send(RED, scene.tcp(RED, BLUE)) for _ in range(3)]
    assert [len(verdicts(run)) for run in runs] == [1, 1, 1]


def test_both_ends_are_asked_and_both_tell(scene: Scene) -> None:
    scene.rules(RED, {port_rule(EGRESS, BLUE): ALLOW})
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW})
    run = scene.send(RED, scene.tcp(RED, BLUE))
    assert verdicts(run) == [(RED.endpoint, 0), (BLUE.endpoint, 0)]


def test_what_egress_denies_ingress_is_not_asked(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_EGRESS)
    scene.rules(BLUE, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    assert verdicts(scene.send(RED, scene.tcp(RED, BLUE))) == [(RED.endpoint, -133)]


@pytest.mark.parametrize("target", [GREEN, WORLD, NODE, ROUTER])
def test_egress_policy_covers_targets_of_every_kind(scene: Scene, target: object) -> None:
    who = next(each for each in (GREEN, WORLD, NODE, ROUTER) if each is target)
    scene.rules(RED, {port_rule(EGRESS, who.identity): ALLOW})
    assert drops(scene.send(RED, scene.tcp(RED, who))) == []
    assert drops(scene.send(RED, scene.tcp(RED, who, dport=81))) == [133]


def test_a_cidr_identity_is_looked_up_by_the_longest_prefix(scene: Scene) -> None:
    import ipaddress

    wide = "198.51.100.0/24" if scene.family == 4 else "2001:db8::/32"
    narrow = f"{scene.address(WORLD)}/{32 if scene.family == 4 else 128}"
    scene.plane.ipcache.upsert(ipaddress.ip_network(wide), 0x01000001)
    scene.plane.ipcache.upsert(ipaddress.ip_network(narrow), 0x01000002)
    scene.rules(
        RED,
        {
            port_rule(EGRESS, 0x01000001, bits=0): DENY,
            port_rule(EGRESS, 0x01000002, bits=0): ALLOW,
        },
    )
    neighbour = "198.51.100.8" if scene.family == 4 else "2001:db8::8"
    assert drops(scene.send(RED, scene.tcp(RED, WORLD))) == []
    assert drops(scene.send(RED, scene.tcp(RED, neighbour))) == [181]


def test_ingress_policy_covers_sources_of_every_kind(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW})
    assert drops(scene.tunnel(scene.tcp(GREEN, BLUE))) == [133]
    assert drops(scene.arrive(scene.tcp(WORLD, BLUE))) == [133]
    assert drops(scene.stack_sends(BLUE, scene.tcp(ROUTER, BLUE))) == [133]


def test_ingress_policy_of_the_stack_knows_the_host(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, abi.ID_HOST): ALLOW})
    assert scene.stack_sends(BLUE, scene.tcp(ROUTER, BLUE)).verdict == TC_OK
    assert drops(scene.stack_sends(BLUE, scene.tcp(WORLD, BLUE))) == [133]


@pytest.mark.parametrize("where", ["node", "endpoint", "entry"])
def test_audit_reports_a_denial_and_lets_it_pass(scene: Scene, where: str) -> None:
    rules = {port_rule(INGRESS, RED): DENY._replace(audit=where == "entry", cookie=5)}
    flags = abi.ENDPOINT_AUDIT if where == "endpoint" else 0
    scene.configure(audit=where == "node")
    scene.rules(BLUE, rules, flags)
    run = scene.send(RED, scene.tcp(RED, BLUE))
    (event,) = of_type(run, abi.EVENT_POLICY_VERDICT)
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [])
    assert (event.verdict, event.cookie) == (0, 5)
    assert event.flags & abi.EVENT_AUDITED


def test_icmp_is_judged_by_its_type_in_the_port_field(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, scene.icmp, scene.request): ALLOW})
    assert scene.send(RED, scene.echo(RED, BLUE)).verdict == TC_REDIRECT
    assert drops(scene.send(RED, scene.echo(RED, BLUE, 9, reply=True))) == [133]


def test_a_changed_policy_judges_the_answer_of_an_echo_by_its_request(scene: Scene) -> None:
    rules = {port_rule(INGRESS, RED, scene.icmp, scene.request): ALLOW}
    scene.rules(BLUE, rules)
    scene.send(RED, scene.echo(RED, BLUE))
    scene.plane.policy.replace(BLUE.endpoint, rules)
    assert scene.send(BLUE, scene.echo(BLUE, RED, reply=True)).verdict == TC_REDIRECT


def test_verdict_events_can_be_switched_off(scene: Scene) -> None:
    scene.configure(policy_verdicts=False)
    scene.rules(BLUE, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    run = scene.send(RED, scene.tcp(RED, BLUE))
    assert (verdicts(run), drops(run)) == ([], [133])


def test_replies_pass_where_both_directions_are_enforced(scene: Scene) -> None:
    scene.rules(RED, {port_rule(EGRESS, BLUE): ALLOW}, ENFORCE_BOTH)
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW}, ENFORCE_BOTH)
    scene.send(RED, scene.tcp(RED, BLUE))
    run = scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags="SA"))
    assert (run.verdict, verdicts(run)) == (TC_REDIRECT, [])
