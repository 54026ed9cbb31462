"""Pods and namespaces of the cluster, as far as endpoints need them.

A table of what the resource source last said, changed on the event loop by the agent's watches.
Endpoints take their labels from it; listeners hear which pods may have new ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cilium_core.labels import LabelFilter, LabelSet, pod_labels

from cilium_agent.endpoints.records import NamedPort
from cilium_agent.errors import PodNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PodKey = tuple[str, str]

_TEMPLATE_HASH = "pod-template-hash"
_FINISHED = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True)
class Pod:
    """What the agent uses of a Pod object. `workloads` are (kind, name) of its controllers."""

    namespace: str
    name: str
    uid: str
    node: str
    labels: Mapping[str, str]
    service_account: str
    named_ports: tuple[NamedPort, ...]
    workloads: tuple[tuple[str, str], ...]
    host_network: bool
    finished: bool

    @property
    def key(self) -> PodKey:
        """Namespace and name."""
        return self.namespace, self.name


def parse_pod(document: Mapping[str, Any]) -> Pod:
    """Read a Pod object; fields of a wrong shape count as absent."""
    metadata = _object(document, "metadata")
    spec = _object(document, "spec")
    labels = _strings(metadata.get("labels"))
    return Pod(
        namespace=_string(metadata, "namespace") or "default",
        name=_string(metadata, "name"),
        uid=_string(metadata, "uid"),
        node=_string(spec, "nodeName"),
        labels=labels,
        service_account=_string(spec, "serviceAccountName") or _string(spec, "serviceAccount"),
        named_ports=tuple(sorted(_named_ports(spec))),
        workloads=tuple(_workloads(metadata, labels)),
        host_network=spec.get("hostNetwork") is True,
        finished=_string(_object(document, "status"), "phase") in _FINISHED,
    )


class PodTable:
    """Pods by namespace and name, namespaces by name."""

    def __init__(self, cluster: str, label_filter: LabelFilter) -> None:
        self._cluster = cluster
        self._filter = label_filter
        self._pods: dict[PodKey, Pod] = {}
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._doubtful_pods: set[PodKey] = set()
        self._doubtful_namespaces: set[str] = set()
        self._waiting: dict[PodKey, set[asyncio.Future[Pod]]] = {}
        self._listeners: list[Callable[[Iterable[PodKey]], None]] = []

    def listen(self, listener: Callable[[Iterable[PodKey]], None]) -> None:
        """Call `listener` with the pods that may have changed."""
        self._listeners.append(listener)

    def __iter__(self) -> Iterator[Pod]:
        return iter(self._pods.values())

    def get(self, namespace: str, name: str) -> Pod | None:
        """A pod, if its object exists."""
        return self._pods.get((namespace, name))

    def upsert_pod(self, document: Mapping[str, Any]) -> None:
        """A Pod object as it is now."""
        pod = parse_pod(document)
        self._doubtful_pods.discard(pod.key)
        if self._pods.get(pod.key) == pod:
            return
        self._pods[pod.key] = pod
        for waiter in self._waiting.pop(pod.key, ()):
            if not waiter.done():
                waiter.set_result(pod)
        self._notify([pod.key])

    def delete_pod(self, namespace: str, name: str) -> None:
        """A Pod object is gone."""
        self._doubtful_pods.discard((namespace, name))
        if self._pods.pop((namespace, name), None) is not None:
            self._notify([(namespace, name)])

    def upsert_namespace(self, document: Mapping[str, Any]) -> None:
        """A Namespace object as it is now."""
        metadata = _object(document, "metadata")
        name, labels = _string(metadata, "name"), _strings(metadata.get("labels"))
        doubted = name in self._doubtful_namespaces
        self._doubtful_namespaces.discard(name)
        # The API server gives every namespace this label; objects stored by hand lack it.
        labels = {"kubernetes.io/metadata.name": name, **labels}
        if doubted or self._namespaces.get(name) != labels:
            self._namespaces[name] = labels
            self._notify(key for key in self._pods if key[0] == name)

    def delete_namespace(self, name: str) -> None:
        """A Namespace object is gone."""
        doubted = name in self._doubtful_namespaces
        self._doubtful_namespaces.discard(name)
        if self._namespaces.pop(name, None) is not None or doubted:
            self._notify(key for key in self._pods if key[0] == name)

    def doubt_pod(self, namespace: str, name: str) -> None:
        """A Pod object exists, but cannot be read."""
        self._doubtful_pods.add((namespace, name))

    def doubt_namespace(self, name: str) -> None:
        """A Namespace object exists, but cannot be read."""
        self._doubtful_namespaces.add(name)

    def is_doubtful(self, namespace: str, name: str) -> bool:
        """Whether the objects leave it unclear if a pod exists or what its labels are."""
        return (namespace, name) in self._doubtful_pods or namespace in self._doubtful_namespaces

    def identity_labels(self, pod: Pod) -> LabelSet:
        """The labels that make the pod's identity."""
        namespace_labels = self._namespaces.get(
            pod.namespace, {"kubernetes.io/metadata.name": pod.namespace}
        )
        return self._filter.apply(
            pod_labels(
                pod.labels,
                namespace=pod.namespace,
                namespace_labels=namespace_labels,
                service_account=pod.service_account,
                cluster=self._cluster,
            )
        )

    async def wait_for(self, namespace: str, name: str, timeout_s: float) -> Pod:
        """The pod, once its object is there; raises `PodNotFoundError` after `timeout_s`."""
        key = (namespace, name)
        if (pod := self._pods.get(key)) is not None:
            return pod
        arrival: asyncio.Future[Pod] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(arrival)
        try:
            return await asyncio.wait_for(arrival, timeout_s)
        except TimeoutError as error:
            raise PodNotFoundError(
                f"no Pod object {namespace}/{name} appeared within {timeout_s:g} s; "
                "apply it before its network is asked for"
            ) from error
        finally:
            if (waiters := self._waiting.get(key)) is not None:
                waiters.discard(arrival)
                if not waiters:
                    del self._waiting[key]

    def _notify(self, keys: Iterable[PodKey]) -> None:
        changed = list(keys)
        for listener in self._listeners:
            listener(changed)


def _named_ports(spec: Mapping[str, Any]) -> Iterator[NamedPort]:
    containers = spec.get("containers")
    for container in containers if isinstance(containers, list) else ():
        ports = container.get("ports") if isinstance(container, dict) else None
        for port in ports if isinstance(ports, list) else ():
            if not isinstance(port, dict):
                continue
            name, number = port.get("name"), port.get("containerPort")
            if isinstance(name, str) and name and isinstance(number, int) and 0 < number < 65536:
                protocol = port.get("protocol")
                yield NamedPort(name, number, protocol if isinstance(protocol, str) else "TCP")


def _workloads(metadata: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    owners = metadata.get("ownerReferences")
    for owner in owners if isinstance(owners, list) else ():
        if not isinstance(owner, dict) or owner.get("controller") is not True:
            continue
        kind, name = _string(owner, "kind"), _string(owner, "name")
        suffix = f"-{labels.get(_TEMPLATE_HASH, '')}"
        if kind == "ReplicaSet" and len(suffix) > 1 and name.endswith(suffix):
            kind, name = "Deployment", name.removesuffix(suffix)
        if kind and name:
            yield kind, name


def _object(document: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = document.get(field)
    return value if isinstance(value, dict) else {}


def _string(document: Mapping[str, Any], field: str) -> str:
    value = document.get(field)
    return value if isinstance(value, str) else ""


def _strings(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {
        key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, str)
    }
