"""Older forms of Cilium's objects become the real ones, and real ones are left alone."""

from __future__ import annotations

import contextlib
import copy

import pytest
from cilium_core.objects.checking import KINDS, check
from cilium_core.objects.converting import convert
from cilium_core.policy import PolicyError
from hypothesis import given
from hypothesis import strategies as st


def obj(kind, spec=None, **fields):
    found = {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {"name": "a"}, **fields}
    return {**found, "spec": spec} if spec is not None else found


def only(written):
    (found,) = check(written).objects
    return found


def test_an_endpoint_has_its_state_in_status():
    found = only(
        obj(
            "CiliumEndpoint",
            {
                "container-id": "c1",
                "id": 7,
                "addressing": [
                    {"ip": "10.0.0.9"},
                    {"ip": "10.0.0.8", "primary": True},
                    {"ip": "::8"},
                ],
                "identity": {"id": 5, "labels": ["k8s:app=api-server"]},
                "policy": {"ingress": {"enforcing": True}},
                "state": "ready",
                "policy-revision": 3,
                "namespace": "x",
                "node": "10.1.1.1",
            },
        )
    )

    assert "spec" not in found
    assert found["status"] == {
        "id": 7,
        "identity": {"id": 5, "labels": ["k8s:app=api-server"]},
        "policy": {"ingress": {"enforcing": True}},
        "state": "ready",
        "networking": {"addressing": [{"ipv4": "10.0.0.8", "ipv6": "::8"}], "node": "10.1.1.1"},
        "external-identifiers": {"container-id": "c1"},
    }


def test_an_endpoints_node_that_is_no_address_is_kept_as_an_annotation():
    found = only(obj("CiliumEndpoint", {"node": "worker-1"}))

    assert found["metadata"]["annotations"] == {"cilium.io/node": "worker-1"}


def test_a_status_beside_a_spec_wins():
    found = only(obj("CiliumEndpoint", {"id": 1}, status={"id": 2}))

    assert found["status"] == {"id": 2}


def test_an_identity_has_its_labels_at_the_top():
    written = obj("CiliumIdentity", {"security-labels": {"k8s:app": "x"}})
    written["metadata"]["name"] = "1234"

    assert only(written)["security-labels"] == {"k8s:app": "x"}
    assert "spec" not in only(written)


def test_an_identity_with_two_different_label_sets_is_refused():
    written = obj(
        "CiliumIdentity", {"security-labels": {"k8s:app": "x"}}, **{"security-labels": {}}
    )

    with pytest.raises(PolicyError, match=r"spec\.security-labels: differs"):
        check(written)


def test_a_list_of_pools_is_what_was_allocated():
    pools = [{"pool": "10.0.0.0/24", "poolID": 1}, {"pool": "10.0.1.0/24"}]
    ipam = only(obj("CiliumNode", {"ipam": {"pools": pools}}))["spec"]["ipam"]

    assert ipam == {
        "pools": {
            "allocated": [
                {"pool": "1", "cidrs": ["10.0.0.0/24"]},
                {"pool": "default", "cidrs": ["10.0.1.0/24"]},
            ]
        },
        "podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"],
    }


def test_an_external_workload_has_labels_of_its_own():
    written = obj(
        "CiliumExternalWorkload",
        {"ipAddress": "192.0.2.1", "labels": [{"key": "app", "value": "a"}, {"key": "b"}]},
    )
    written["metadata"]["labels"] = {"app": "kept"}
    found = only(written)

    assert found["metadata"]["labels"] == {"app": "kept", "b": ""}
    assert found["spec"] == {"ipv4-alloc-cidr": "192.0.2.1/32"}
    assert found["status"] == {"ip": "192.0.2.1"}


FRONTEND = {"addressMatcher": {"ip": "169.254.1.1"}, "toPorts": [{"port": 80, "protocol": "UDP"}]}
PODS = {"matchLabels": {"app": "proxy"}}


def test_the_target_of_a_local_redirect_is_its_backend():
    found = only(
        obj(
            "CiliumLocalRedirectPolicy",
            {
                "redirectFrontend": [FRONTEND],
                "redirectTarget": {"localEndpointSelector": PODS, "port": 8080},
            },
        )
    )

    assert found["spec"] == {
        "redirectFrontend": {
            "addressMatcher": {"ip": "169.254.1.1", "toPorts": [{"port": 80, "protocol": "UDP"}]}
        },
        "redirectBackend": {
            "localEndpointSelector": PODS,
            "toPorts": [{"port": "8080", "protocol": "UDP"}],
        },
    }


def test_several_frontends_are_several_policies():
    other = {**FRONTEND, "addressMatcher": {"ip": "169.254.1.2"}}
    spec = {
        "redirectFrontend": [FRONTEND, other],
        "redirectTarget": {"localEndpointSelector": PODS, "port": 8080},
    }
    checked = check(obj("CiliumLocalRedirectPolicy", spec))

    assert [one["metadata"]["name"] for one in checked.objects] == ["a-0", "a-1"]
    assert "one policy for each" in checked.warnings[0]


def test_a_target_beside_a_backend_is_refused():
    spec = {"redirectFrontend": FRONTEND, "redirectTarget": {}, "redirectBackend": {}}

    with pytest.raises(PolicyError, match=r"spec\.redirectTarget: stands beside"):
        check(obj("CiliumLocalRedirectPolicy", spec))


REAL = [
    obj("CiliumEndpoint", status={"id": 1, "named-ports": [{"name": "a", "port": 1}]}),
    {**obj("CiliumIdentity"), "metadata": {"name": "300"}, "security-labels": {"k8s:a": "b"}},
    obj(
        "CiliumNode",
        {
            "addresses": [{"type": "CiliumInternalIP", "ip": "10.0.0.1"}],
            "ipam": {"pools": {"requested": [{"pool": "p", "needed": {"ipv4-addrs": 4}}]}},
        },
    ),
    obj("CiliumExternalWorkload", {"ipv4-alloc-cidr": "10.0.0.0/30"}),
    obj("CiliumLoadBalancerIPPool", {"blocks": [{"cidr": "10.0.0.0/24"}, {"start": "10.1.0.1"}]}),
    {
        **obj("CiliumPodIPPool", {"ipv4": {"cidrs": ["10.0.0.0/8"], "maskSize": 24}}),
        "apiVersion": "cilium.io/v2alpha1",
    },
    {
        **obj("CiliumEndpointSlice"),
        "apiVersion": "cilium.io/v2alpha1",
        "namespace": "x",
        "endpoints": [
            {"name": "a", "id": 300, "networking": {"addressing": [{"ipv4": "10.0.0.1"}]}}
        ],
    },
]


@pytest.mark.parametrize("written", REAL, ids=lambda one: one["kind"])
def test_a_real_object_is_left_as_it_is(written):
    before = copy.deepcopy(written)
    checked = check(written)

    assert checked.objects == (before,)
    assert not checked.warnings


REFUSED = [
    (obj("CiliumIdentity", **{"security-labels": {}}), ""),
    (obj("CiliumNode", {"addresses": [{"type": "MoonIP"}]}), "spec.addresses[0].type"),
    (obj("CiliumNode", {"ipan": {}}), "spec.ipan"),
    (
        obj("CiliumLoadBalancerIPPool", {"blocks": [{"start": "10.0.0.9", "stop": "10.0.0.1"}]}),
        "spec.blocks[0]",
    ),
    (obj("CiliumEndpoint", status={"state": "happy"}), "status.state"),
]


@pytest.mark.parametrize(("written", "path"), REFUSED)
def test_what_is_wrong_is_refused_with_the_path_of_the_field(written, path):
    with pytest.raises(PolicyError) as caught:
        check(written)

    assert path in {problem.path for problem in caught.value.problems}


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=4), st.just("10.0.0.1")
)
words = st.sampled_from(
    [
        *("spec", "status", "metadata", "name", "labels", "key", "value", "node", "id", "ipam"),
        *("redirectFrontend", "redirectTarget", "redirectBackend", "toPorts", "port", "pools"),
        *("addressMatcher", "ip", "addressing", "security-labels", "ipAddress", "pool", "poolID"),
    ]
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=4)),
    max_leaves=15,
)


@given(st.sampled_from(sorted(KINDS)), st.dictionaries(words, anything, max_size=4))
def test_any_object_at_all_is_converted_and_checked_or_refused(kind, fields):
    written = {"apiVersion": "cilium.io/v2", "kind": kind, **fields}
    before = copy.deepcopy(written)
    with contextlib.suppress(PolicyError):
        convert(written)
        check(written)
    assert written == before
