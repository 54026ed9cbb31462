from __future__ import annotations

import pytest
from cilium_core.errors import InvalidError
from cilium_core.resources.documents import DocumentError, load_documents
from cilium_core.resources.keys import KINDS, Kind, identify, key_of, kind_of

CNP = """\
# policies
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: secure-api
spec:
  ingress:
    - fromEndpoints:
        - matchLabels: {app: frontend}
      toPorts:
        - ports:
            - port: "8080"
---
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Namespace
    metadata: {name: shop}
  - apiVersion: v1
    kind: Pod
    metadata: {name: api, namespace: shop}
"""


def test_documents_and_lists_become_objects_with_their_lines() -> None:
    documents = load_documents(CNP, "a.yaml")
    assert [key_of(document.object) for document in documents] == [
        "cilium/resources/v1/cilium.io/ciliumnetworkpolicies/default/secure-api",
        "cilium/resources/v1/core/namespaces/-/shop",
        "cilium/resources/v1/core/pods/shop/api",
    ]
    assert [document.line for document in documents] == [2, 18, 21]
    assert documents[0].object["spec"]["ingress"][0]["toPorts"][0]["ports"][0]["port"] == "8080"


def test_a_field_is_found_again_on_its_line() -> None:
    policy, _namespace, pod = load_documents(CNP, "a.yaml")
    assert policy.line_of("spec.ingress[0].toPorts[0].ports[0].port") == 12
    assert policy.line_of("spec.ingress[0].toPorts[0].rules") == 11
    assert pod.line_of("metadata.name") == 23
    assert str(policy.error("spec.ingress[0].toPorts: too many")) == (
        "a.yaml:10: spec.ingress[0].toPorts: too many"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: [", r"f:2: not valid YAML"),
        ("- a\n- b", r"f:1: the document is no object but a list"),
        ("text", r"f:1: the document is no object but a plain value"),
        ("kind: Pod\nkind: Pod", r"f:2: the key 'kind' stands here twice"),
        ("apiVersion: v1", r"f:1: kind: missing"),
        ("kind: Pot\napiVersion: v1", r"f:1: kind: 'Pot' is not known"),
        ("apiVersion: v1\nkind: pod", r"f:2: kind: 'pod' is not known; did you mean Pod\?"),
        ("kind: Pod\napiVersion: v2/x", r"f:2: apiVersion: Pod needs 'v1'"),
        ("kind: Pod\napiVersion: v1", r"f:1: metadata: missing"),
        (
            "kind: Pod\napiVersion: v1\nmetadata:\n  name: Api_1",
            r"f:4: metadata.name: 'Api_1' is not a name",
        ),
        (
            "kind: Namespace\napiVersion: v1\nmetadata:\n  name: a\n  namespace: b",
            r"f:5: metadata.namespace: Namespace is cluster-wide",
        ),
        ("kind: List\nitems: 1", r"f:2: items: a List must hold a list"),
        ("kind: List\nitems:\n  - 1", r"f:3: items\[0\] is no object"),
        ("? [a]\n: b", r"f:1: a key must be plain text"),
        ("a: &a {b: 1}\nc: !!python/object:os.system {}", r"f:2|f:1"),
        ("a: !!int x", r"f:1: "),
    ],
)
def test_malformed_documents_are_refused_with_source_and_line(text: str, error: str) -> None:
    with pytest.raises(DocumentError, match=error):
        load_documents(text, "f")


def test_anchors_that_blow_up_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(DocumentError, match="too large"):
        load_documents("\n".join(lines), "f")


def test_a_date_stays_text() -> None:
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {when: 2026-01-02}"
    assert load_documents(text, "f")[0].object["spec"] == {"when": "2026-01-02"}


def test_an_object_without_a_namespace_is_in_default() -> None:
    pod = load_documents("{apiVersion: v1, kind: Pod, metadata: {name: a}}", "f")[0].object
    assert pod["metadata"]["namespace"] == "default"
    assert identify(pod)[1:] == ("default", "a")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_is_found_by_name_plural_and_alias_and_its_key_reads_back(kind: Kind) -> None:
    for word in (kind.name, kind.plural, *kind.aliases):
        assert kind_of(word.upper()) is kind
    namespace = "ns" if kind.namespaced else ""
    assert kind.from_key(kind.key(namespace, "n")) == (namespace, "n")


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(InvalidError, match="'gadget' is not known; known are Pod, "):
        kind_of("gadget")
