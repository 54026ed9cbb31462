"""What is absent, empty or wild, when endpoints are enforced, and who wins."""

from __future__ import annotations

import pytest
from cilium_core.policy import EnforcementMode, PolicyOptions

from tests.unit.policy.worlds import (
    ICMP,
    ICMP6,
    SCTP,
    TCP,
    UDP,
    World,
    ccnp,
    cnp,
    conformance_parties,
    pod,
    reserved,
    surroundings,
)

SUBJECT = {"matchLabels": {"pod": "a"}}
WEB = {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}
FROM_B = {"fromEndpoints": [{"matchLabels": {"pod": "b"}}]}


def world(**options) -> World:
    return World({**conformance_parties(), **surroundings()}, PolicyOptions(**options))


def into(here: World, *sources: str, port: int = 80, protocol: int = TCP) -> set[str]:
    """Which of the sources may send to x/a."""
    return {
        source for source in sources if here.passes_at("x/a", "ingress", source, protocol, port)
    }


ALL = ("x/b", "y/b", "host", "node", "198.51.100.7", "fd00::1")

EMPTY = {
    "an absent list leaves the direction alone": ({"egress": [{}]}, {80: set(ALL), 81: set(ALL)}),
    "an empty list is an absent one": (
        {"ingress": [], "egress": [{}]},
        {80: set(ALL), 81: set(ALL)},
    ),
    "an empty item closes and admits nobody": ({"ingress": [{}]}, {80: {"host"}, 81: {"host"}}),
    "an empty deny item closes and denies nobody": (
        {"ingressDeny": [{}]},
        {80: {"host"}, 81: {"host"}},
    ),
    "ports without peers are for everyone": ({"ingress": [WEB]}, {80: set(ALL), 81: {"host"}}),
    "peers without ports are for every port": (
        {"ingress": [FROM_B]},
        {80: {"x/b", "host"}, 81: {"x/b", "host"}},
    ),
    "no endpoints is nobody": ({"ingress": [{"fromEndpoints": []}]}, {80: {"host"}}),
    "no endpoints with ports is nobody": (
        {"ingress": [{"fromEndpoints": [], **WEB}]},
        {80: {"host"}},
    ),
    "no entities is nobody": ({"ingress": [{"fromEntities": [], **WEB}]}, {80: {"host"}}),
    "no prefixes is nobody": ({"ingress": [{"fromCIDR": [], **WEB}]}, {80: {"host"}}),
    "no prefix sets is nobody": ({"ingress": [{"fromCIDRSet": [], **WEB}]}, {80: {"host"}}),
    "no nodes is nobody": ({"ingress": [{"fromNodes": [], **WEB}]}, {80: {"host"}}),
    "null endpoints are absent": ({"ingress": [{"fromEndpoints": None, **WEB}]}, {80: set(ALL)}),
    "an empty selector is the own namespace": (
        {"ingress": [{"fromEndpoints": [{}]}]},
        {80: {"x/b", "host"}},
    ),
    "an empty port list is every port": (
        {"ingress": [{**FROM_B, "toPorts": []}]},
        {80: {"x/b", "host"}, 81: {"x/b", "host"}},
    ),
    "an empty port item is no port": ({"ingress": [{**FROM_B, "toPorts": [{}]}]}, {80: {"host"}}),
    "a port item without ports is no port": (
        {"ingress": [{**FROM_B, "toPorts": [{"ports": []}]}]},
        {80: {"host"}},
    ),
    "an empty ICMP item is no type": ({"ingress": [{**FROM_B, "icmps": [{}]}]}, {80: {"host"}}),
    "empty L7 rules restrict nothing": (
        {"ingress": [{**FROM_B, "toPorts": [{**WEB["toPorts"][0], "rules": {"http": []}}]}]},
        {80: {"x/b", "host"}, 81: {"host"}},
    ),
    "empty DNS rules restrict nothing": (
        {"ingress": [{"toPorts": [{**WEB["toPorts"][0], "rules": {"dns": []}}]}]},
        {80: set(ALL), 81: {"host"}},
    ),
}


@pytest.mark.parametrize(("rule", "admitted"), EMPTY.values(), ids=EMPTY.keys())
def test_absent_and_empty(rule, admitted):
    here = world()

    here.apply(cnp({"endpointSelector": SUBJECT, **rule}))

    assert {port: into(here, *ALL, port=port) for port in admitted} == admitted


@pytest.mark.parametrize("field", ["toFQDNs", "toServices", "toNodes", "toGroups", "toCIDRSet"])
def test_an_empty_egress_peer_list_with_ports_is_nobody(field):
    here = world()

    here.apply(cnp({"endpointSelector": SUBJECT, "egress": [{field: [], **WEB}]}))

    assert not here.reaches("x/a", "198.51.100.7", 80)
    assert not here.reaches("x/a", "y/b", 80)


def test_an_empty_selector_of_a_cluster_wide_policy_is_every_pod_of_the_own_cluster():
    here = world()
    here.put("far", pod("x", {"pod": "b"}, cluster="other"))

    here.apply(ccnp({"endpointSelector": SUBJECT, "ingress": [{"fromEndpoints": [{}]}]}))

    assert into(here, *ALL, "far") == {"x/b", "y/b", "host"}


def test_peers_of_every_cluster_are_admitted_with_the_option_off():
    here = world(default_local_cluster=False)
    here.put("far", pod("x", {"pod": "b"}, cluster="other"))
    here.flush()

    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [{"fromEndpoints": [{}]}]}))

    assert into(here, *ALL, "far") == {"x/b", "far", "host"}


def test_entity_all_admits_everyone_for_every_protocol():
    here = world()

    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [{"fromEntities": ["all"]}]}))

    assert into(here, *ALL) == set(ALL)
    assert into(here, *ALL, port=8, protocol=ICMP) == set(ALL)


ENTITIES = {
    "world": {"198.51.100.7", "fd00::1"},
    "world-ipv4": {"198.51.100.7"},
    "world-ipv6": {"fd00::1"},
    "host": {"host"},
    "remote-node": {"node"},
    "cluster": {"x/b", "y/b", "host", "node"},
    "none": set(),
    "init": {"starting"},
    "health": {"health"},
}


@pytest.mark.parametrize(("entity", "covered"), ENTITIES.items())
def test_an_entity_covers(entity, covered):
    here = world(allow_localhost=False)
    here.put("starting", reserved("init"))
    here.put("health", reserved("health"))
    here.put("far", pod("x", {"pod": "b"}, cluster="other"))
    here.flush()

    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [{"fromEntities": [entity]}]}))

    members = {"starting", "health"} if entity == "cluster" else set()
    assert into(here, *ALL, "starting", "health", "far") == covered | members


def test_a_hand_written_world_label_selects_nothing_with_both_families():
    here = world(allow_localhost=False)

    here.apply(
        cnp(
            {
                "endpointSelector": SUBJECT,
                "ingress": [{"fromEndpoints": [{"matchLabels": {"reserved:world": ""}}]}],
            }
        )
    )

    assert into(here, *ALL) == set()


@pytest.mark.parametrize("key", ["reserved:host", "reserved.host"])
def test_a_reserved_label_is_selected_without_a_namespace(key):
    here = world(allow_localhost=False)

    here.apply(
        cnp(
            {
                "endpointSelector": SUBJECT,
                "ingress": [{"fromEndpoints": [{"matchLabels": {key: ""}}]}],
            }
        )
    )

    assert into(here, *ALL) == {"host"}


def test_a_dot_is_not_a_source_separator():
    here = world(allow_localhost=False)

    here.apply(
        cnp(
            {
                "endpointSelector": SUBJECT,
                "ingress": [{"fromEndpoints": [{"matchLabels": {"k8s.pod": "b"}}]}],
            }
        )
    )

    assert into(here, *ALL) == set()


@pytest.mark.parametrize(
    "spelling", ["k8s:io.kubernetes.pod.namespace", "io.kubernetes.pod.namespace"]
)
def test_a_peer_may_name_another_namespace(spelling):
    here = world(allow_localhost=False)
    peer = {"matchLabels": {spelling: "y", "pod": "b"}}

    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [{"fromEndpoints": [peer]}]}))

    assert into(here, *ALL, "y/a") == {"y/b"}


def test_a_peer_that_names_namespace_labels_is_not_held_to_the_own_namespace():
    here = world(allow_localhost=False)
    peer = {"matchLabels": {"k8s:io.cilium.k8s.namespace.labels.ns": "y"}}

    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [{"fromEndpoints": [peer]}]}))

    assert into(here, *ALL) == {"y/b"}


def test_a_subject_cannot_be_in_another_namespace():
    here = world()
    selector = {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "y", "pod": "a"}}

    here.apply(cnp({"endpointSelector": selector, "ingress": [{}]}))

    assert not here.reaches("x/b", "x/a", 80)
    assert here.reaches("x/b", "y/a", 80)


def test_a_subject_in_another_namespace_by_any_source_selects_nothing():
    here = world()
    selector = {"matchLabels": {"io.kubernetes.pod.namespace": "y"}}

    here.apply(cnp({"endpointSelector": selector, "ingress": [{}]}))

    assert here.enforced["x/a"] == here.enforced["y/a"] == (False, False)


def test_a_cluster_wide_policy_covers_health_but_never_the_host():
    here = World({"health": reserved("health"), "host": reserved("host"), "x/a": pod("x", {})})

    here.apply(ccnp({"endpointSelector": {}, "ingress": [{}], "egress": [{}]}))

    assert here.enforced == {"health": (True, True), "x/a": (True, True), "host": (False, False)}


def test_an_init_endpoint_is_enforced_without_any_rule():
    here = World({"starting": reserved("init"), **conformance_parties()})

    assert here.enforced["starting"] == (True, True)
    assert not here.reaches("x/a", "starting", 80)


def test_a_cluster_wide_policy_for_init_endpoints_does_not_ask_peers_for_a_namespace():
    here = World({"starting": reserved("init"), "bare": reserved("health", "init")})
    selector = {"matchLabels": {"reserved:init": ""}}

    here.apply(ccnp({"endpointSelector": selector, "ingress": [{"fromEndpoints": [{}]}]}, name="p"))

    # The cluster is still asked for.
    assert not here.reaches("bare", "starting", 80)


@pytest.mark.parametrize(
    ("mode", "enforced"),
    [
        (EnforcementMode.NEVER, (False, False)),
        (EnforcementMode.ALWAYS, (True, True)),
        (EnforcementMode.DEFAULT, (True, False)),
    ],
)
def test_the_mode_decides_who_is_enforced(mode, enforced):
    here = world(enforcement=mode)

    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [FROM_B]}))

    assert here.enforced["x/a"] == enforced
    assert here.reaches("y/b", "x/a", 80) == (mode is EnforcementMode.NEVER)


def test_a_deny_alone_closes_the_direction():
    here = world()

    here.apply(cnp({"endpointSelector": SUBJECT, "ingressDeny": [FROM_B]}))

    assert into(here, *ALL) == {"host"}


def test_without_default_deny_only_what_is_denied_is_dropped():
    here = world()

    here.apply(
        cnp(
            {
                "endpointSelector": SUBJECT,
                "ingressDeny": [FROM_B],
                "enableDefaultDeny": {"ingress": False},
            }
        )
    )

    assert into(here, *ALL) == set(ALL) - {"x/b"}
    assert here.enforced["x/a"] == (True, False)


def test_one_rule_with_default_deny_beats_any_number_without():
    here = world()
    open_rule = {
        "endpointSelector": SUBJECT,
        "ingress": [{}],
        "enableDefaultDeny": {"ingress": False},
    }

    here.apply(*(cnp(open_rule, name=f"open-{number}") for number in range(3)))
    assert into(here, *ALL) == set(ALL)
    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [FROM_B]}))

    assert into(here, *ALL) == {"x/b", "host"}


def test_default_deny_without_a_rule_of_the_direction_does_nothing():
    here = world()

    here.apply(
        cnp({"endpointSelector": SUBJECT, "egress": [{}], "enableDefaultDeny": {"ingress": True}})
    )

    assert here.enforced["x/a"] == (False, True)


DENIES = {
    "wider than the allow": (FROM_B, {"fromEntities": ["all"]}),
    "narrower than the allow": ({"fromEntities": ["all"]}, FROM_B),
    "on a range around the allow": (
        {**FROM_B, **WEB},
        {"toPorts": [{"ports": [{"port": "79", "endPort": 90, "protocol": "TCP"}]}]},
    ),
    "on one port of the allow": (FROM_B, {**FROM_B, **WEB}),
    "of a protocol": (FROM_B, {"toPorts": [{"ports": [{"port": "0", "protocol": "TCP"}]}]}),
}


@pytest.mark.parametrize(("allow", "deny"), DENIES.values(), ids=DENIES.keys())
@pytest.mark.parametrize("kind", [cnp, ccnp])
def test_a_deny_beats_every_allow(allow, deny, kind):
    here = world()
    allowing = cnp({"endpointSelector": SUBJECT, "ingress": [allow]}, name="allow")
    peer = deny if kind is cnp or "fromEndpoints" not in deny else {**deny, "fromEndpoints": [{}]}

    here.apply(allowing)
    assert into(here, "x/b") == {"x/b"}
    here.apply(kind({"endpointSelector": SUBJECT, "ingressDeny": [peer]}, name="deny"))

    assert into(here, "x/b") == set()


def test_the_own_host_is_admitted_unless_denied():
    here = world()
    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [{}]}))
    assert into(here, "host", "node") == {"host"}

    here.apply(
        cnp({"endpointSelector": SUBJECT, "ingressDeny": [{"fromEntities": ["all"]}]}, name="cut")
    )

    assert into(here, "host", "node") == set()


def test_the_own_host_is_not_admitted_with_the_option_off():
    here = world(allow_localhost=False)

    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [{}]}))

    assert into(here, "host") == set()


def test_an_icmp_type_admits_just_that_type_of_its_family():
    here = world()
    rule = {"icmps": [{"fields": [{"type": "EchoRequest"}, {"family": "IPv6", "type": 128}]}]}

    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [rule]}))

    def admits(protocol: int, port: int) -> bool:
        return here.passes_at("x/a", "ingress", "y/b", protocol, port)

    assert admits(ICMP, 8)
    assert admits(ICMP6, 128)
    assert not admits(ICMP, 0)
    assert not admits(ICMP6, 8)
    assert not admits(TCP, 8)


def test_echo_replies_alone_are_not_every_icmp_type():
    here = world()

    here.apply(
        cnp({"endpointSelector": SUBJECT, "ingress": [{"icmps": [{"fields": [{"type": 0}]}]}]})
    )

    assert here.passes_at("x/a", "ingress", "y/b", ICMP, 0)
    assert not here.passes_at("x/a", "ingress", "y/b", ICMP, 8)


def test_any_protocol_is_tcp_udp_and_sctp_but_never_icmp():
    here = world()

    here.apply(
        cnp({"endpointSelector": SUBJECT, "ingress": [{"toPorts": [{"ports": [{"port": "80"}]}]}]})
    )

    admitted = {
        p for p in (TCP, UDP, SCTP, ICMP, ICMP6) if here.passes_at("x/a", "ingress", "y/b", p, 80)
    }
    assert admitted == {TCP, UDP, SCTP}


def test_a_prefix_selects_outside_addresses_only():
    here = world(allow_localhost=False)

    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [{"fromCIDR": ["0.0.0.0/0"]}]}))

    assert into(here, *ALL) == {"198.51.100.7"}


def test_an_excepted_address_may_be_admitted_by_another_item():
    here = world(allow_localhost=False)
    whole = {"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.96.0.0/12"]}]}

    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [whole]}))
    assert into(here, "10.0.0.1", "10.96.0.1") == {"10.0.0.1"}
    here.apply(cnp({"endpointSelector": SUBJECT, "ingress": [whole, {"fromCIDR": ["10.96.0.1"]}]}))

    assert into(here, "10.0.0.1", "10.96.0.1") == {"10.0.0.1", "10.96.0.1"}


def test_an_address_excepted_from_a_deny_is_not_admitted_by_that():
    here = world()

    here.apply(
        cnp(
            {
                "endpointSelector": SUBJECT,
                "ingressDeny": [
                    {"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.96.0.0/12"]}]}
                ],
            }
        )
    )

    assert into(here, "10.0.0.1", "10.96.0.1") == set()


def test_a_hand_written_cidr_label_selects_by_containment():
    here = world(allow_localhost=False)
    here.apply(
        cnp(
            {
                "endpointSelector": {"matchLabels": {"pod": "c"}},
                "ingress": [{"fromCIDR": ["10.96.0.0/16"]}],
            }
        )
    )

    here.apply(
        cnp(
            {
                "endpointSelector": SUBJECT,
                "ingress": [
                    {
                        "fromEndpoints": [
                            {"matchLabels": {"cidr:10.0.0.0/8": "", "reserved:world-ipv4": ""}}
                        ]
                    }
                ],
            },
            name="labels",
        )
    )

    assert into(here, "10.96.0.1", "10.0.0.1", "198.51.100.7") == {"10.96.0.1", "10.0.0.1"}


def test_a_named_egress_port_with_two_numbers_in_the_cluster_opens_nothing():
    here = World(
        {
            "client": pod("x", {"pod": "a"}),
            "old": pod("x", {"pod": "old"}, ports=[("web", TCP, 80)]),
            "new": pod("x", {"pod": "new"}, ports=[("web", TCP, 8080)]),
        }
    )
    ports = {"toPorts": [{"ports": [{"port": "web", "protocol": "TCP"}]}]}

    here.apply(cnp({"endpointSelector": SUBJECT, "egress": [ports]}))
    assert not here.reaches("client", "old", 80)
    assert list(here.engine.ambiguous_names().values()) == [{"web"}]
    here.take("new")
    here.flush()

    assert here.reaches("client", "old", 80)
    assert here.engine.ambiguous_names() == {}


def test_a_named_ingress_port_is_the_subjects_own():
    here = World(
        {
            "x/a": pod("x", {"pod": "a"}, ports=[("web", TCP, 8080)]),
            "x/b": pod("x", {"pod": "b"}, ports=[("web", TCP, 80)]),
        }
    )

    here.apply(
        cnp({"endpointSelector": {}, "ingress": [{"toPorts": [{"ports": [{"port": "WEB"}]}]}]})
    )

    assert here.reaches("x/b", "x/a", 8080)
    assert not here.reaches("x/b", "x/a", 80)
    assert here.reaches("x/a", "x/b", 80)


def test_a_subject_in_another_namespace_by_an_expression_selects_nothing():
    here = world()
    expression = {"key": "k8s:io.kubernetes.pod.namespace", "operator": "In", "values": ["y"]}

    here.apply(cnp({"endpointSelector": {"matchExpressions": [expression]}, "ingress": [{}]}))

    assert here.enforced["x/a"] == here.enforced["y/a"] == (False, False)
