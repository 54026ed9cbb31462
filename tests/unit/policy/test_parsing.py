"""Parsing: what is accepted, what is refused, and that a refusal names the field."""

from __future__ import annotations

import pytest
from cilium_core.policy import (
    Direction,
    PolicyError,
    PolicyOptions,
    UnsupportedPolicyError,
    Verdict,
    parse,
)
from cilium_core.policy.ports import NamedPort, PortRange, Protocol

from tests.unit.policy.worlds import ccnp, cnp, knp

WEB = {"matchLabels": {"app": "web"}}


def ingress(*items, **fields):
    return cnp(endpointSelector={}, ingress=list(items), **fields)


def cnp_with(**rule):
    return cnp({"endpointSelector": {}, **rule})


def to_ports(*ports, **fields):
    return {"toPorts": [{"ports": list(ports), **fields}]}


def problems(obj, **options):
    """What is wrong with an object, by the path of the field."""
    with pytest.raises(PolicyError) as caught:
        parse(obj, PolicyOptions(**options))
    return {problem.path: problem.message for problem in caught.value.problems}


REFUSED = {
    "no direction list": (cnp({"endpointSelector": {}}), "spec", "at least one of ingress"),
    "all lists empty": (cnp_with(ingress=[], egressDeny=[]), "spec", "at least one of"),
    "no selector": (cnp({"ingress": [{}]}), "spec", "exactly one of endpointSelector"),
    "both selectors": (cnp_with(nodeSelector={}, ingress=[{}]), "spec", "exactly one of"),
    "node selector in a namespace": (
        cnp({"nodeSelector": {}, "ingress": [{}]}),
        "spec.nodeSelector",
        "only a cluster-wide policy",
    ),
    "neither spec nor specs": (
        {k: v for k, v in cnp_with(ingress=[{}]).items() if k != "spec"},
        "",
        "needs spec or specs",
    ),
    "two kinds of peers": (
        cnp_with(ingress=[{"fromEndpoints": [WEB], "fromEntities": ["host"]}]),
        "spec.ingress[0]",
        "two kinds of peers",
    ),
    "unknown entity": (
        cnp_with(ingress=[{"fromEntities": ["moon"]}]),
        "spec.ingress[0].fromEntities[0]",
        "'moon' is not one of all, world",
    ),
    "icmps beside ports": (
        cnp_with(ingress=[{"icmps": [{}], "toPorts": [{}]}]),
        "spec.ingress[0]",
        "both icmps and toPorts",
    ),
    "too many ports": (
        cnp_with(ingress=[to_ports(*[{"port": str(port)} for port in range(1, 42)])]),
        "spec.ingress[0].toPorts[0].ports",
        "at most 40 items",
    ),
    "too many ICMP types": (
        cnp_with(ingress=[{"icmps": [{"fields": [{"type": one} for one in range(41)]}]}]),
        "spec.ingress[0].icmps[0].fields",
        "at most 40 items",
    ),
    "bad ICMP family": (
        cnp_with(ingress=[{"icmps": [{"fields": [{"type": 8, "family": "IPv5"}]}]}]),
        "spec.ingress[0].icmps[0].fields[0].family",
        "'IPv4' or 'IPv6'",
    ),
    "ICMP type of the other family": (
        cnp_with(ingress=[{"icmps": [{"fields": [{"type": "PacketTooBig"}]}]}]),
        "spec.ingress[0].icmps[0].fields[0]",
        "not an IPv4 ICMP type",
    ),
    "ICMP without a type": (
        cnp_with(ingress=[{"icmps": [{"fields": [{}]}]}]),
        "spec.ingress[0].icmps[0].fields[0].type",
        "is required",
    ),
    "set prefix without a length": (
        cnp_with(ingress=[{"fromCIDRSet": [{"cidr": "10.0.0.1"}]}]),
        "spec.ingress[0].fromCIDRSet[0].cidr",
        "no prefix length; write 10.0.0.1/32",
    ),
    "except outside": (
        cnp_with(ingress=[{"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}]}]),
        "spec.ingress[0].fromCIDRSet[0]",
        "except 11.0.0.0/16 does not lie inside 10.0.0.0/8",
    ),
    "except wider than the prefix": (
        cnp_with(ingress=[{"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.0.0.0/7"]}]}]),
        "spec.ingress[0].fromCIDRSet[0]",
        "does not lie inside",
    ),
    "except of the other family": (
        cnp_with(ingress=[{"fromCIDRSet": [{"cidr": "::/0", "except": ["10.0.0.0/8"]}]}]),
        "spec.ingress[0].fromCIDRSet[0]",
        "does not lie inside",
    ),
    "set item without a prefix": (
        cnp_with(ingress=[{"fromCIDRSet": [{}]}]),
        "spec.ingress[0].fromCIDRSet[0]",
        "needs exactly one of cidr",
    ),
    "not a prefix": (
        cnp_with(egress=[{"toCIDR": ["10.0.0.300/8"]}]),
        "spec.egress[0].toCIDR[0]",
        "not an address prefix",
    ),
    "port out of range": (
        cnp_with(ingress=[to_ports({"port": "99999"})]),
        "spec.ingress[0].toPorts[0].ports[0]",
        "from 0 to 65535",
    ),
    "port with a leading zero": (
        cnp_with(ingress=[to_ports({"port": "080"})]),
        "spec.ingress[0].toPorts[0].ports[0]",
        "without leading zeros",
    ),
    "no port": (
        cnp_with(ingress=[to_ports({"protocol": "TCP"})]),
        "spec.ingress[0].toPorts[0].ports[0].port",
        "is required",
    ),
    "end of range out of range": (
        cnp_with(ingress=[to_ports({"port": "1", "endPort": 65536})]),
        "spec.ingress[0].toPorts[0].ports[0].endPort",
        "less than or equal to 65535",
    ),
    "range from port 0": (
        cnp_with(ingress=[to_ports({"port": "0", "endPort": 80})]),
        "spec.ingress[0].toPorts[0].ports[0]",
        "every port",
    ),
    "unknown protocol": (
        cnp_with(ingress=[to_ports({"port": "1", "protocol": "ICMP"})]),
        "spec.ingress[0].toPorts[0].ports[0].protocol",
        "'ICMP' is not one of ANY, TCP",
    ),
    "In without values": (
        cnp_with(
            ingress=[{"fromEndpoints": [{"matchExpressions": [{"key": "a", "operator": "In"}]}]}]
        ),
        "spec.ingress[0].fromEndpoints[0].matchExpressions[0]",
        "needs at least one of values",
    ),
    "Exists with values": (
        cnp_with(
            ingress=[
                {
                    "fromEndpoints": [
                        {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}
                    ]
                }
            ]
        ),
        "spec.ingress[0].fromEndpoints[0].matchExpressions[0]",
        "takes no values",
    ),
    "unknown operator": (
        cnp_with(
            ingress=[{"fromEndpoints": [{"matchExpressions": [{"key": "a", "operator": "Gt"}]}]}]
        ),
        "spec.ingress[0].fromEndpoints[0].matchExpressions[0].operator",
        "'In', 'NotIn'",
    ),
    "bad key": (
        cnp({"endpointSelector": {"matchLabels": {"-app": "web"}}, "ingress": [{}]}),
        "spec.endpointSelector.matchLabels.-app",
        "not a label key",
    ),
    "bad value": (
        cnp({"endpointSelector": {"matchLabels": {"app": "-web"}}, "ingress": [{}]}),
        "spec.endpointSelector.matchLabels.app",
        "not a label value",
    ),
    "value that is no string": (
        cnp({"endpointSelector": {"matchLabels": {"app": True}}, "ingress": [{}]}),
        "spec.endpointSelector.matchLabels.app",
        "string",
    ),
    "unknown field in a rule": (
        cnp_with(ingress=[{}], ingres=[{}]),
        "spec.ingres",
        "unknown field",
    ),
    "unknown field in a peer item": (
        cnp_with(ingress=[{"fromEndpoint": [WEB]}]),
        "spec.ingress[0].fromEndpoint",
        "unknown field",
    ),
    "egress peer on ingress": (
        cnp_with(ingress=[{"toEndpoints": [WEB]}]),
        "spec.ingress[0].toEndpoints",
        "unknown field",
    ),
    "L7 rules in a deny item": (
        cnp_with(ingressDeny=[{"toPorts": [{"ports": [{"port": "80"}], "rules": {"http": [{}]}}]}]),
        "spec.ingressDeny[0].toPorts[0].rules",
        "unknown field",
    ),
    "names in a deny item": (
        cnp_with(egressDeny=[{"toFQDNs": [{"matchName": "a.io"}]}]),
        "spec.egressDeny[0].toFQDNs",
        "unknown field",
    ),
    "authentication in a deny item": (
        cnp_with(egressDeny=[{"authentication": {"mode": "required"}}]),
        "spec.egressDeny[0].authentication",
        "unknown field",
    ),
    "removed requirement": (
        cnp_with(ingress=[{"fromRequires": [WEB]}]),
        "spec.ingress[0].fromRequires",
        "was removed",
    ),
    "old authentication block": (
        cnp_with(ingress=[{"auth": {"type": "always"}}]),
        "spec.ingress[0].auth",
        "replaced by authentication",
    ),
    "empty L7 rules": (
        cnp_with(ingress=[to_ports({"port": "80"}, rules={})]),
        "spec.ingress[0].toPorts[0].rules",
        "exactly one of http",
    ),
    "log value too long": (
        cnp_with(ingress=[{}], log={"value": "x" * 33}),
        "spec.log.value",
        "at most 32 printable",
    ),
    "default deny that is no boolean": (
        cnp_with(ingress=[{}], enableDefaultDeny={"ingress": "no"}),
        "spec.enableDefaultDeny.ingress",
        "boolean",
    ),
    "bad rule in specs": (
        {**{k: v for k, v in cnp().items() if k != "spec"}, "specs": [{"endpointSelector": {}}]},
        "specs[0]",
        "at least one of",
    ),
    "no name": ({**cnp_with(ingress=[{}]), "metadata": {}}, "metadata.name", "is required"),
    "bad name": (
        {**cnp_with(ingress=[{}]), "metadata": {"name": "A/b"}},
        "metadata",
        "not a Kubernetes object name",
    ),
    "bad version": (
        {**cnp_with(ingress=[{}]), "apiVersion": "cilium.io/v1"},
        "apiVersion",
        "cilium.io/v2",
    ),
    "other kind": ({**cnp_with(ingress=[{}]), "kind": "Service"}, "kind", "must be one of"),
    "no kind": ({"metadata": {"name": "a"}}, "kind", "must be one of"),
}


@pytest.mark.parametrize(("obj", "path", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_object_is_refused_with_the_path_of_the_field(obj, path, message):
    found = problems(obj)

    assert path in found
    assert message in found[path]


def test_an_error_names_the_object_and_every_problem():
    obj = cnp_with(ingress=[{"fromEntities": ["moon"]}, {"x": 1}], egress=[{"toCIDR": ["y"]}])

    with pytest.raises(PolicyError) as caught:
        parse(obj)

    assert str(caught.value).startswith("CiliumNetworkPolicy x/policy: ")
    assert {problem.path for problem in caught.value.problems} == {
        "spec.ingress[0].fromEntities[0]",
        "spec.ingress[1].x",
        "spec.egress[0].toCIDR[0]",
    }


HTTP = {"port": "80", "protocol": "TCP"}
UNAVAILABLE = {
    "other parsers": (
        ingress(to_ports(HTTP, rules={"l7proto": "x", "l7": [{}]})),
        "toPorts[0].rules.l7proto",
        "parsers for http, dns and kafka only",
    ),
    "Kafka inside TLS": (
        ingress(to_ports(HTTP, rules={"kafka": [{}]}, terminatingTLS={"secret": {"name": "a"}})),
        "toPorts[0].rules.kafka",
        "inside TLS",
    ),
    "authentication": (
        ingress({"authentication": {"mode": "required"}}),
        "authentication",
        "no mutual authentication",
    ),
    "groups": (ingress({"fromGroups": [{"aws": {}}]}), "fromGroups", "no cloud provider"),
}


@pytest.mark.parametrize(("obj", "path", "reason"), UNAVAILABLE.values(), ids=UNAVAILABLE.keys())
def test_a_field_that_cannot_be_enforced_is_refused_with_the_reason(obj, path, reason):
    with pytest.raises(UnsupportedPolicyError) as caught:
        parse(obj)

    found = {problem.path: problem.message for problem in caught.value.problems}
    assert reason in found[f"spec.ingress[0].{path}"]


def test_a_listener_of_ones_own_is_refused_with_the_reason():
    listener = {"envoyConfig": {"name": "a"}, "name": "b", "priority": 1}

    with pytest.raises(UnsupportedPolicyError, match=r"listener: is not available"):
        parse(cnp_with(egress=[to_ports(HTTP, listener=listener)]))


def test_a_field_that_is_wrong_outweighs_one_that_is_not_supported():
    with pytest.raises(PolicyError) as caught:
        parse(cnp_with(egress=[{"toGroups": [{"aws": {}}]}, {"x": 1}]))

    assert not isinstance(caught.value, UnsupportedPolicyError)


@pytest.mark.parametrize(
    "rule",
    [
        {"ingress": [{"fromRequires": []}]},
        {"ingress": [{"authentication": None}]},
        {"ingress": [to_ports({"port": "80"}, rules=None)]},
        {"ingress": [to_ports({"port": "80", "protocol": "tcp"})]},
        {"ingress": [{"fromCIDR": ["10.0.0.1"]}]},
        {"ingress": [{"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}]}]},
        {"ingress": [{}], "description": "why", "log": {"value": "shown"}},
        {"ingress": [{}], "labels": ["k8s:a=b", {"key": "c", "value": "d"}]},
        {"ingress": [{}], "egress": None},
    ],
)
def test_what_says_nothing_wrong_is_accepted(rule):
    assert parse(cnp_with(**rule)).rules


def test_status_is_ignored():
    assert parse({**cnp_with(ingress=[{}]), "status": {"nodes": {"a": 1}}}).rules


def test_spec_and_specs_are_both_used():
    obj = {**cnp_with(ingress=[{}]), "specs": [{"endpointSelector": {}, "egress": [{}]}]}

    assert [rule.direction for rule in parse(obj).rules] == [Direction.INGRESS, Direction.EGRESS]


def test_icmps_are_refused_while_the_option_is_off():
    obj = cnp_with(ingress=[{"icmps": [{"fields": [{"type": 8}]}]}])

    assert problems(obj, icmp_rules=False) == {
        "spec.ingress[0].icmps": "needs the option enable-icmp-rules"
    }


def test_protocols_without_ports_are_behind_an_option():
    obj = cnp_with(ingress=[to_ports({"protocol": "VRRP"})])

    assert set(problems(obj)) == {
        "spec.ingress[0].toPorts[0].ports[0].protocol",
        "spec.ingress[0].toPorts[0].ports[0].port",
    }
    accepted = parse(obj, PolicyOptions(extended_protocols=True))
    assert accepted.rules[0].ports == (PortRange(Protocol.VRRP),)


def test_the_option_for_default_deny_overrides_the_field():
    obj = cnp_with(ingress=[{}], enableDefaultDeny={"ingress": False})

    assert not parse(obj).rules[0].default_deny
    assert parse(obj, PolicyOptions(non_default_deny=False)).rules[0].default_deny


def test_labels_of_a_rule_name_its_object_beside_the_users_own():
    obj = cnp_with(
        ingress=[{}], labels=[{"key": "team", "value": "red"}, "k8s:b=c"], log={"value": "x"}
    )
    obj["metadata"]["uid"] = "1-2"

    origin = parse(obj).rules[0].origin

    assert (origin.kind, origin.namespace, origin.name) == ("CiliumNetworkPolicy", "x", "policy")
    assert origin.log == "x"
    assert origin.labels == (
        "k8s:b=c",
        "k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy",
        "k8s:io.cilium.k8s.policy.name=policy",
        "k8s:io.cilium.k8s.policy.namespace=x",
        "k8s:io.cilium.k8s.policy.uid=1-2",
        "unspec:team=red",
    )


def test_a_namespaced_policy_without_a_namespace_is_in_default():
    obj = cnp_with(ingress=[{}])
    del obj["metadata"]["namespace"]

    assert parse(obj).ref == ("CiliumNetworkPolicy", "default", "policy")


WARNED = {
    "default deny without rules": (
        cnp_with(ingress=[{}], enableDefaultDeny={"egress": True}),
        "enableDefaultDeny.egress: has no effect",
    ),
    "range of a named port": (
        cnp_with(ingress=[to_ports({"port": "http", "endPort": 90})]),
        "endPort: has no effect on a named port",
    ),
    "foreign namespace": (
        cnp(
            {
                "endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "y"}},
                "ingress": [{}],
            }
        ),
        "selects in its own namespace only",
    ),
    "init endpoints in a namespace": (
        cnp({"endpointSelector": {"matchLabels": {"reserved:init": ""}}, "ingress": [{}]}),
        "use a CiliumClusterwideNetworkPolicy",
    ),
    "section that policyTypes leaves out": (
        knp(podSelector={}, policyTypes=["Ingress"], egress=[{}]),
        "spec.egress: has no effect",
    ),
}


@pytest.mark.parametrize(("obj", "warning"), WARNED.values(), ids=WARNED.keys())
def test_what_has_no_effect_leaves_a_warning(obj, warning):
    assert any(warning in text for text in parse(obj).warnings)


KUBERNETES_REFUSED = {
    "empty peer": ({"ingress": [{"from": [{}]}]}, "spec.ingress[0].from[0]"),
    "block beside a selector": (
        {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]},
        "spec.ingress[0].from[0]",
    ),
    "block without a length": (
        {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.1"}}]}]},
        "spec.egress[0].to[0].ipBlock.cidr",
    ),
    "except equal to the block": (
        {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}]},
        "spec.egress[0].to[0].ipBlock",
    ),
    "port out of range": ({"ingress": [{"ports": [{"port": 0}]}]}, "spec.ingress[0].ports[0].port"),
    "quoted number": ({"ingress": [{"ports": [{"port": "80"}]}]}, "spec.ingress[0].ports[0].port"),
    "boolean port": ({"ingress": [{"ports": [{"port": True}]}]}, "spec.ingress[0].ports[0].port"),
    "range without a start": (
        {"ingress": [{"ports": [{"endPort": 80}]}]},
        "spec.ingress[0].ports[0]",
    ),
    "range of a name": (
        {"ingress": [{"ports": [{"port": "http", "endPort": 80}]}]},
        "spec.ingress[0].ports[0]",
    ),
    "range that ends before it starts": (
        {"ingress": [{"ports": [{"port": 81, "endPort": 80}]}]},
        "spec.ingress[0].ports[0]",
    ),
    "unknown protocol": (
        {"ingress": [{"ports": [{"protocol": "ICMP"}]}]},
        "spec.ingress[0].ports[0].protocol",
    ),
    "unknown type": ({"policyTypes": ["Both"]}, "spec.policyTypes[0]"),
    "unknown field": ({"ingress": [{"form": []}]}, "spec.ingress[0].form"),
}


@pytest.mark.parametrize(
    ("spec", "path"), KUBERNETES_REFUSED.values(), ids=KUBERNETES_REFUSED.keys()
)
def test_a_wrong_network_policy_is_refused_with_the_path_of_the_field(spec, path):
    assert list(problems(knp(podSelector={}, **spec))) == [path]


def test_the_name_annotation_of_a_network_policy_is_what_flows_show():
    obj = knp(podSelector={}, ingress=[{}])
    obj["metadata"]["annotations"] = {"policy.cilium.io/name": "shown"}

    policy = parse(obj)

    assert policy.ref.name == "policy"
    assert policy.rules[0].origin.name == "shown"


@pytest.mark.parametrize(
    ("written", "ports"),
    [
        (
            {"port": "80"},
            [
                PortRange(protocol, 80, 80)
                for protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
            ],
        ),
        ({"port": 80, "protocol": "TCP"}, [PortRange(Protocol.TCP, 80, 80)]),
        ({"port": "80", "endPort": 90, "protocol": "UDP"}, [PortRange(Protocol.UDP, 80, 90)]),
        ({"port": "80", "endPort": 10, "protocol": "UDP"}, [PortRange(Protocol.UDP, 80, 80)]),
        ({"port": "0", "protocol": "SCTP"}, [PortRange(Protocol.SCTP)]),
        ({"port": "0", "endPort": 65535, "protocol": "TCP"}, [PortRange(Protocol.TCP)]),
        ({"port": "HTTP", "protocol": "TCP"}, [NamedPort(Protocol.TCP, "http")]),
    ],
)
def test_a_port_means_its_protocols_and_numbers(written, ports):
    assert parse(cnp_with(ingress=[to_ports(written)])).rules[0].ports == tuple(ports)


def test_a_deny_list_makes_deny_rules():
    rules = parse(cnp_with(ingressDeny=[{"fromEntities": ["world"]}])).rules

    assert [rule.verdict for rule in rules] == [Verdict.DENY]


LENIENT = PolicyOptions(lenient_fields=True)


def test_unknown_fields_that_restrict_nothing_can_be_left_out():
    obj = {**cnp_with(ingress=[{}], comment="why"), "extra": {"a": 1}}

    policy = parse(obj, LENIENT)
    assert sorted(policy.warnings) == [
        "extra: unknown field; it was left out",
        "spec.comment: unknown field; it was left out",
    ]
    assert obj["spec"]["comment"] == "why"
    assert set(problems(obj)) == {"extra", "spec.comment"}


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "Deny"},
        {"auth": {"type": "required"}},
        {"requires": []},
        {"except": []},
        {"denies": []},
        {"ingres": [{}]},
        {"egess": [{}]},
        {"endpointSelectors": {}},
        {"priorities": 1},
        {"ingress": [{"comment": "why"}]},
        {"ingress": [{"toPort": []}]},
        {"ingressDeny": [{"toPorts": [{"rules": {}}]}]},
        {"egress": [{"toCIDRSet": [{"cidr": "10.0.0.0/8", "excepts": ["10.1.0.0/16"]}]}]},
    ],
    ids=lambda rule: next(iter(rule)),
)
def test_what_may_restrict_is_refused_in_the_lenient_way_too(rule):
    with pytest.raises(PolicyError, match="unknown field"):
        parse(cnp_with(**{"ingress": [{}], **rule}), LENIENT)


def test_nothing_is_left_out_of_an_object_that_is_wrong_otherwise():
    with pytest.raises(PolicyError) as caught:
        parse(cnp_with(ingress=[{"fromEntities": ["moon"]}], comment="why"), LENIENT)

    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("make", [cnp, ccnp, lambda **rule: knp(podSelector={}, **rule)])
def test_an_annotation_makes_a_policy_tell_only(make):
    rule = {"ingress": [{}]}
    obj = make(**rule) if make not in (cnp, ccnp) else make(endpointSelector={}, **rule)
    assert not any(one.audit for one in parse(obj).rules)

    obj["metadata"]["annotations"] = {"policy.cilium.io/audit-mode": "true"}
    assert all(one.audit for one in parse(obj).rules)

    obj["metadata"]["annotations"] = {"policy.cilium.io/audit-mode": "yes"}
    policy = parse(obj)
    assert not any(one.audit for one in policy.rules)
    assert "neither 'true' nor 'false'" in policy.warnings[0]


def test_a_policy_for_nodes_says_so_and_needs_the_option_to_have_an_effect():
    policy = parse(ccnp({"nodeSelector": {"matchLabels": {"a": "b"}}, "ingress": [{}]}))

    assert [rule.nodes for rule in policy.rules] == [True]
    assert "enable-host-firewall" in policy.warnings[0]


def test_nodes_as_peers_are_other_nodes_of_the_own_cluster():
    obj = cnp_with(ingress=[{"fromNodes": [{"matchLabels": {"a": "b"}}]}])
    (rule,) = parse(obj, PolicyOptions(node_selector_labels=True)).rules

    (peer,) = rule.peers
    assert str(peer) == ("any:a=b, reserved:remote-node, k8s:io.cilium.k8s.policy.cluster=default")
    assert list(problems(obj)) == ["spec.ingress[0].fromNodes"]
