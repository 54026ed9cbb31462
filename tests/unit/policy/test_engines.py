"""The engine: one update per flush, work in proportion to the change, and refusals without
effect."""

from __future__ import annotations

import pytest
from cilium_core.identities import ReservedIdentity
from cilium_core.labels import LabelSet, pod_labels
from cilium_core.policy import Direction, PolicyEngine, PolicyError, Subject, resolving

from tests.unit.policy.worlds import ccnp, cnp


def labels(app: str, namespace: str = "x") -> LabelSet:
    return pod_labels({"app": app}, namespace=namespace)


def allow(name: str, subject: str | None, peer: str | None, port: int = 80, **fields):
    def select(app: str | None):
        return {"matchLabels": {"app": app}} if app else {}

    item = {
        "fromEndpoints": [select(peer)],
        "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}]}],
    }
    return cnp({"endpointSelector": select(subject), "ingress": [item], **fields}, name=name)


@pytest.fixture
def engine() -> PolicyEngine:
    """Pods of apps 0 to 9 in namespace x, and one of app 0 in y; everything flushed."""
    engine = PolicyEngine()
    for number in range(10):
        engine.upsert_identity(1000 + number, labels(f"{number}"))
        engine.upsert_endpoint(number, Subject(1000 + number, labels(f"{number}")))
    engine.upsert_identity(2000, labels("0", "y"))
    engine.upsert_endpoint("far", Subject(2000, labels("0", "y")))
    engine.flush()
    return engine


@pytest.fixture
def built(monkeypatch) -> list[int]:
    """Counts the columns that are computed."""
    count = [0]
    original = resolving.build_column

    def counting(*args, **kwargs):
        count[0] += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(resolving, "build_column", counting)
    return count


def test_a_new_endpoint_gets_a_full_update(engine):
    engine.upsert_endpoint("new", Subject(1001, labels("1")))

    (update,) = engine.flush()

    assert (update.endpoint, update.full, update.ingress_enforced) == ("new", True, False)
    assert {key.direction for key in update.delta.add} == {1, 2}
    assert engine.flush() == []


def test_a_policy_reports_and_updates_just_the_endpoints_that_it_selects(engine):
    change = engine.upsert_policy(allow("p", "3", "4"))

    updates = engine.flush()

    assert change.affected == {3}
    assert [update.endpoint for update in updates] == [3]
    assert updates[0].ingress_enforced
    assert not updates[0].egress_enforced
    assert {key.identity for key in updates[0].delta.add} == {0, 1, 1004}
    assert not updates[0].delta.remove


def test_several_changes_before_a_flush_are_one_update(engine):
    engine.upsert_policy(allow("p", "3", "4"))
    engine.upsert_policy(allow("q", "3", "5"))
    engine.upsert_identity(3000, labels("4"))
    engine.delete_policy("CiliumNetworkPolicy", "x", "q")

    (update,) = engine.flush()

    assert {key.identity for key in update.delta.add} == {0, 1, 1004, 3000}


def test_changes_that_cancel_out_are_no_update(engine):
    engine.upsert_policy(allow("p", "3", "4"))
    engine.delete_policy("CiliumNetworkPolicy", "x", "p")
    engine.upsert_identity(3000, labels("4"))
    engine.delete_identity(3000)

    assert engine.flush() == []


def test_a_policy_that_says_the_same_again_affects_nobody(engine):
    engine.upsert_policy(allow("p", None, "4"))
    engine.flush()

    change = engine.upsert_policy(allow("p", None, "4"))

    assert change.affected == frozenset()
    assert engine.flush() == []


def test_a_changed_port_touches_just_its_entries(engine):
    engine.upsert_policy(allow("p", "3", "4", 80))
    engine.upsert_policy(allow("q", "3", "5", 80))
    engine.flush()

    engine.upsert_policy(allow("p", "3", "4", 81))
    (update,) = engine.flush()

    assert [(key.identity, key.port) for key in update.delta.add] == [(1004, 81)]
    assert [(key.identity, key.port) for key in update.delta.remove] == [(1004, 80)]


def test_a_refused_policy_leaves_the_accepted_version_in_force(engine):
    engine.upsert_policy(allow("p", "3", "4"))
    engine.flush()
    before = engine.policy(3)
    bad = allow("p", "3", None)
    bad["spec"]["ingress"][0]["toPorts"][0]["rules"] = {"http": [{"path": "("}]}

    with pytest.raises(PolicyError):
        engine.upsert_policy(bad)

    assert engine.flush() == []
    assert engine.policy(3) == before


def test_a_refused_new_policy_opens_and_closes_nothing(engine):
    before = engine.policy(3)
    revision = engine.revision

    with pytest.raises(PolicyError):
        engine.upsert_policy(cnp({"endpointSelector": {}, "ingress": [{"fromNodes": [{}]}]}))

    assert engine.flush() == []
    assert (engine.policy(3), engine.revision) == (before, revision)


def test_an_identity_reaches_only_policies_that_select_it(engine, built):
    for number in range(10):
        engine.upsert_policy(allow(f"p{number}", f"{number}", f"{(number + 1) % 10}"))
    engine.flush()
    built[0] = 0

    engine.upsert_identity(3000, labels("4"))
    (update,) = engine.flush()

    assert update.endpoint == 3
    assert [key.identity for key in update.delta.add] == [3000]
    assert built[0] <= 1


def test_a_gone_identity_leaves_the_maps(engine):
    engine.upsert_policy(allow("p", "3", "4"))
    engine.flush()

    engine.delete_identity(1004)
    (update,) = engine.flush()

    assert [key.identity for key in update.delta.remove] == [1004]
    assert not update.delta.add


def test_one_changed_rule_among_many_rebuilds_one_column(engine, built):
    for number in range(1, 10):
        engine.upsert_policy(allow(f"p{number}", "0", f"{number}"))
    engine.flush()
    built[0] = 0

    engine.upsert_policy(allow("p5", "0", "5", 8080))
    engine.flush()

    assert built[0] == 1


def test_an_allow_for_everyone_rebuilds_no_other_column(engine, built):
    for number in range(1, 10):
        engine.upsert_policy(allow(f"p{number}", "0", f"{number}"))
    engine.flush()
    built[0] = 0

    engine.upsert_policy(
        cnp(
            {
                "endpointSelector": {"matchLabels": {"app": "0"}},
                "ingress": [{"fromEntities": ["all"]}],
            }
        )
    )
    engine.flush()

    assert built[0] == 1


def test_identities_that_the_same_rules_match_share_a_column(engine, built):
    for number in range(500):
        engine.upsert_identity(5000 + number, labels(f"more-{number}"))
    engine.flush()
    built[0] = 0

    engine.upsert_policy(allow("p", "3", None))
    (update,) = engine.flush()

    assert len(update.delta.add) == 512
    # Any peer's, the host's, and one for all the pods.
    assert built[0] == 3


def test_endpoints_that_the_same_rules_select_share_the_work(engine, built):
    for number in range(50):
        engine.upsert_endpoint(f"pod-{number}", Subject(1003, labels("3")))
    engine.flush()
    built[0] = 0

    engine.upsert_policy(allow("p", "3", "4"))

    assert len(engine.flush()) == 51
    assert built[0] == 3


def test_a_relabelled_endpoint_follows_its_new_rules(engine):
    engine.upsert_policy(allow("p", "3", "4"))
    engine.flush()

    engine.upsert_endpoint(3, Subject(1004, labels("4")))
    (update,) = engine.flush()

    assert not update.ingress_enforced
    assert not update.full
    assert {key.identity for key in update.delta.remove} == {1, 1004}


def test_an_endpoint_that_left_gets_no_more_updates(engine):
    engine.upsert_policy(allow("p", None, None))
    engine.remove_endpoint(3)

    assert 3 not in {update.endpoint for update in engine.flush()}
    assert engine.policy(3) is None


def test_selectors_out_of_use_are_forgotten(engine):
    before = len(engine.selectors)
    engine.upsert_policy(allow("p", None, "4"))
    engine.flush()
    assert len(engine.selectors) > before

    engine.delete_policy("CiliumNetworkPolicy", "x", "p")
    engine.flush()

    assert len(engine.selectors) == before


def test_an_unenforced_direction_still_has_an_entry_that_allows_everything(engine):
    policy = engine.policy(3)

    assert not policy.ingress_enforced
    assert [(key.direction, key.identity, key.prefixlen) for key in policy.entries] == [
        (1, 0, 0),
        (2, 0, 0),
    ]


def test_a_hosts_own_labels_can_change_and_come_back(engine):
    engine.upsert_policy(
        cnp(
            {
                "endpointSelector": {"matchLabels": {"app": "3"}},
                "ingressDeny": [{"fromEntities": ["kube-apiserver"]}],
            }
        )
    )
    engine.flush()

    engine.upsert_identity(1, LabelSet.parse(["reserved:host", "reserved:kube-apiserver"]))
    (update,) = engine.flush()
    assert [entry.deny for entry in update.delta.add.values()] == [True]

    engine.delete_identity(ReservedIdentity.HOST)
    (update,) = engine.flush()
    assert [entry.deny for entry in update.delta.add.values()] == [False]


def test_every_entry_names_the_policies_behind_it(engine):
    engine.upsert_policy(allow("p", "3", "4"))
    engine.upsert_policy(allow("q", "3", "4"))
    engine.flush()
    policy = engine.policy(3)

    origins = {
        key.identity: {
            origin.name or origin.labels[0] for origin in engine.cookies.origins(entry.cookie)
        }
        for key, entry in policy.entries.items()
        if key.direction == 1
    }

    assert origins == {
        0: {"p", "q"},
        1: {"reserved:allow-localhost-ingress"},
        1004: {"p", "q"},
    }


def test_default_deny_names_the_policies_that_turn_it_on_and_decides_nothing(engine):
    engine.upsert_policy(allow("p", "3", "4"))
    engine.flush()
    engine.upsert_policy(allow("q", "3", "4"))
    engine.flush()
    policy = engine.policy(3)

    key, entry = policy.decide(Direction.INGRESS, 1005, 6, 80)

    assert (key.identity, key.prefixlen) == (0, 0)
    assert entry.deny
    assert entry.precedence & 0xFF == 0
    assert {origin.name for origin in engine.cookies.origins(entry.cookie)} == {"p", "q"}
    assert policy.allows(Direction.INGRESS, 1004, 6, 80)


def test_cookies_of_deleted_policies_are_swept(engine):
    engine.upsert_policy(allow("p", "3", "4"))
    engine.flush()
    known = len(engine.cookies)
    engine.delete_policy("CiliumNetworkPolicy", "x", "p")
    engine.flush()

    engine.sweep_cookies()
    engine.sweep_cookies()

    assert len(engine.cookies) < known


def test_selectors_are_listed_with_their_users_and_identities(engine):
    engine.upsert_policy(allow("p", "3", "4"))
    engine.upsert_policy(ccnp(endpointSelector={}, ingress=[{"fromEntities": ["host"]}]))

    listed = {
        str(selector): ([ref.name for ref in refs], sorted(identities))
        for selector, (refs, identities) in engine.selector_users().items()
    }

    assert listed["entity:host"] == (["policy"], [1])
    assert [value for text, value in listed.items() if "any:app=4" in text] == [(["p"], [1004])]


def test_resolving_a_subject_from_scratch_leaves_no_trace(engine):
    engine.upsert_policy(allow("p", "3", "4"))
    engine.flush()
    before = len(engine.selectors)

    policy = engine.resolve(Subject(1003, labels("3")))

    assert policy == engine.policy(3)
    assert len(engine.selectors) == before
