"""The tiered policies of Kubernetes: what they mean and what is refused."""

from __future__ import annotations

import ipaddress

import pytest
from cilium_core.labels import LabelSet
from cilium_core.policy import Direction, PolicyError, PolicyOptions, Verdict, parse
from cilium_core.policy.networks import Networks, NetworkSelector, addresses_of
from cilium_core.policy.ports import ANY_PROTOCOLS, NamedPort, PortRange, Protocol
from cilium_core.policy.rules import Tier
from cilium_core.policy.selectors import FqdnSelector

EVERYONE = {"namespaces": {}}


def admin(priority=10, kind="AdminNetworkPolicy", name="guard", subject=None, **rules):
    spec = {"priority": priority} if kind == "AdminNetworkPolicy" else {}
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {**spec, "subject": subject or EVERYONE, **rules},
    }


def baseline(name="default", **rules):
    return admin(kind="BaselineAdminNetworkPolicy", name=name, **rules)


def cluster(tier="Admin", priority=10, subject=None, **rules):
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "guard"},
        "spec": {"tier": tier, "priority": priority, "subject": subject or EVERYONE, **rules},
    }


def deny(*peers, word="from", action="Deny", **fields):
    return {"action": action, word: list(peers) or [EVERYONE], **fields}


def problems(obj, **options):
    with pytest.raises(PolicyError) as caught:
        parse(obj, PolicyOptions(**options))
    return {problem.path: problem.message for problem in caught.value.problems}


def pod(namespace_label, **labels):
    return LabelSet.parse(
        [
            f"k8s:io.cilium.k8s.namespace.labels.house={namespace_label}",
            "k8s:io.kubernetes.pod.namespace=any",
            "k8s:io.cilium.k8s.policy.cluster=default",
            *(f"k8s:{key}={value}" for key, value in labels.items()),
        ]
    )


def test_rules_stand_in_a_tier_in_the_order_of_priority_and_place():
    first, second = parse(
        admin(
            priority=7,
            ingress=[deny(), {"action": "Pass", "from": [EVERYONE]}],
        )
    ).rules

    assert (first.tier, first.priority, first.verdict) == (Tier.ADMIN, (7, 0), Verdict.DENY)
    assert (second.tier, second.priority, second.verdict) == (Tier.ADMIN, (7, 1), Verdict.PASS)
    assert not first.default_deny
    assert first.path == "spec.ingress[0]"
    assert (first.origin.kind, first.origin.namespace, first.origin.name) == (
        "AdminNetworkPolicy",
        "",
        "guard",
    )


@pytest.mark.parametrize(
    ("obj", "tier"),
    [
        (baseline(egress=[deny(word="to")]), Tier.BASELINE),
        (cluster("Baseline", egress=[deny(word="to")]), Tier.BASELINE),
        (cluster("Admin", egress=[deny(word="to")]), Tier.ADMIN),
    ],
)
def test_each_kind_has_its_tier(obj, tier):
    (rule,) = parse(obj).rules

    assert (rule.tier, rule.direction) == (tier, Direction.EGRESS)


def test_subjects_and_peers_are_pods_by_their_own_and_their_namespaces_labels():
    chosen = {
        "pods": {
            "namespaceSelector": {"matchLabels": {"house": "a"}},
            "podSelector": {"matchLabels": {"app": "x"}},
        }
    }
    (rule,) = parse(admin(subject=chosen, ingress=[deny(chosen)])).rules

    for selector in (rule.subject, rule.peers[0]):
        assert selector.matches(pod("a", app="x"))
        assert not selector.matches(pod("a", app="y"))
        assert not selector.matches(pod("b", app="x"))


@pytest.mark.parametrize("labels", ["reserved:host", "reserved:remote-node", "reserved:world-ipv4"])
def test_pods_are_never_nodes_or_the_outside(labels):
    other = {"namespaces": {"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}}
    (rule,) = parse(admin(subject=other, ingress=[deny(other)])).rules

    assert not rule.subject.matches(LabelSet.parse([labels]))
    assert not rule.peers[0].matches(LabelSet.parse([labels]))


PORTS = [
    ({"portNumber": {"port": 80}}, [PortRange(Protocol.TCP, 80, 80)]),
    ({"portNumber": {"protocol": "UDP", "port": 53}}, [PortRange(Protocol.UDP, 53, 53)]),
    (
        {"portRange": {"protocol": "SCTP", "start": 1, "end": 9}},
        [PortRange(Protocol.SCTP, 1, 9)],
    ),
    ({"namedPort": "Web"}, [NamedPort(protocol, "web") for protocol in ANY_PROTOCOLS]),
]


@pytest.mark.parametrize(("written", "meant"), PORTS)
def test_ports_of_the_older_kinds(written, meant):
    (rule,) = parse(admin(ingress=[deny(ports=[written])])).rules

    assert rule.ports == tuple(meant)
    assert rule.named_ports_of_peer


PROTOCOLS = [
    ({"tcp": {}}, [PortRange(Protocol.TCP)]),
    ({"udp": {"destinationPort": {"number": 53}}}, [PortRange(Protocol.UDP, 53, 53)]),
    (
        {"sctp": {"destinationPort": {"range": {"start": 1, "end": 9}}}},
        [PortRange(Protocol.SCTP, 1, 9)],
    ),
    (
        {"destinationNamedPort": "web"},
        [NamedPort(protocol, "web") for protocol in ANY_PROTOCOLS],
    ),
]


@pytest.mark.parametrize(("written", "meant"), PROTOCOLS)
def test_protocols_of_the_newer_kind(written, meant):
    (rule,) = parse(cluster(ingress=[deny(protocols=[written])])).rules

    assert rule.ports == tuple(meant)


def test_a_domain_may_have_any_number_of_labels_in_front():
    to = {"domainNames": ["a.io", "*.b.io"]}
    (rule,) = parse(cluster(egress=[deny(to, word="to", action="Accept")])).rules

    assert rule.peers == (FqdnSelector(name="a.io"), FqdnSelector(pattern="**.b.io"))
    assert rule.peers[1].matches_name("x.y.b.io")


def test_nodes_are_this_one_and_the_others():
    (rule,) = parse(admin(egress=[deny({"nodes": {}}, word="to")])).rules

    for name in ("host", "remote-node"):
        labels = LabelSet.parse([f"reserved:{name}"])
        assert any(peer.matches(labels) for peer in rule.peers)


def test_nodes_by_label_need_the_option_for_their_labels():
    obj = admin(egress=[deny({"nodes": {"matchLabels": {"a": "b"}}}, word="to")])

    assert problems(obj) == {
        "spec.egress[0].to[0].nodes": "needs the option enable-node-selector-labels"
    }
    assert parse(obj, PolicyOptions(node_selector_labels=True)).rules


# ---- networks ----

WORLD = LabelSet.parse(["cidr:10.1.0.0/16", "reserved:world-ipv4"])


def network_rule(action, *networks):
    to = [{"networks": list(networks)}]
    return parse(admin(egress=[{"action": action, "to": to}]))


def network_peer(policy) -> NetworkSelector:
    ((peer,),) = [rule.peers for rule in policy.rules]
    return peer


def known(**addresses):
    return Networks(
        addresses_of(
            (ipaddress.ip_network(address), pod("a", app=app))
            for app, list_ in addresses.items()
            for address in list_
        )
    )


def test_a_network_is_what_is_inside_it_in_and_outside_the_cluster():
    here = known(inside=["10.0.0.1", "10.0.0.2"], outside=["10.9.0.1"])
    peer = network_peer(here.bind(network_rule("Deny", "10.0.0.0/15")))

    assert peer.matches(WORLD)
    assert peer.matches(pod("a", app="inside"))
    assert not peer.matches(pod("a", app="outside"))


@pytest.mark.parametrize(
    ("action", "selected"), [("Deny", True), ("Allow", False), ("Pass", False)]
)
def test_what_is_partly_inside_is_told_and_leans_to_the_closed_side(action, selected):
    here = known(split=["10.0.0.1", "fd00::1"])
    policy = here.bind(network_rule(action, "10.0.0.0/15"))

    assert network_peer(policy).matches(pod("a", app="split")) is selected
    assert here.split(policy) == {pod("a", app="split")}


def test_the_networks_of_a_rule_are_taken_together():
    here = known(both=["10.0.0.1", "fd00::1"])
    policy = here.bind(network_rule("Allow", "0.0.0.0/0", "::/0"))

    assert network_peer(policy).matches(pod("a", app="both"))
    assert not here.split(policy)


def test_binding_again_to_the_same_addresses_changes_nothing():
    here = known(inside=["10.0.0.1"])
    bound = here.bind(network_rule("Deny", "10.0.0.0/15"))

    assert here.bind(bound) is bound
    assert known().bind(bound) is not bound


# ---- what is not known ----

UNKNOWN = {"serviceAccounts": {"matchLabels": {}}}


@pytest.mark.parametrize("peer", [UNKNOWN, {}, {**EVERYONE, "except": {}}])
def test_an_unknown_peer_allows_nobody(peer):
    policy = parse(admin(ingress=[deny(peer, action="Allow")]))

    assert [rule.peers for rule in policy.rules] == [()]
    assert "unknown kind" in policy.warnings[0]


@pytest.mark.parametrize("action", ["Deny", "Pass"])
def test_an_unknown_peer_of_another_rule_denies_everyone(action):
    policy = parse(admin(ingress=[deny(EVERYONE, UNKNOWN, action=action)]))

    (rule,) = policy.rules
    assert (rule.verdict, rule.peers) == (Verdict.DENY, None)


def test_an_unknown_port_allows_nothing_and_denies_everything():
    strange = [{"icmp": {}}]
    (allowed,) = parse(cluster(ingress=[deny(action="Accept", protocols=strange)])).rules
    (denied,) = parse(cluster(ingress=[deny(protocols=strange)])).rules

    assert allowed.ports == ()
    assert (denied.verdict, denied.ports) == (Verdict.DENY, None)


REFUSED = {
    "two kinds of peers": (
        admin(
            ingress=[deny({"namespaces": {}, "pods": {"namespaceSelector": {}, "podSelector": {}}})]
        ),
        "spec.ingress[0].from[0]",
    ),
    "no peer": (
        admin(ingress=[{"action": "Deny", "from": []}]),
        "spec.ingress[0].from",
    ),
    "peers left out": (admin(ingress=[{"action": "Deny"}]), "spec.ingress[0].from"),
    "unknown action": (admin(ingress=[deny(action="Accept")]), "spec.ingress[0].action"),
    "passing below the baseline": (
        baseline(ingress=[deny(action="Pass")]),
        "spec.ingress[0].action",
    ),
    "another baseline": (baseline(name="mine", ingress=[deny()]), ""),
    "priority out of range": (admin(priority=1001, ingress=[deny()]), "spec.priority"),
    "two kinds of subjects": (
        admin(subject={"namespaces": {}, "pods": {"namespaceSelector": {}, "podSelector": {}}}),
        "spec.subject",
    ),
    "unknown subject": (admin(subject={"nodes": {}}), "spec.subject.nodes"),
    "unknown field": (admin(ingres=[deny()]), "spec.ingres"),
    "unknown field of a rule": (
        admin(ingress=[deny(port=[])]),
        "spec.ingress[0].port",
    ),
    "domains denied": (
        cluster(egress=[deny({"domainNames": ["a.io"]}, word="to")]),
        "spec.egress[0]",
    ),
    "star inside a domain": (
        cluster(egress=[deny({"domainNames": ["a*.io"]}, word="to", action="Accept")]),
        "spec.egress[0].to[0].domainNames[0]",
    ),
    "named port of a network": (
        cluster(
            egress=[
                deny(
                    {"networks": ["10.0.0.0/8"]},
                    word="to",
                    protocols=[{"destinationNamedPort": "a"}],
                )
            ]
        ),
        "spec.egress[0]",
    ),
    "empty range": (
        cluster(
            ingress=[
                deny(protocols=[{"tcp": {"destinationPort": {"range": {"start": 5, "end": 5}}}}])
            ]
        ),
        "spec.ingress[0].protocols[0].tcp.destinationPort.range",
    ),
    "too many rules": (cluster(ingress=[deny()] * 26), "spec.ingress"),
    "a source before a key": (
        admin(subject={"namespaces": {"matchLabels": {"k8s:a": "b"}}}),
        "spec.subject.namespaces.matchLabels.k8s:a",
    ),
    "version of the other kinds": (
        {**admin(ingress=[deny()]), "apiVersion": "policy.networking.k8s.io/v1alpha2"},
        "apiVersion",
    ),
}


@pytest.mark.parametrize(("obj", "path"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_refused_with_the_path_of_the_field(obj, path):
    assert path in problems(obj)
