"""Whatever the input, the answer is a policy or a refusal, and nothing else."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.errors import InvalidError
from cilium_core.policy import POLICY_KINDS, Policy, PolicyError, PolicyOptions, parse
from cilium_core.policy.options import PERMISSIVE, HeaderRegex
from cilium_core.resources.documents import load_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.policy.test_tiers import admin, cluster
from tests.unit.policy.worlds import ccnp, cnp, knp

if TYPE_CHECKING:
    from collections.abc import Callable

DEEP = "[" * 200_000
DEEPER = "{a: " * 200_000
CYCLE = "a: &a [*a]"
BOMB = "\n".join(
    ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    + [f"a{i}: &a{i} [{','.join(f'*a{i - 1}' for _ in range(9))}]" for i in range(1, 12)]
)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "a: b: c",
        "\t- x",
        "- [",
        "a: *nowhere",
        "!!python/object:os.system {}",
        "!!timestamp 2024-13-99",
        "!!int ''",
        "!!float x",
        "!!binary ö",
        "? {a: b}\n: c",
        "a: 1\na: 2",
        "\x00",
        "\x07",
        "%YAML 9.9\n---\na: b",
        DEEP,
        DEEPER,
        "- just a list",
        "just a text",
        "42",
        CYCLE,
        BOMB,
        "<<: 1",
        "a: 2024-99-99 99:99:99",
        "a: 1:99:99:" + "9" * 400,
    ],
    ids=range(25),
)
def test_a_text_that_is_no_policy_is_refused(text):
    with pytest.raises(InvalidError):
        parse_text(text)


def parse_text(text: str) -> list[Policy]:
    """Read every policy of a YAML text, as the command line does."""
    return [parse(document.object) for document in load_documents(text, "file.yaml")]


def test_a_key_written_twice_is_refused_since_one_of_the_two_would_be_lost():
    text = json.dumps(cnp(endpointSelector={}, ingress=[{}]))
    twice = text.replace(
        '"ingress": [{}]', '"ingress": [{}], "ingress": [{"fromEntities": ["all"]}]'
    )

    with pytest.raises(InvalidError, match="twice"):
        parse_text(twice)


def test_an_object_that_contains_itself_is_refused():
    obj = cnp(endpointSelector={}, ingress=[{}])
    obj["spec"]["ingress"].append(obj["spec"])

    with pytest.raises(PolicyError, match="levels"):
        parse(obj)


def outcome(read: Callable[[Any], object], value: object) -> str:
    """What came of reading something; any other exception than a refusal fails the test."""
    try:
        return f"read {read(value)}"
    except InvalidError as error:
        return f"refused: {error}"


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.binary(max_size=3),
    st.sampled_from(["80", "Deny", "10.0.0.0/8", "CiliumNetworkPolicy", 10**400, "9" * 5000]),
)
field_names = st.sampled_from(
    [
        *(
            "apiVersion",
            "kind",
            "metadata",
            "spec",
            "specs",
            "name",
            "namespace",
            "endpointSelector",
        ),
        *("ingress", "egress", "ingressDeny", "action", "fromEndpoints", "toCIDRSet", "toPorts"),
        *("ports", "port", "protocol", "rules", "matchLabels", "matchExpressions", "key", "cidr"),
        *("icmps", "fields", "type", "enableDefaultDeny", "labels", "podSelector", "from", "log"),
        *("rules", "http", "dns", "kafka", "headers", "headerMatches", "serverNames", "secret"),
        *("toFQDNs", "matchName", "matchPattern", "toServices", "k8sService", "toNodes", "path"),
        *("subject", "pods", "networks", "priority", "tier", "action", "protocols", "domainNames"),
        *("annotations", "policy.cilium.io/audit-mode", "redirectFrontend", "description"),
    ]
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(field_names, st.text(max_size=3), st.integers()), inner, max_size=4
        ),
    ),
    max_leaves=12,
)


OPTIONS = [
    PolicyOptions(),
    PERMISSIVE,
    replace(PERMISSIVE, lenient_fields=True, header_regex=HeaderRegex.ALWAYS),
]


def read_all(obj: Any) -> list[Policy]:
    return [parse(obj, options) for options in OPTIONS]


@settings(max_examples=300, deadline=None)
@given(anything)
def test_any_object_at_all_is_read_or_refused(obj):
    assert outcome(read_all, obj)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(POLICY_KINDS), st.dictionaries(field_names, anything, max_size=4))
def test_any_rule_at_all_is_read_or_refused(kind, spec):
    version = "policy.networking.k8s.io/v1alpha1" if "Admin" in kind else "cilium.io/v2"
    obj = {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": spec}
    assert outcome(read_all, obj)


GOOD: list[dict[str, Any]] = [
    cnp(
        endpointSelector={"matchLabels": {"app": "web"}},
        ingress=[
            {
                "fromEndpoints": [
                    {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}
                ],
                "toPorts": [{"ports": [{"port": "80", "endPort": 90, "protocol": "TCP"}]}],
            },
            {"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}], "action": "Deny"},
        ],
        egressDeny=[{"icmps": [{"fields": [{"type": "EchoRequest", "family": "IPv6"}]}]}],
        enableDefaultDeny={"egress": False},
        labels=[{"key": "team", "value": "red"}],
        log={"value": "x"},
    ),
    ccnp(endpointSelector={}, ingress=[{"fromEntities": ["world"]}], egress=[{"toCIDR": ["::/0"]}]),
    ccnp(
        endpointSelector={},
        ingress=[
            {
                "toPorts": [
                    {
                        "ports": [{"port": "443", "protocol": "TCP"}],
                        "rules": {
                            "http": [
                                {
                                    "path": "/a.*",
                                    "headers": ["X: [a]+"],
                                    "headerMatches": [{"name": "a", "secret": {"name": "b"}}],
                                }
                            ]
                        },
                        "terminatingTLS": {"secret": {"name": "a"}},
                        "serverNames": ["a.io"],
                    }
                ]
            }
        ],
        egress=[
            {
                "toPorts": [
                    {
                        "ports": [{"port": "53"}],
                        "rules": {"dns": [{"matchName": "a.io"}, {"matchPattern": "*.a.io"}]},
                    }
                ]
            },
            {"toFQDNs": [{"matchPattern": "**.a.io"}]},
            {"toServices": [{"k8sService": {"serviceName": "a", "namespace": "b"}}]},
            {"toNodes": [{"matchLabels": {"a": "b"}}]},
        ],
    ),
    cnp(
        endpointSelector={},
        ingress=[
            {
                "toPorts": [
                    {
                        "ports": [{"port": "9092", "protocol": "TCP"}],
                        "rules": {"kafka": [{"role": "produce", "topic": "t"}]},
                    }
                ]
            }
        ],
    ),
    admin(
        subject={"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}}},
        ingress=[
            {
                "action": "Deny",
                "from": [{"namespaces": {}}],
                "ports": [{"portNumber": {"port": 80}}, {"namedPort": "web"}],
            }
        ],
        egress=[
            {"action": "Pass", "to": [{"networks": ["10.0.0.0/8"]}, {"nodes": {}}]},
            {"action": "Allow", "to": [{"domainNames": ["*.a.io"]}]},
        ],
    ),
    cluster(
        egress=[
            {
                "action": "Accept",
                "to": [{"networks": ["::/0"]}],
                "protocols": [{"tcp": {"destinationPort": {"range": {"start": 1, "end": 2}}}}],
            }
        ]
    ),
    knp(
        podSelector={"matchLabels": {"app": "web"}},
        policyTypes=["Ingress", "Egress"],
        ingress=[{"from": [{"namespaceSelector": {}}], "ports": [{"port": 80, "endPort": 90}]}],
        egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}],
    ),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside an object."""
    found = [path] if path else []
    parts = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in parts:
        found += places(part, (*path, key))
    return found


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(GOOD), st.integers(0, 2**32), anything, st.integers(1, 3))
def test_a_good_object_with_something_else_in_it_is_read_or_refused(good, seed, other, times):
    obj = copy.deepcopy(good)
    chance = random.Random(seed)
    for _ in range(times):
        if not (found := places(obj)):
            break
        *path, last = chance.choice(found)
        inside = obj
        for key in path:
            inside = inside[key]
        inside[last] = copy.deepcopy(other)
    assert outcome(read_all, obj)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(GOOD), st.integers(0, 2**32), st.text("abxyz", min_size=1, max_size=8))
def test_an_unknown_field_anywhere_is_refused_or_closes(good, seed, name):
    """Only peers and ports of tiered policies may be of kinds that are not known yet."""
    obj = copy.deepcopy(good)
    paths = [path for path in places(obj) if path[0] == "spec" and isinstance(at(obj, path), dict)]
    free = {"matchLabels"}
    path = random.Random(seed).choice([path for path in paths if path[-1] not in free])
    at(obj, path)[f"x{name}"] = 1

    said = outcome(lambda one: parse(one, PERMISSIVE).warnings, obj)
    tiered = obj["apiVersion"].startswith("policy.networking.k8s.io")
    assert "unknown field" in said or (tiered and "unknown kind" in said)


def at(obj: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        obj = obj[key]
    return obj


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:{}[]-,&*!|>'\"#%@ \n\t?0"), max_size=40))
def test_any_text_at_all_is_read_or_refused(text):
    assert outcome(parse_text, text)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(GOOD), st.integers(0, 2**32))
def test_a_damaged_document_is_read_or_refused(good, seed):
    chance = random.Random(seed)
    text = list(json.dumps(good, indent=1))
    for _ in range(chance.randint(1, 4)):
        text[chance.randrange(len(text))] = chance.choice(":{}[]\n \"'0-x\t&*")
    assert outcome(parse_text, "".join(text))
