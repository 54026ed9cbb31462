"""Policies that a node reads from files, beside those of the store.

Such a policy goes by its own name with the file's behind it, `NAME (FILE)`. No object of the store
can have that name, so that a file and the store, or two files, never replace each other's policies:
all of them hold. Its rules' labels have the source `directory`.

Pure; reading the files is somebody else's business.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cilium_core.errors import InvalidError
from cilium_core.labels import SOURCE_DIRECTORY, SOURCE_K8S, Label
from cilium_core.policy import kubernetes, translating
from cilium_core.policy.rules import PolicyRef
from cilium_core.resources.documents import read_documents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cilium_core.policy.rules import Origin, Policy, Rule

KINDS: Final = (translating.KIND_NAMESPACED, translating.KIND_CLUSTERWIDE, kubernetes.KIND)
"""The kinds that may be in files."""

_OWN_LABELS: Final = f"{SOURCE_K8S}:io.cilium.k8s.policy."


def read_file(text: str, file: str) -> dict[PolicyRef, Mapping[str, Any]]:
    """Every policy object of a file by the name that it goes by.

    A CiliumNetworkPolicy without namespace becomes a CiliumClusterwideNetworkPolicy. The objects
    are no valid policies yet. Raises `InvalidError`, which names file and line, if anything in the
    file is not an object of a kind for files, so that no file is taken up in part.
    """
    found: dict[PolicyRef, Mapping[str, Any]] = {}
    for document in read_documents(text, file):
        obj = document.object
        kind, metadata = obj.get("kind"), obj.get("metadata")
        if kind not in KINDS:
            raise document.error(f"kind: must be one of {', '.join(KINDS)}")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not isinstance(metadata, dict) or not isinstance(name, str) or not name:
            raise document.error("metadata.name: is required")
        namespace = metadata.get("namespace") or ""
        if not isinstance(namespace, str):
            raise document.error("metadata.namespace: must be text")
        if kind == translating.KIND_NAMESPACED and not namespace:
            kind = translating.KIND_CLUSTERWIDE
        if kind == kubernetes.KIND and not namespace:
            raise document.error("metadata.namespace: is required in a file")
        if kind == translating.KIND_CLUSTERWIDE and namespace:
            raise document.error("metadata.namespace: must not be in an object for all namespaces")
        ref = PolicyRef(kind, namespace, f"{name} ({file})")
        if ref in found:
            raise document.error("metadata.name: is in this file twice")
        found[ref] = _plain({**obj, "kind": kind}, file)
    return found


def file_of(ref: PolicyRef) -> str:
    """The file that a policy by this name is from; empty for one of the store."""
    name, _, rest = ref.name.partition(" (")
    return rest.removesuffix(")") if name else ""


def in_file(policy: Policy, ref: PolicyRef) -> Policy:
    """The policy under the name that it goes by, with labels that tell where it is from."""
    file = file_of(ref)
    rules = tuple(_in_file(rule, file) for rule in policy.rules)
    return replace(policy, ref=ref, rules=rules)


def _in_file(rule: Rule, file: str) -> Rule:
    origin: Origin = rule.origin
    labels = [
        f"{SOURCE_DIRECTORY}:{text.removeprefix(SOURCE_K8S + ':')}"
        if text.startswith(_OWN_LABELS)
        else text
        for text in origin.labels
    ]
    labels.append(str(Label(SOURCE_DIRECTORY, "filename", file)))
    named = replace(origin, name=f"{origin.name} ({file})", labels=tuple(labels))
    return replace(rule, origin=named)


def _plain(obj: dict[str, Any], file: str) -> Mapping[str, Any]:
    """The object as JSON would have it, which is what it is kept as."""
    try:
        plain: Mapping[str, Any] = json.loads(json.dumps(obj, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidError(f"{file}: has values that JSON does not have: {error}") from error
    return plain
