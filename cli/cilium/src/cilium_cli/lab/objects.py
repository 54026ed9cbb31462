# SPDX-License-Identifier: Apache-2.0
"""Pod and Namespace objects of the lab's pods, and where they are stored in etcd."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from cilium_core.resources.keys import kind_of

from cilium_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_cli.lab.etcd import Gateway

CNI_CONFIG = "05-cilium.conflist"
POD = kind_of("Pod")
NAMESPACE = kind_of("Namespace")


def new_uid() -> str:
    """Return a random uid as Kubernetes gives them."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def pod_object(
    namespace: str,
    name: str,
    *,
    labels: dict[str, str],
    service_account: str,
    ports: Iterable[dict[str, Any]],
    command: Iterable[str],
) -> dict[str, Any]:
    """Return the Pod object of a pod described by options."""
    container: dict[str, Any] = {"name": "main"}
    if listed := list(ports):
        container["ports"] = listed
    if words := list(command):
        container["command"] = words
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"serviceAccountName": service_account, "containers": [container]},
    }


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Read `a=b` items, several in one text separated by commas."""
    labels = {}
    for item in (item for text in texts for item in text.split(",") if item):
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise InputError(f"label: {item!r} is not KEY=VALUE", "such as app=frontend")
        labels[key] = value
    return labels


def parse_port(text: str) -> dict[str, Any]:
    """Read `http=8080`, `dns=53/UDP` or `8080/TCP` into a container port."""
    name, separator, rest = text.rpartition("=")
    number, _, protocol = rest.partition("/")
    protocol = (protocol or "TCP").upper()
    if not number.isdecimal() or not 0 < int(number) < 65536 or (separator and not name):
        raise InputError(f"port: {text!r} is not NAME=PORT/PROTOCOL", "such as http=8080/TCP")
    if protocol not in {"TCP", "UDP", "SCTP"}:
        raise InputError(f"port: {text!r} has protocol {protocol!r}", "TCP, UDP or SCTP")
    port: dict[str, Any] = {"containerPort": int(number), "protocol": protocol}
    return port | ({"name": name} if name else {})


def read_file(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read Namespace and Pod documents of a YAML file, `-` for stdin; others are refused."""
    from cilium_cli.files import read

    found: dict[str, list[dict[str, Any]]] = {"Namespace": [], "Pod": []}
    for document in read([name]):
        kind = document.object["kind"]
        if kind not in found:
            raise InputError(
                f"{document.source}:{document.line}: {kind} is neither Pod nor Namespace",
                "store other objects with: cilium apply -f",
            )
        if kind == "Pod":
            spec = document.object.setdefault("spec", {})
            if not isinstance(spec, dict) or not isinstance(spec.get("containers", []), list):
                raise InputError(f"{document.source}:{document.line_of('spec')}: spec: not a Pod's")
            spec.setdefault("serviceAccountName", "default")
        found[kind].append(document.object)
    return found["Namespace"], found["Pod"]


def put_pod(store: Gateway, pod: dict[str, Any]) -> None:
    """Store the pod."""
    metadata = pod["metadata"]
    key = POD.key(metadata["namespace"], metadata["name"])
    store.put({key: json.dumps(pod).encode()})


def put_namespace(
    store: Gateway, name: str, labels: dict[str, str], *, replace: bool = False
) -> None:
    """Store the namespace with the label Kubernetes gives it; an existing one keeps its labels."""
    if not replace and store.get(NAMESPACE.key("", name)) is not None:
        return
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels | {"kubernetes.io/metadata.name": name}},
    }
    store.put({NAMESPACE.key("", name): json.dumps(namespace).encode()})


def delete_pod(store: Gateway, namespace: str, name: str) -> None:
    """Remove the pod."""
    store.delete([POD.key(namespace, name)])
