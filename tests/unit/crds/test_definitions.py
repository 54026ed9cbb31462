"""The custom resource definitions: complete, structural, as committed, and fit for real objects."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cilium_core.crds.__main__ import text_of, write
from cilium_core.crds.definitions import DEFINITIONS
from cilium_core.objects.checking import KINDS, check
from cilium_core.policy.options import PERMISSIVE

from tests.unit.policy.worlds import cnp

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "k8s" / "crds"
EXAMPLES = Path(
    os.environ.get("CILIUM_EXAMPLE_POLICIES")
    or ROOT.parent / "shared" / "data" / "example-policies"
)
with_examples = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason=f"no example policies at {EXAMPLES}"
)
BY_KIND = {definition.kind: definition for definition in DEFINITIONS}
SCHEMAS = {kind: definition.schema() for kind, definition in BY_KIND.items()}


def errors(obj: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMAS[obj["kind"]])
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(obj)]


def test_the_committed_files_are_what_the_models_make():
    committed = {path.name: path.read_text() for path in COMMITTED.glob("*.yaml")}
    made = {f"{one.plural}.yaml": text_of(one) for one in DEFINITIONS}

    assert committed == made, "run `make crds`"


def test_writing_removes_what_is_not_defined_any_more(tmp_path):
    (tmp_path / "old.yaml").write_text("")

    write(tmp_path)

    assert len(list(tmp_path.iterdir())) == len(DEFINITIONS)


def test_every_kind_that_is_checked_has_a_definition():
    own = {kind for kind in KINDS if kind.startswith("Cilium")}

    assert own == BY_KIND.keys()


NAMES = {
    "CiliumNetworkPolicy": ("cnp,ciliumnp", "Namespaced", "v2"),
    "CiliumClusterwideNetworkPolicy": ("ccnp", "Cluster", "v2"),
    "CiliumCIDRGroup": ("ccg", "Cluster", "v2,v2alpha1"),
    "CiliumLocalRedirectPolicy": ("clrp", "Namespaced", "v2"),
    "CiliumEndpoint": ("cep,ciliumep", "Namespaced", "v2"),
    "CiliumEndpointSlice": ("ces", "Cluster", "v2alpha1"),
    "CiliumIdentity": ("ciliumid", "Cluster", "v2"),
    "CiliumNode": ("cn,ciliumn", "Cluster", "v2"),
    "CiliumPodIPPool": ("cpip", "Cluster", "v2alpha1"),
    "CiliumLoadBalancerIPPool": (
        "ippools,ippool,lbippool,lbippools",
        "Cluster",
        "v2,v2alpha1",
    ),
    "CiliumExternalWorkload": ("cew", "Cluster", "v2"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_kind_has_the_names_scope_and_versions_that_users_know(kind):
    spec = yaml.safe_load(text_of(BY_KIND[kind]))["spec"]

    names = spec["names"]
    versions = [version["name"] for version in spec["versions"]]
    found = ",".join(names["shortNames"]), spec["scope"], ",".join(versions)
    assert found == NAMES[kind]
    assert names["singular"] == kind.lower()
    assert [version["storage"] for version in spec["versions"]] == [
        index == 0 for index, _ in enumerate(versions)
    ]


def test_the_schema_says_that_it_is_the_one_that_others_know():
    for definition in DEFINITIONS:
        metadata = definition.to_yaml()["metadata"]
        assert metadata["name"] == f"{definition.plural}.cilium.io"
        assert metadata["labels"] == {"io.cilium.k8s.crd.schema.version": "1.33.0"}


LOGIC = ("allOf", "anyOf", "oneOf", "not")
NOT_IN_LOGIC = {"description", "type", "default", "additionalProperties", "nullable"}
KNOWN = {
    *("description", "type", "format", "enum", "pattern", "minimum", "maximum", "minLength"),
    *("maxLength", "minItems", "maxItems", "required", "properties", "additionalProperties"),
    *("items", *LOGIC),
}


def not_structural(schema: dict[str, Any], path: str) -> list[str]:
    """Where a schema breaks the rules for structural ones."""
    found = []
    either = schema.get("x-kubernetes-int-or-string", False)
    if "type" not in schema and not either:
        found.append(f"{path}: no type")
    if either and schema.get("anyOf") != [{"type": "integer"}, {"type": "string"}]:
        found.append(f"{path}: not the one form of an integer or string")
    if "properties" in schema and "additionalProperties" in schema:
        found.append(f"{path}: both properties and additionalProperties")
    if schema.get("type") == "array" and "items" not in schema:
        found.append(f"{path}: items of no type")
    found += [
        f"{path}: unknown {key}"
        for key in schema
        if key not in KNOWN and not key.startswith("x-kubernetes-")
    ]
    for word in LOGIC:
        for part in () if either else schema.get(word, ()):
            found += [f"{path}.{word}: has {key}" for key in NOT_IN_LOGIC & part.keys()]
            missing = set(part.get("required", ())) - schema.get("properties", {}).keys()
            found += [f"{path}.{word}: requires unknown {name}" for name in missing]
    if "pattern" in schema:
        assert "(?" not in schema["pattern"]
        re.compile(schema["pattern"])
    for name, part in schema.get("properties", {}).items():
        found += not_structural(part, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if word in schema:
            found += not_structural(schema[word], f"{path}.{word}")
    return found


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_schema_is_structural(kind):
    assert not_structural(SCHEMAS[kind], kind) == []
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])


@pytest.mark.parametrize("kind", ["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"])
def test_policies_show_whether_they_are_valid(kind):
    (version,) = BY_KIND[kind].to_yaml()["spec"]["versions"]

    columns = {column["name"]: column["jsonPath"] for column in version["additionalPrinterColumns"]}
    assert columns["Valid"] == '.status.conditions[?(@.type=="Valid")].status'
    assert version["subresources"] == {"status": {}}
    conditions = SCHEMAS[kind]["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


@with_examples
def test_real_policies_fit_their_schemas():
    files = sorted(EXAMPLES.rglob("*.yaml"))
    objects = [obj for file in files for obj in yaml.safe_load_all(file.read_text())]
    found = [(obj["metadata"]["name"], errors(obj)) for obj in objects if obj["kind"] in SCHEMAS]

    assert len(found) >= 35
    assert [(name, wrong) for name, wrong in found if wrong] == []


def unknown_fields(obj: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """What a server would prune: fields that the schema does not know."""
    if schema.get("x-kubernetes-preserve-unknown-fields") or path == ".metadata":
        return []
    if isinstance(obj, list):
        return [
            name
            for index, item in enumerate(obj)
            for name in unknown_fields(item, schema["items"], f"{path}[{index}]")
        ]
    if not isinstance(obj, dict):
        return []
    found = []
    for key, value in obj.items():
        part = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
        found += [f"{path}.{key}"] if part is None else unknown_fields(value, part, f"{path}.{key}")
    return found


@with_examples
def test_nothing_of_a_real_policy_would_be_pruned():
    files = sorted(EXAMPLES.rglob("*.yaml"))
    objects = [obj for file in files for obj in yaml.safe_load_all(file.read_text())]

    found = [
        name
        for obj in objects
        if obj["kind"] in SCHEMAS
        for name in unknown_fields(obj, SCHEMAS[obj["kind"]])
    ]
    assert found == []


@pytest.mark.parametrize(
    "spec",
    [
        {"ingress": [{}]},
        {"endpointSelector": {}, "nodeSelector": {}, "ingress": [{}]},
        {"endpointSelector": {}},
        {"endpointSelector": {}, "ingress": [{"fromEntities": ["moon"]}]},
        {"endpointSelector": {}, "ingress": [{"toPorts": [{"ports": [{"port": 80}]}]}]},
        {"endpointSelector": {}, "ingress": [{"toPorts": [{"rules": {}}]}]},
        {"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": "a b"}]}]},
        {"endpointSelector": {}, "ingress": [{"fromRequires": ["a"]}]},
        {"endpointSelector": {}, "ingress": [{"fromCIDRSet": [{}]}]},
    ],
)
def test_a_server_would_refuse_what_the_schema_can_tell(spec):
    assert errors(cnp(spec))


def test_what_the_agents_accept_a_server_accepts():
    for field in ("ingress", "egress"):
        everything = {
            "endpointSelector": {"matchLabels": {"k8s:a": "b"}},
            field: [
                {
                    "icmps": [
                        {"fields": [{"type": "ExtendedEcho Reply"}, {"type": 8, "family": "IPv6"}]}
                    ]
                },
                {
                    "toPorts": [
                        {
                            "ports": [{"port": "http", "protocol": "TCP"}],
                            "rules": {"http": [{"method": "GET", "headers": ["A: b"]}]},
                            "serverNames": ["*.a.io"],
                            "terminatingTLS": {"secret": {"name": "a"}},
                        }
                    ]
                },
            ],
        }
        assert check(cnp(everything), PERMISSIVE).policy
        assert errors(cnp(everything)) == []
