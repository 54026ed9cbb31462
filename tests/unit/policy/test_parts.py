"""The parts of the engine, each for itself: selectors, repository, cookies, names, prefixes."""

from __future__ import annotations

import ipaddress

import pytest
from cilium_core.identities import Families, LocalIdentityAllocator
from cilium_core.labels import LabelSet
from cilium_core.policy import (
    ContainerPort,
    CookieTable,
    NamedPorts,
    Origin,
    PolicyRef,
    PrefixIdentities,
    Protocol,
    Repository,
    SelectorCache,
    Subject,
    parse,
)
from cilium_core.policy.anchors import anchors_of
from cilium_core.policy.selectors import (
    CidrSelector,
    EntitySelector,
    LabelSelector,
    Operator,
    Requirement,
    cidr_selector,
    equals,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.worlds import ccnp, cnp

WEB = ContainerPort("web", Protocol.TCP, 80)


def net(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


labels = st.builds(
    LabelSet.parse,
    st.lists(
        st.sampled_from(
            [
                "k8s:app=a",
                "k8s:app=b",
                "k8s:tier=",
                "reserved:host",
                "reserved:world-ipv4",
                "cidr:10.0.0.0/8",
                "cidr:10.1.0.0/16",
                "cidr:fd00--0/8",
                "other:app=a",
            ]
        ),
        max_size=3,
    ),
)
requirements = st.builds(
    Requirement,
    st.sampled_from(["any", "k8s", "reserved", "other"]),
    st.sampled_from(["app", "tier", "host", "io.kubernetes.pod.namespace"]),
    st.sampled_from(list(Operator)),
    st.frozensets(st.sampled_from(["a", "b", ""]), min_size=1, max_size=2),
)
selectors = st.one_of(
    st.builds(LabelSelector, st.lists(requirements, max_size=2).map(tuple)),
    st.builds(
        lambda prefix, parts: cidr_selector(net(prefix), map(net, parts), Families()),
        st.sampled_from(["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "::/0", "fd00::/8"]),
        st.lists(st.sampled_from(["10.1.0.0/16", "fd00::/8"]), max_size=1),
    ),
    st.builds(
        lambda names: EntitySelector(
            "e", frozenset(LabelSet.parse(f"reserved:{n}" for n in names))
        ),
        st.lists(st.sampled_from(["host", "world-ipv4"]), max_size=2),
    ),
)


@given(selectors, labels)
def test_a_selector_matches_only_what_shares_an_anchor_with_it(selector, own):
    anchors = selector.anchors()

    if selector.matches(own) and anchors is not None:
        assert set(anchors) & set(anchors_of(own))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("identity"), st.integers(1, 4), labels),
            st.tuples(st.just("forget"), st.integers(1, 4), st.none()),
            st.tuples(st.just("acquire"), st.integers(0, 3), selectors),
            st.tuples(st.just("release"), st.integers(0, 3), st.none()),
        ),
        max_size=25,
    )
)
def test_the_cache_always_knows_who_selects_whom(steps):
    cache = SelectorCache()
    identities: dict[int, LabelSet] = {}
    held = []
    for kind, number, value in steps:
        match kind:
            case "identity":
                assert cache.upsert_identity(number, value) == (identities.get(number) != value)
                identities[number] = value
            case "forget":
                assert cache.delete_identity(number) == (identities.pop(number, None) is not None)
            case "acquire":
                held.append(cache.acquire(value))
            case "release" if held:
                cache.release(held.pop(number % len(held)))

        assert cache.identities == identities
        assert len(cache) == len({cached.selector for cached in held})
        for cached in cache:
            expected = {n for n, own in identities.items() if cached.selector.matches(own)}
            assert cached.selections == expected
        for own_number, own in identities.items():
            expected = {cached for cached in cache if cached.selector.matches(own)}
            assert set(cache.matching_identity(own_number)) == expected


def test_a_new_identity_is_tried_against_few_selectors():
    class Counting(LabelSelector):
        tried = 0

        def matches(self, labels: LabelSet) -> bool:
            Counting.tried += 1
            return super().matches(labels)

    cache = SelectorCache()
    namespace = equals("io.kubernetes.pod.namespace", "x")
    for number in range(500):
        cache.acquire(Counting((namespace, equals("app", f"app-{number}"))))

    cache.upsert_identity(1, LabelSet.parse(["k8s:app=app-7", "k8s:io.kubernetes.pod.namespace=x"]))

    assert Counting.tried == 1


def test_selectors_print_as_users_think_of_them():
    selector = LabelSelector(
        (
            equals("app", "web"),
            Requirement("any", "tier", Operator.NOT_IN, frozenset(("b", "a"))),
            Requirement("any", "zone", Operator.EXISTS),
            Requirement("any", "gone", Operator.NOT_EXISTS),
        )
    )

    assert str(selector) == "k8s:app=web, any:tier notin (a,b), any:zone, !any:gone"
    assert str(LabelSelector()) == "{}"
    assert str(cidr_selector(net("10.0.0.0/8"), [net("10.1.0.0/16")], Families())) == (
        "cidr:10.0.0.0/8 except 10.1.0.0/16"
    )


def test_prefix_selectors_are_equal_whatever_the_order_of_excepts():
    parts = [net("10.2.0.0/16"), net("10.1.0.0/16"), net("10.2.0.0/16")]

    one = cidr_selector(net("10.0.0.0/8"), parts, Families())
    other = cidr_selector(net("10.0.0.0/8"), reversed(parts), Families())

    assert one == other
    assert isinstance(one, CidrSelector)


def test_the_revision_grows_with_every_change_and_with_nothing_else():
    repository = Repository()
    policy = cnp(endpointSelector={}, ingress=[{}])

    first = repository.upsert(parse(policy))
    again = repository.upsert(parse({**policy, "status": {"seen": True}}))
    changed = repository.upsert(parse(cnp(endpointSelector={}, egress=[{}])))
    missing = repository.delete("CiliumNetworkPolicy", "x", "other")
    gone = repository.delete(*changed.ref)

    assert [c.revision for c in (first, again, changed, missing, gone)] == [2, 2, 3, 3, 4]
    assert [c.effective for c in (first, again, changed, missing, gone)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert len(repository) == 0


def test_a_policy_of_another_namespace_selects_nobody_here():
    repository = Repository()
    repository.upsert(parse(cnp(endpointSelector={}, ingress=[{}], namespace="y")))
    repository.upsert(parse(ccnp(endpointSelector={}, egress=[{}])))

    subject = Subject(1000, LabelSet.parse(["k8s:io.kubernetes.pod.namespace=x"]))
    rules = list(repository.rules_for(subject))

    assert [rule.origin.kind for rule in rules] == ["CiliumClusterwideNetworkPolicy"]


def test_the_repository_asks_for_the_prefixes_that_policies_name_now():
    repository = Repository()
    item = {"toCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}]}
    repository.upsert(parse(cnp(endpointSelector={}, egress=[item])))
    repository.upsert(
        parse(cnp(endpointSelector={}, egress=[{"toCIDR": ["10.1.0.0/16"]}], name="b"))
    )
    assert repository.required_prefixes() == {net("10.0.0.0/8"), net("10.1.0.0/16")}

    repository.delete("CiliumNetworkPolicy", "x", "policy")

    assert repository.required_prefixes() == {net("10.1.0.0/16")}


def test_the_rules_of_an_accepted_policy_carry_its_revision():
    repository = Repository()
    repository.upsert(parse(cnp(endpointSelector={}, ingress=[{}])))

    stored = repository.get(PolicyRef("CiliumNetworkPolicy", "x", "policy"))

    assert stored is not None
    assert (stored.revision, stored.rules[0].origin.revision) == (2, 2)


def test_a_cookie_is_the_same_after_a_restart_and_for_every_revision():
    origin = Origin("NetworkPolicy", "x", "web", ("a:b",), revision=2)
    cookies, restarted = CookieTable(), CookieTable()

    cookie = cookies.cookie(frozenset((origin,)))

    assert restarted.cookie(frozenset((origin,))) == cookie
    assert 0 < cookie < 2**32
    later = Origin("NetworkPolicy", "x", "web", ("a:b",), revision=3)
    assert cookies.cookie(frozenset((later,))) == cookie
    assert [origin.revision for origin in cookies.origins(cookie)] == [3]


def test_no_origin_is_cookie_0():
    assert CookieTable().cookie(frozenset()) == 0
    assert CookieTable().origins(0) == frozenset()


def test_cookies_that_collide_stay_apart(monkeypatch):
    class Same:
        def __init__(self, *_: object, **__: object) -> None: ...

        def digest(self) -> bytes:
            return b"\xff\xff\xff\xff"

    monkeypatch.setattr("hashlib.blake2b", Same)
    cookies = CookieTable()
    sets = [frozenset((Origin("K", "", name),)) for name in "abc"]

    numbers = [cookies.cookie(one) for one in sets]

    assert numbers == [0xFFFFFFFF, 1, 2]
    assert [cookies.origins(number) for number in numbers] == sets


def test_a_cookie_outlives_its_last_entry_by_one_sweep():
    cookies = CookieTable()
    origins = frozenset((Origin("K", "", "a"),))
    cookie = cookies.cookie(origins)
    cookies.take_changes()

    assert cookies.sweep({cookie}) == 0
    assert cookies.sweep(set()) == 0
    assert cookies.origins(cookie) == origins
    assert cookies.sweep(set()) == 1
    assert cookies.take_changes() == {cookie: frozenset()}


def test_a_cookie_used_again_between_sweeps_stays():
    cookies = CookieTable()
    cookie = cookies.cookie(frozenset((Origin("K", "", "a"),)))
    cookies.sweep(set())

    cookies.sweep({cookie})

    assert cookies.sweep(set()) == 0


def test_changes_of_cookies_are_told_once():
    cookies = CookieTable()
    origins = frozenset((Origin("K", "", "a", revision=1),))
    cookie = cookies.cookie(origins)

    assert cookies.take_changes() == {cookie: origins}
    assert cookies.take_changes() == {}


def test_a_name_means_a_number_while_the_cluster_agrees_on_it():
    ports = NamedPorts()
    assert ports.update("p", 1, [WEB]) == {"web"}
    assert ports.in_cluster("web", 6) == 80
    assert ports.in_cluster("web", 17) is None

    assert ports.update("q", 2, [WEB._replace(port=8080)]) == {"web"}
    assert ports.in_cluster("web", 6) is None
    assert ports.is_ambiguous("web", 6)
    assert (ports.of_peer(1, "web", 6), ports.of_peer(2, "web", 6)) == ({80}, {8080})

    assert ports.remove("q") == {"web"}
    assert ports.in_cluster("web", 6) == 80
    assert ports.peers("web", 6) == {1}


def test_another_pod_of_the_same_identity_changes_no_meaning():
    ports = NamedPorts()
    ports.update("p", 1, [WEB])

    assert ports.update("q", 1, [WEB]) == frozenset()
    assert ports.remove("p") == frozenset()
    assert ports.update("q", 1, [WEB]) == frozenset()
    assert ports.remove("q") == {"web"}
    assert ports.remove("q") == frozenset()


def test_a_pod_that_changes_its_identity_changes_the_meaning_for_both():
    ports = NamedPorts()
    ports.update("p", 1, [WEB])

    assert ports.update("p", 2, [WEB]) == {"web"}
    assert ports.peers("web", 6) == {2}


def test_an_address_has_the_identity_of_its_most_specific_prefix():
    prefixes = PrefixIdentities(Families())
    change = prefixes.reconcile([net("10.0.0.0/8"), net("10.1.0.0/16"), net("0.0.0.0/0")])

    def labels_of(address: str) -> list[str]:
        return prefixes.identity_of(ipaddress.ip_address(address)).labels.texts()

    assert len(change.added) == 3
    assert labels_of("10.1.2.3") == ["cidr:10.1.0.0/16", "reserved:world-ipv4"]
    assert labels_of("10.2.2.3") == ["cidr:10.0.0.0/8", "reserved:world-ipv4"]
    assert labels_of("192.0.2.1") == ["reserved:world-ipv4"]
    assert labels_of("fd00::1") == ["reserved:world-ipv6"]


def test_a_prefix_out_of_use_gives_its_number_back():
    allocator = LocalIdentityAllocator()
    prefixes = PrefixIdentities(Families(), allocator)
    prefixes.reconcile([net("10.0.0.0/8"), net("::/0")])

    change = prefixes.reconcile([])

    assert set(change.removed) == {net("10.0.0.0/8"), net("::/0")}
    assert (len(allocator), prefixes.items()) == (0, {})


def test_the_whole_address_space_takes_no_number():
    allocator = LocalIdentityAllocator()
    added = PrefixIdentities(Families(), allocator).add([net("0.0.0.0/0"), net("::/0")])

    assert [identity.id for identity in added.values()] == [9, 10]
    assert len(allocator) == 0


@pytest.mark.parametrize("families", [Families(), Families(ipv6=False)])
def test_a_prefix_that_is_known_already_is_not_added_again(families):
    prefixes = PrefixIdentities(families)
    prefixes.add([net("10.0.0.0/8")])

    assert prefixes.add([net("10.0.0.0/8")]) == {}
    assert not prefixes.reconcile([net("10.0.0.0/8")])
