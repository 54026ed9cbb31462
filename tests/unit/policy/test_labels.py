"""Labels: text forms, sets, the identity filter, and what a pod's endpoint carries."""

from __future__ import annotations

import pytest
from cilium_core.labels import Label, LabelError, LabelFilter, LabelSet, pod_labels
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k8s:app=web", Label("k8s", "app", "web")),
        ("app=web", Label("unspec", "app", "web")),
        ("$host", Label("reserved", "host")),
        ("reserved.host", Label("reserved", "host")),
        ("reserved:=host", Label("reserved", "host")),
        ("reserved:host", Label("reserved", "host")),
        ("a:b:c=d=e", Label("a", "b:c", "d=e")),
        ("app=a:b", Label("unspec", "app", "a:b")),
        ("k8s:empty=", Label("k8s", "empty")),
    ],
)
def test_a_label_is_read_from_every_text_form(text, expected):
    assert Label.parse(text) == expected


def test_a_label_in_a_selector_has_any_source():
    assert Label.parse("app=web", "any") == Label("any", "app", "web")


@pytest.mark.parametrize("text", ["", ":", "k8s:", "k8s:=x", "$", "=x"])
def test_a_label_without_a_key_is_refused(text):
    with pytest.raises(LabelError, match="has no key"):
        Label.parse(text)


def test_an_empty_value_is_printed_without_the_equals_sign():
    assert str(Label("k8s", "app", "web")) == "k8s:app=web"
    assert str(Label("reserved", "host")) == "reserved:host"


def test_a_set_keeps_one_label_per_key_whatever_the_source():
    labels = LabelSet([Label("k8s", "app", "web"), Label("container", "app", "db")])

    assert labels.texts() == ["container:app=db"]


def test_the_storage_key_is_sorted_and_writes_every_separator():
    labels = LabelSet.parse(["reserved:host", "k8s:b=2", "k8s:a=1"])

    assert labels.storage_key == "k8s:a=1;k8s:b=2;reserved:host=;"


texts = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)


@given(st.lists(st.builds(Label, texts, texts, texts | st.just("")), max_size=6))
def test_a_set_survives_its_storage_key(labels):
    stored = LabelSet(labels)

    assert LabelSet.from_storage_key(stored.storage_key) == stored
    assert hash(LabelSet.from_storage_key(stored.storage_key)) == hash(stored)


@pytest.mark.parametrize("text", ["k8s:a=1", "a=1;", "k8s:a;", "k8s:=1;", ":a=1;", ";"])
def test_a_broken_storage_key_is_refused(text):
    with pytest.raises(LabelError):
        LabelSet.from_storage_key(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("k8s:app=web", True),
        ("reserved:host", True),
        ("k8s:io.kubernetes.pod.namespace=x", True),
        ("k8s:io.cilium.k8s.namespace.labels.team=a", True),
        ("k8s:io.cilium.k8s.policy.cluster=default", True),
        ("k8s:io.cilium.k8s.policy.serviceaccount=web", True),
        ("k8s:app.kubernetes.io/name=web", True),
        ("k8s:io.kubernetes.other=1", False),
        ("k8s:kubernetes.io/arch=arm64", False),
        ("k8s:statefulset.kubernetes.io/pod-name=web-0", False),
        ("k8s:apps.kubernetes.io/pod-index=0", False),
        ("k8s:batch.kubernetes.io/job-completion-index=0", False),
        ("k8s:batch.kubernetes.io/controller-uid=1", False),
        ("k8s:failure-domain.beta.kubernetes.io/zone=a", False),
        ("k8s:k8s.io/cluster=x", False),
        ("k8s:topology.kubernetes.io/zone=a", False),
        ("k8s:pod-template-generation=1", False),
        ("k8s:pod-template-hash=1", False),
        ("k8s:controller-revision-hash=1", False),
        ("k8s:controller-uid=1", False),
        ("k8s:annotation.sidecar=1", False),
        ("k8s:etcd_node=1", False),
    ],
)
def test_the_default_filter_keeps_what_identities_are_made_of(text, kept):
    assert LabelFilter().keeps(Label.parse(text)) == kept


def test_a_users_keep_rule_drops_every_label_that_no_rule_keeps():
    chosen = LabelFilter.parse("k8s:app")

    assert chosen.keeps(Label.parse("k8s:app=web"))
    assert chosen.keeps(Label.parse("k8s:io.kubernetes.pod.namespace=x"))
    assert not chosen.keeps(Label.parse("k8s:tier=front"))
    assert not chosen.keeps(Label.parse("container:app=web"))


def test_a_users_ignore_rule_drops_only_what_it_names():
    chosen = LabelFilter.parse("k8s:!tier")

    assert chosen.keeps(Label.parse("k8s:app=web"))
    assert not chosen.keeps(Label.parse("k8s:tier=front"))


def test_the_longer_keep_match_beats_the_shorter_ignore_match():
    chosen = LabelFilter.parse("!my kept my.special")

    assert not chosen.keeps(Label.parse("k8s:my.label=1"))
    assert chosen.keeps(Label.parse("k8s:my.special=1"))


@pytest.mark.parametrize("text", ["k8s:", "!", "k8s:!", "(", "k8s:["])
def test_a_filter_that_is_no_expression_is_refused(text):
    with pytest.raises(LabelError):
        LabelFilter.parse(text)


def test_a_pod_carries_its_namespace_service_account_and_cluster():
    labels = pod_labels(
        {"app": "web"},
        namespace="shop",
        namespace_labels={"team": "red", "kubernetes.io/metadata.name": "shop"},
        service_account="runner",
        cluster="east",
    )

    assert labels.texts() == [
        "k8s:app=web",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
        "k8s:io.cilium.k8s.namespace.labels.team=red",
        "k8s:io.cilium.k8s.policy.cluster=east",
        "k8s:io.cilium.k8s.policy.serviceaccount=runner",
        "k8s:io.kubernetes.pod.namespace=shop",
    ]


def test_a_pod_cannot_forge_what_the_agent_says_about_it():
    labels = pod_labels(
        {
            "io.cilium.k8s.policy.serviceaccount": "admin",
            "io.cilium.k8s.policy.cluster": "other",
            "io.cilium.k8s.namespace.labels.team": "admin",
            "io.kubernetes.pod.namespace": "kube-system",
        },
        namespace="shop",
    )

    assert labels.texts() == [
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.kubernetes.pod.namespace=shop",
    ]


@pytest.mark.parametrize(
    "labels", [{"a": "b;k8s:admin=true"}, {"a;b": "c"}, {"a=b": "c"}, {"a:b": "c"}, {"": "c"}]
)
def test_a_label_that_could_forge_a_storage_key_is_refused(labels):
    with pytest.raises(LabelError, match="not a Kubernetes label"):
        pod_labels(labels, namespace="shop")
