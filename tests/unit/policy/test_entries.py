"""Entries: two longest-prefix look-ups over pruned columns give the exact verdict."""

from __future__ import annotations

from itertools import pairwise

from cilium_core.policy import (
    CookieTable,
    Direction,
    Origin,
    PolicyEntry,
    PolicyKey,
    Rule,
    Verdict,
    look_up,
)
from cilium_core.policy.columns import Base, Contribution, Numbering, by_prefix
from cilium_core.policy.entries import Changes, EndpointPolicy, PolicyDelta, strongest_change
from cilium_core.policy.merging import merge_column
from cilium_core.policy.ports import ANY_L4, L4Prefix
from cilium_core.policy.redirects import RedirectTable
from cilium_core.policy.selectors import LabelSelector
from hypothesis import given, settings
from hypothesis import strategies as st

ALLOW, DENY = 0xFFFFFF01, 0xFFFFFFFF

prefixes = st.sampled_from(
    [
        ANY_L4,
        L4Prefix(6, 0, 8),
        L4Prefix(17, 0, 8),
        L4Prefix(6, 0, 17),
        L4Prefix(6, 64, 18),
        L4Prefix(6, 80, 20),
        L4Prefix(6, 80, 24),
        L4Prefix(6, 81, 24),
        L4Prefix(17, 80, 24),
        L4Prefix(1, 0, 24),
        L4Prefix(1, 8, 24),
    ]
)
precedences = st.sampled_from([ALLOW, DENY])


def contribution(prefix: L4Prefix, verdict: Verdict, name: str) -> Contribution:
    rule = Rule(
        Direction.INGRESS,
        LabelSelector(),
        verdict,
        None,
        None,
        default_deny=True,
        origin=Origin("NetworkPolicy", "x", name),
    )
    return Contribution((prefix,), rule)


contributions = st.lists(
    st.builds(
        contribution,
        prefixes,
        st.sampled_from([Verdict.ALLOW, Verdict.DENY]),
        st.sampled_from("abcd"),
    ),
    max_size=6,
)


def column_of(contributions, base=None, cookies=None):
    numbering = Numbering(CookieTable() if cookies is None else cookies, RedirectTable())
    return merge_column(by_prefix(contributions), Base(base or {}), numbering)


packets = [
    (6, 80),
    (6, 81),
    (6, 90),
    (6, 100),
    (6, 443),
    (17, 80),
    (17, 53),
    (1, 0),
    (1, 8),
    (47, 0),
]


def flat_best(own, anyone, protocol, port):
    """The best entry by the exact rule: precedence, then prefix length, then the exact identity."""
    ranks = [
        (one.rule.precedence, prefix.length, exact)
        for exact, many in ((1, own), (0, anyone))
        for one in many
        for prefix in one.prefixes
        if prefix.covers(protocol, port)
    ]
    return max(ranks, default=None)


def as_map(own, anyone):
    return {
        PolicyKey(1, identity, *prefix): entry
        for identity, column in ((7, own), (0, anyone))
        for prefix, entry in column.items()
    }


@settings(max_examples=400, deadline=None)
@given(contributions, contributions)
def test_the_kernels_look_up_finds_the_verdict_of_all_entries(own, anyone):
    base = column_of(anyone)
    entries = as_map(column_of(own, base), base)

    for protocol, port in packets:
        best = flat_best(own, anyone, protocol, port)
        found = look_up(entries, Direction.INGRESS, 7, protocol, port)
        assert (found is None) == (best is None)
        if found is not None and best is not None:
            assert found[1].precedence == best[0]
            assert found[1].deny == (best[0] & 0xFF == 0xFF)
            if not found[1].deny:
                # Denies that an equal deny covers are left out, so only allows keep their length.
                assert (found[0].prefixlen, int(found[0].identity == 7)) == best[1:]


@settings(max_examples=300, deadline=None)
@given(contributions, contributions, contributions)
def test_a_base_that_changes_below_a_contribution_leaves_its_column_alone(own, before, after):
    cookies = CookieTable()
    old, new = column_of(before, cookies=cookies), column_of(after, cookies=cookies)
    strongest = strongest_change(old, new)

    safe = [
        one
        for one in own
        if one.rule.precedence > strongest or one.rule.precedence == strongest == ALLOW
    ]

    assert column_of(safe, old, cookies) == column_of(safe, new, cookies)


def test_a_deny_hides_every_allow_that_it_covers():
    deny = contribution(ANY_L4, Verdict.DENY, "deny")
    allow = contribution(L4Prefix(6, 80, 24), Verdict.ALLOW, "allow")

    assert list(column_of([deny, allow])) == [ANY_L4]


def test_an_allow_for_anyone_does_not_replace_a_peers_own_entry():
    cookies = CookieTable()
    base = column_of([contribution(ANY_L4, Verdict.ALLOW, "any")], cookies=cookies)

    column = column_of([contribution(ANY_L4, Verdict.ALLOW, "own")], base, cookies)

    assert [one.name for one in cookies.origins(column[ANY_L4].cookie)] == ["own"]


def test_rules_that_agree_on_an_entry_share_its_cookie():
    cookies = CookieTable()

    column = column_of(
        [contribution(ANY_L4, Verdict.ALLOW, name) for name in ("one", "other")], cookies=cookies
    )

    assert {one.name for one in cookies.origins(column[ANY_L4].cookie)} == {"one", "other"}


columns = st.dictionaries(prefixes, st.builds(PolicyEntry, precedences, st.booleans()), max_size=4)


@given(st.lists(columns, min_size=2, max_size=5))
def test_collected_changes_lead_from_the_first_column_to_the_last(steps):
    changes = Changes()
    for before, after in pairwise(steps):
        changes.note(1, 7, before, after)

    delta = changes.delta()

    first, last = as_map(steps[0], {}), as_map(steps[-1], {})
    assert delta.remove == first.keys() - last.keys()
    assert {**{k: v for k, v in first.items() if k not in delta.remove}, **delta.add} == last
    assert delta.add.keys() <= last.keys()


def test_a_first_policy_differs_from_nothing_in_all_its_entries():
    key = PolicyKey(1, 0, 0, 0, 0)
    policy = EndpointPolicy(False, False, {key: PolicyEntry(ALLOW, False)})

    assert policy.diff(None) == PolicyDelta({key: PolicyEntry(ALLOW, False)}, frozenset())
    assert not policy.diff(policy)
