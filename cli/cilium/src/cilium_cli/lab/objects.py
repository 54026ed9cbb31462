# SPDX-License-Identifier: Apache-2.0
"""Pod and Namespace objects of the lab's pods, and where they are stored in etcd."""

from __future__ import annotations

import ipaddress
import json
import os
from datetime import UTC, datetime
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
    host_network: bool = False,
) -> dict[str, Any]:
    """Return the Pod object of a pod described by options."""
    container: dict[str, Any] = {"name": "main"}
    spec: dict[str, Any] = {"serviceAccountName": service_account, "containers": [container]}
    if host_network:
        spec["hostNetwork"] = True
    if listed := list(ports):
        container["ports"] = listed
    if words := list(command):
        container["command"] = words
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": spec,
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


def parse_host_port(text: str) -> dict[str, Any]:
    """Read `8080:80`, `5353:53/UDP` or `127.0.0.1:8080:80` into a container port with a hostPort.

    An IPv6 address stands in brackets.
    """
    front, separator, inner = text.rpartition(":")
    address, _, outer = front.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not separator or not outer.isdecimal() or not 0 < int(outer) < 65536:
        raise InputError(
            f"host port: {text!r} is not [ADDRESS:]HOSTPORT:PORT/PROTOCOL", "such as 8080:80/TCP"
        )
    port = parse_port(inner) | {"hostPort": int(outer)}
    if address:
        try:
            port["hostIP"] = str(ipaddress.ip_address(address))
        except ValueError as error:
            raise InputError(f"host port: {text!r}: {error}") from error
    return port


def join_ports(
    ports: Iterable[dict[str, Any]], host_ports: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Put host ports to the container ports they lead to, which keep their names."""
    joined = list(ports)
    for extra in host_ports:
        for at, port in enumerate(joined):
            same = all(port[key] == extra[key] for key in ("containerPort", "protocol"))
            if same and "hostPort" not in port:
                joined[at] = port | extra
                break
        else:
            joined.append(extra)
    return joined


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


def get_pod(store: Gateway, namespace: str, name: str) -> dict[str, Any] | None:
    """Return the stored pod; None when there is none."""
    value = store.get(POD.key(namespace, name))
    if value is None:
        return None
    pod: dict[str, Any] = json.loads(value)
    return pod


def set_ready(pod: dict[str, Any], *, ready: bool) -> None:
    """Say in the pod's status whether it serves; services send new connections to those only."""
    status = pod.setdefault("status", {})
    known = {one["type"]: one for one in status.get("conditions", ())}
    for kind in ("ContainersReady", "Ready"):
        value = str(ready)
        if known.get(kind, {}).get("status") != value:
            known[kind] = {"type": kind, "status": value, "lastTransitionTime": present()}
    status["conditions"] = list(known.values())


def mark_deleted(pod: dict[str, Any], grace_s: float) -> None:
    """Say that the pod is terminating: it goes after `grace_s` seconds at the latest."""
    pod["metadata"]["deletionTimestamp"] = present()
    pod["metadata"]["deletionGracePeriodSeconds"] = int(grace_s)


def present() -> str:
    """Return the time as objects have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")[:-6] + "Z"


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
