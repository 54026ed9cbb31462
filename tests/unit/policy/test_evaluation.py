"""Tiers, passes and audited rules: who has the last word, and what is only told."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_core.policy import EnforcementMode, PolicyEntry, PolicyOptions, look_up
from cilium_core.policy.l7 import HttpRule
from cilium_core.policy.rules import Direction

from tests.unit.policy.worlds import TCP, UDP, World, cnp, knp, node, outside, pod

AUDITED = {"policy.cilium.io/audit-mode": "true"}


def world(*objects: dict[str, Any], **options: Any) -> World:
    houses = {"g": "gryffindor", "s": "slytherin", "h": "hufflepuff"}
    pods = {
        f"{space}/{name}": pod(
            space,
            {"app": name},
            namespace_labels={"house": houses[space]},
            ports=[("web", TCP, 80)],
        )
        for space in houses
        for name in "ab"
    }
    nodes = {"host": node("host", {"zone": "a"}), "node": node("remote-node", {"zone": "b"})}
    made = World({**pods, **nodes, "192.0.2.1": outside("192.0.2.1")}, PolicyOptions(**options))
    made.apply(*objects)
    return made


def house(name: str) -> dict[str, Any]:
    return {"namespaces": {"matchLabels": {"house": name}}}


GRYFFINDOR, SLYTHERIN, HUFFLEPUFF = house("gryffindor"), house("slytherin"), house("hufflepuff")
EVERYONE = {"namespaces": {}}


def rule(action: str, *peers: dict[str, Any], word: str = "from", ports: Any = None) -> Any:
    return {"action": action, word: list(peers), **({"ports": ports} if ports else {})}


def admin(
    *ingress: dict[str, Any],
    name: str = "admin",
    priority: int = 50,
    subject: dict[str, Any] = GRYFFINDOR,
    **spec: Any,
) -> dict[str, Any]:
    rules = {"ingress": list(ingress)} if ingress else {}
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha1",
        "kind": "AdminNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"priority": priority, "subject": subject, **rules, **spec},
    }


def baseline(*ingress: dict[str, Any], subject: dict[str, Any] = GRYFFINDOR, **spec: Any) -> Any:
    made = admin(*ingress, name="default", subject=subject, **spec)
    del made["spec"]["priority"]
    return {**made, "kind": "BaselineAdminNetworkPolicy"}


def admits(made: World, *peers: str, port: int = 80, protocol: int = TCP) -> list[bool]:
    return [made.passes_at("g/a", "ingress", peer, protocol, port) for peer in peers]


def held(made: World, peer: str, port: int = 80) -> PolicyEntry | None:
    identity = made.identity(made.parties[peer])
    found = look_up(made.maps["g/a"], Direction.INGRESS, identity, TCP, port)
    return None if found is None else found[1]


def open_to(*spaces: str) -> dict[str, Any]:
    """A NetworkPolicy that isolates gryffindor's pods and admits those of some namespaces."""
    peers = [{"namespaceSelector": {"matchLabels": {"house": name}}} for name in spaces]
    return knp("np", "g", podSelector={}, ingress=[{"from": peers}] if peers else [])


# ---- tiers ----


def test_an_admins_denial_beats_every_allow():
    made = world(
        admin(rule("Deny", SLYTHERIN)),
        open_to("slytherin", "hufflepuff"),
        baseline(rule("Allow", EVERYONE)),
    )

    assert admits(made, "s/a", "h/a") == [False, True]


def test_an_admins_allow_beats_every_denial():
    deny = {"endpointSelector": {}, "ingressDeny": [{"fromEntities": ["all"]}]}
    made = world(admin(rule("Allow", SLYTHERIN)), cnp(deny, namespace="g"), open_to())

    assert admits(made, "s/a", "h/a") == [True, False]


def test_an_admins_allow_passes_by_the_proxy_of_a_weaker_rule():
    http = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}
    made = world(
        admin(rule("Allow", SLYTHERIN)),
        cnp({"endpointSelector": {}, "ingress": [{"toPorts": [http]}]}, namespace="g"),
    )

    assert held(made, "s/a").redirect == 0
    assert made.engine.redirects.get(held(made, "h/a").redirect).http == (HttpRule(method="GET"),)


def test_a_pass_leaves_the_traffic_to_the_network_policies():
    rules = (rule("Pass", SLYTHERIN), rule("Deny", SLYTHERIN))

    assert admits(world(admin(*rules), open_to("slytherin")), "s/a", "h/a") == [True, False]


def test_a_pass_without_network_policy_leaves_the_traffic_to_the_baseline():
    made = world(admin(rule("Pass", SLYTHERIN)), baseline(rule("Deny", SLYTHERIN, HUFFLEPUFF)))

    assert admits(made, "s/a", "h/a", "192.0.2.1") == [False, False, True]


def test_a_pod_that_some_network_policy_selects_never_meets_the_baseline():
    made = world(open_to("slytherin"), baseline(rule("Deny", SLYTHERIN), rule("Allow", HUFFLEPUFF)))

    assert admits(made, "s/a", "h/a") == [True, False]


def test_a_policy_without_default_deny_leaves_the_rest_to_the_baseline():
    spec = {
        "endpointSelector": {},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "b"}}]}],
        "enableDefaultDeny": {"ingress": False},
    }
    made = world(cnp(spec, namespace="g"), baseline(rule("Deny", EVERYONE)))

    assert admits(made, "g/b", "s/a", "192.0.2.1") == [True, False, True]


def test_the_lower_number_goes_first():
    deny = admin(rule("Deny", SLYTHERIN), name="deny", priority=50)

    for priority, passes in ((60, False), (40, True)):
        made = world(deny, admin(rule("Pass", SLYTHERIN), name="pass", priority=priority))
        assert admits(made, "s/a") == [passes]


def test_the_order_within_a_policy_decides():
    allow, deny = rule("Allow", SLYTHERIN), rule("Deny", SLYTHERIN)

    assert admits(world(admin(allow, deny)), "s/a") == [True]
    assert admits(world(admin(deny, allow)), "s/a") == [False]


def test_what_no_rule_decides_passes():
    made = world(admin(rule("Deny", SLYTHERIN, ports=[{"portNumber": {"port": 80}}])))

    assert admits(made, "s/a", "h/a") == [False, True]
    assert admits(made, "s/a", port=81) == [True]
    assert admits(made, "s/a", protocol=UDP) == [True]


def test_with_enforcement_always_what_no_rule_decides_is_dropped():
    always = EnforcementMode.ALWAYS
    made = world(
        admin(rule("Allow", SLYTHERIN)), baseline(rule("Allow", HUFFLEPUFF)), enforcement=always
    )

    assert admits(made, "s/a", "h/a", "192.0.2.1") == [True, True, False]


def test_a_named_port_is_each_subjects_own():
    made = world(admin(rule("Deny", SLYTHERIN, ports=[{"namedPort": "web"}])))

    assert admits(made, "s/a") == [False]
    assert admits(made, "s/a", port=81) == [True]


def test_networks_and_nodes_are_peers_of_egress():
    deny_networks = rule("Deny", {"networks": ["192.0.2.0/24"]}, word="to")
    deny_nodes = rule("Deny", {"nodes": {"matchLabels": {"zone": "b"}}}, word="to")
    made = world(admin(egress=[deny_networks, deny_nodes]), node_selector_labels=True)

    assert [
        made.passes_at("g/a", "egress", peer, TCP, 80) for peer in ("192.0.2.1", "node", "host")
    ] == [False, False, True]


def test_an_endpoint_without_tiered_rules_keeps_its_merged_map():
    http = cnp({"endpointSelector": {}, "ingress": [{"fromEntities": ["all"]}]}, namespace="h")
    made = world(http)
    before = made.maps["h/a"].copy()

    made.apply(admin(rule("Deny", SLYTHERIN)))

    assert made.maps["h/a"] == before


def test_a_denial_names_its_policy_and_a_default_deny_those_behind_it():
    made = world(admin(rule("Pass", SLYTHERIN), rule("Deny", HUFFLEPUFF)), open_to("hufflepuff"))

    names = {
        peer: ({o.name for o in made.engine.cookies.origins(held(made, peer).cookie)},
               held(made, peer).precedence & 0xFF)
        for peer in ("s/a", "h/a")
    }  # fmt: skip

    assert names == {"s/a": ({"np"}, 0), "h/a": ({"admin"}, 255)}


# ---- audit ----


def audited(obj: dict[str, Any]) -> dict[str, Any]:
    return {**obj, "metadata": {**obj["metadata"], "annotations": AUDITED}}


def verdict(entry: PolicyEntry | None) -> str:
    if entry is None or (entry.deny and not entry.audit):
        return "deny"
    return "audit" if entry.deny else "allow"


DENY_SLYTHERIN = cnp(
    {
        "endpointSelector": {},
        "ingressDeny": [{"fromEndpoints": [{"matchLabels": {"io.kubernetes.pod.namespace": "s"}}]}],
        "enableDefaultDeny": {"ingress": False},
    },
    name="no-slytherin",
    namespace="g",
)


def test_what_an_audited_policy_alone_would_refuse_passes_and_is_reported():
    made = world(audited(open_to("slytherin")))

    assert [verdict(held(made, peer)) for peer in ("s/a", "h/a", "192.0.2.1")] == [
        "allow",
        "audit",
        "audit",
    ]
    assert {o.name for o in made.engine.cookies.origins(held(made, "h/a").cookie)} == {"np"}


def test_an_audited_denial_is_reported_under_its_name():
    made = world(audited(DENY_SLYTHERIN), open_to("slytherin", "hufflepuff"))

    assert [verdict(held(made, peer)) for peer in ("s/a", "h/a", "192.0.2.1")] == [
        "audit",
        "allow",
        "deny",
    ]
    origins = made.engine.cookies.origins(held(made, "s/a").cookie)
    assert {origin.name for origin in origins} == {"no-slytherin"}


def test_an_audited_allow_opens_nothing():
    made = world(audited(open_to("slytherin", "hufflepuff")), DENY_SLYTHERIN)

    assert [verdict(held(made, peer)) for peer in ("s/a", "h/a")] == ["deny", "allow"]
    closed = world(
        audited(open_to("slytherin")),
        cnp({"endpointSelector": {}, "ingress": [{"fromEntities": ["health"]}]}, namespace="g"),
    )
    assert verdict(held(closed, "s/a")) == "deny"


def test_an_audited_admin_policy_is_only_told():
    made = world(audited(admin(rule("Deny", SLYTHERIN), rule("Allow", HUFFLEPUFF))), open_to())

    assert [verdict(held(made, peer)) for peer in ("s/a", "h/a")] == ["deny", "deny"]
    assert verdict(held(world(audited(admin(rule("Deny", SLYTHERIN)))), "s/a")) == "audit"


def test_all_policies_of_an_audited_namespace_are_only_told():
    made = world(open_to("slytherin"))

    made.audit_namespaces("g")
    audit = verdict(held(made, "h/a"))
    made.audit_namespaces("h")

    assert (audit, verdict(held(made, "h/a"))) == ("audit", "deny")


def test_a_policy_that_becomes_audited_takes_effect_though_it_says_the_same():
    made = world(open_to("slytherin"))

    made.apply(audited(open_to("slytherin")))

    assert verdict(held(made, "h/a")) == "audit"


HTTP = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}


def requests(name: str, item: dict[str, Any]) -> dict[str, Any]:
    spec = {"endpointSelector": {}, "ingress": [{"toPorts": [item]}]}
    return cnp(spec, name=name, namespace="g")


GET_ONLY = requests("get", HTTP)


def test_audited_rules_about_requests_let_every_request_pass_and_tell():
    made = world(audited(GET_ONLY))

    found = made.engine.redirects.get(held(made, "s/a").redirect)

    assert (found.http, found.audit, found.allow_all) == ((HttpRule(method="GET"),), True, False)
    assert verdict(held(made, "s/a", 81)) == "audit"


def test_audited_rules_about_requests_add_nothing_to_those_that_bind():
    post = {**HTTP, "rules": {"http": [{"method": "POST"}]}}
    made = world(audited(GET_ONLY), requests("post", post))

    found = made.engine.redirects.get(held(made, "s/a").redirect)

    assert (found.http, found.audit) == ((HttpRule(method="POST"),), False)


def test_an_audited_allow_frees_of_no_server_names():
    opened = {**HTTP, "terminatingTLS": {"secret": {"name": "cert"}}, "serverNames": ["a.io"]}
    opened["rules"] = {"http": [{}]}
    free = cnp({"endpointSelector": {}, "ingress": [{"fromEntities": ["all"]}]}, namespace="g")
    made = world(audited(free), requests("names", opened))

    found = made.engine.redirects.get(held(made, "s/a").redirect)

    assert (found.server_names, found.allow_all, found.audit) == ({"a.io"}, True, False)


def test_a_connection_that_is_only_told_to_be_refused_still_meets_the_proxy_that_binds():
    made = world(audited(DENY_SLYTHERIN), GET_ONLY)

    entry = held(made, "s/a")

    assert (entry.deny, entry.audit) == (True, True)
    assert made.engine.redirects.get(entry.redirect).http == (HttpRule(method="GET"),)


# ---- the host ----


NODES_ONLY = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumClusterwideNetworkPolicy",
    "metadata": {"name": "nodes"},
    "spec": {
        "nodeSelector": {"matchLabels": {"zone": "a"}},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "a"}}]}],
    },
}


def host_admits(made: World, *peers: str) -> list[bool]:
    return [made.passes_at("host", "ingress", peer, TCP, 22) for peer in peers]


def test_rules_about_nodes_bind_the_host_with_its_firewall_on():
    assert host_admits(world(NODES_ONLY, host_firewall=True), "g/a", "g/b", "192.0.2.1") == [
        True,
        False,
        False,
    ]


def test_rules_about_nodes_are_for_the_nodes_that_they_select():
    other = {
        **NODES_ONLY,
        "spec": {**NODES_ONLY["spec"], "nodeSelector": {"matchLabels": {"zone": "b"}}},
    }

    assert host_admits(world(other, host_firewall=True), "g/b", "192.0.2.1") == [True, True]


@pytest.mark.parametrize("mode", list(EnforcementMode))
def test_without_its_firewall_the_host_is_open(mode):
    made = world(NODES_ONLY, enforcement=mode)

    assert host_admits(made, "g/b", "192.0.2.1") == [True, True]
    assert made.enforced["host"] == (False, False)


def test_rules_about_nodes_never_bind_pods_nor_those_about_pods_the_host():
    everywhere = {**NODES_ONLY, "spec": {**NODES_ONLY["spec"], "nodeSelector": {}}}
    pods = {**NODES_ONLY, "metadata": {"name": "pods"}}
    pods["spec"] = {"endpointSelector": {}, "ingress": [{}]}

    nodes, closed = world(everywhere, host_firewall=True), world(pods, host_firewall=True)

    assert (admits(nodes, "g/b"), host_admits(nodes, "g/b")) == ([True], [False])
    assert (admits(closed, "g/b"), host_admits(closed, "g/b")) == ([False], [True])


def test_a_node_is_a_peer_by_its_labels():
    item = {"fromNodes": [{"matchLabels": {"zone": "b"}}]}
    made = world(
        cnp({"endpointSelector": {}, "ingress": [item]}, namespace="g"),
        node_selector_labels=True,
        allow_localhost=False,
    )

    assert admits(made, "node", "host", "g/b") == [True, False, False]
