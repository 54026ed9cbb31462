"""The table of all services that a node translates: objects in, changes of frontends out.

A `ServiceTable` belongs to one task or thread; it does no I/O and never fails on an object, however
malformed: what was left out is in `remarks`. Objects only mark the services they touch; those are
built anew when somebody asks, so that a burst of changes costs one build per service.

No two services have a frontend at the same place. Where several claim one, the more specific kind
has it, then the older object, then the first by name; the others are remarked on, and get it when
it becomes free.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cilium_core.errors import InvalidError
from cilium_core.label_selectors import parse_selector
from cilium_core.policy.errors import PolicyError
from cilium_core.services import building, redirecting
from cilium_core.services.backends import candidates
from cilium_core.services.fields import named
from cilium_core.services.models import BackendState, Frontend, FrontendKind, L4Address, Scope
from cilium_core.services.models import ServiceName as _ServiceName
from cilium_core.services.objects import (
    WHOLE_ADDRESS,
    HealthCheck,
    PodName,
    Remark,
    ServiceOptions,
)
from cilium_core.services.reading import LABEL_NODE, read_pod, read_service, read_slice

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cilium_core.policy.local_redirects import LocalRedirect
    from cilium_core.services.models import Address, ServiceName
    from cilium_core.services.objects import (
        Candidate,
        LocalPod,
        NodeFacts,
        ServiceObject,
        ServicePort,
        SliceObject,
    )

Key = tuple[L4Address, Scope]
"""Where a frontend is; no two are at the same."""

_FIRST: Final = {
    FrontendKind.CLUSTER_IP: 1,
    FrontendKind.NODE_PORT: 2,
    FrontendKind.LOAD_BALANCER: 3,
    FrontendKind.EXTERNAL_IPS: 4,
    FrontendKind.LOCAL_REDIRECT: 5,
    FrontendKind.HOST_PORT: 6,
}
"""Who has a place that several claim. A redirect of a service by its name comes before all: 0."""


class Changes(NamedTuple):
    """What to do to be where the table is: every key is in one of the two at most."""

    upserts: tuple[Frontend, ...]
    deletes: tuple[Key, ...]


class ServiceTable:
    """All services of a cluster, as one node serves them."""

    def __init__(self, node: NodeFacts, options: ServiceOptions | None = None) -> None:
        self._node = node
        self._options = options or ServiceOptions()
        self._services: dict[ServiceName, ServiceObject] = {}
        self._slices: defaultdict[ServiceName, dict[str, SliceObject]] = defaultdict(dict)
        self._slice_owners: dict[tuple[str, str], ServiceName] = {}
        self._overrides: dict[L4Address, BackendState] = {}
        self._pods: dict[PodName, LocalPod] = {}
        self._pod_addresses: defaultdict[Address, set[PodName]] = defaultdict(set)
        self._homeless: defaultdict[Address, set[tuple[str, str]]] = defaultdict(set)
        """Slices with endpoints that do not say on which node they are."""
        self._redirects: dict[ServiceName, LocalRedirect] = {}
        self._redirects_of: dict[tuple[str, str], tuple[ServiceName, ...]] = {}
        self._redirect_pods: dict[ServiceName, tuple[LocalPod, ...]] = {}
        self._checks: dict[ServiceName, HealthCheck] = {}
        self._remarks: dict[object, tuple[Remark, ...]] = {}
        self._stale: set[ServiceName] = set()
        self._dirty: set[ServiceName] = set()
        self._built: dict[ServiceName, dict[Key, Frontend]] = {}
        self._claims: defaultdict[L4Address, set[ServiceName]] = defaultdict(set)
        self._published: dict[Key, Frontend] = {}
        self._upserts: dict[Key, Frontend] = {}
        self._deletes: set[Key] = set()

    # ---- objects ----

    @property
    def node(self) -> NodeFacts:
        """The node that the table is made for."""
        return self._node

    def set_node(self, node: NodeFacts) -> None:
        """What is known of the node now; everything that it may change is built anew."""
        before, self._node = self._node, node
        if before == node:
            return
        if before == replace(node, remote_addresses=before.remote_addresses):
            self._stale |= {
                name
                for name, service in self._services.items()
                if service.external_ips or service.load_balancer_ips
            }
            return
        self._stale |= self._built.keys() | self._services.keys() | self._redirects.keys()
        self._stale |= {building.host_port_service(pod) for pod in self._pods.values()}

    def upsert_service(self, obj: Mapping[str, Any]) -> None:
        """A Service as it is now."""
        service, remarks = read_service(obj)
        self._remark(("Service", service.name), remarks)
        if self._services.get(service.name) == service:
            return
        self._services[service.name] = service
        self._touch(service.name)

    def delete_service(self, obj: Mapping[str, Any]) -> None:
        """A Service is gone; only its name is looked at."""
        name = _ServiceName(*named(obj, "Service")[:2])
        self._remark(("Service", name), ())
        if self._services.pop(name, None) is not None:
            self._touch(name)

    def upsert_slice(self, obj: Mapping[str, Any]) -> None:
        """An EndpointSlice as it is now."""
        part, remarks = read_slice(obj)
        key = (part.namespace, part.name)
        self._remark(("EndpointSlice", *key), remarks)
        owner = self._slice_owners.get(key)
        if owner is not None and self._slices[owner].get(part.name) == part:
            return
        self._drop_slice(key)
        if part.service.name:
            self._slice_owners[key] = part.service
            self._slices[part.service][part.name] = part
            for address in _homeless(part):
                self._homeless[address].add(key)
            self._stale.add(part.service)

    def delete_slice(self, obj: Mapping[str, Any]) -> None:
        """An EndpointSlice is gone; only its name is looked at."""
        key = named(obj, "EndpointSlice")[:2]
        self._remark(("EndpointSlice", *key), ())
        self._drop_slice(key)

    def _drop_slice(self, key: tuple[str, str]) -> None:
        owner = self._slice_owners.pop(key, None)
        if owner is None:
            return
        part = self._slices[owner].pop(key[1])
        for address in _homeless(part):
            self._homeless[address].discard(key)
            if not self._homeless[address]:
                del self._homeless[address]
        if not self._slices[owner]:
            del self._slices[owner]
        self._stale.add(owner)

    def upsert_pod(self, obj: Mapping[str, Any]) -> None:
        """A Pod object as it is now; one of another node counts as gone from here."""
        pod, node, remarks = read_pod(obj)
        name = PodName(*named(obj, "Pod")[:2])
        here = node == self._node.name
        self._remark(("Pod", name), remarks if here else ())
        if pod is not None and here:
            self.set_pod(pod)
        else:
            self.remove_pod(name)

    def delete_pod(self, obj: Mapping[str, Any]) -> None:
        """A Pod object is gone; only its name is looked at."""
        name = PodName(*named(obj, "Pod")[:2])
        self._remark(("Pod", name), ())
        self.remove_pod(name)

    def set_pod(self, pod: LocalPod) -> None:
        """A pod of this node as it is now, however it became known."""
        before = self._pods.get(pod.name)
        if before == pod:
            return
        self._pods[pod.name] = pod
        self._pod_changed(before, pod)

    def remove_pod(self, name: PodName) -> None:
        """A pod is no longer on this node."""
        before = self._pods.pop(name, None)
        if before is not None:
            self._pod_changed(before, None)

    def _pod_changed(self, before: LocalPod | None, now: LocalPod | None) -> None:
        both = [pod for pod in (before, now) if pod is not None]
        if any(pod.host_ports for pod in both):
            self._stale.add(building.host_port_service(both[0]))
        for name, redirect in self._redirects.items():
            if any(redirect.pods.matches(pod.labels) for pod in both):
                self._stale.add(name)
        old = set(before.addresses) if before is not None else set()
        new = set(now.addresses) if now is not None else set()
        for address in old - new:
            self._pod_addresses[address].discard(both[0].name)
            if not self._pod_addresses[address]:
                del self._pod_addresses[address]
        for address in new - old:
            self._pod_addresses[address].add(both[0].name)
        for address in old ^ new:
            slices = self._homeless.get(address, ())
            self._stale |= {self._slice_owners[key] for key in slices}

    def upsert_redirect_policy(self, obj: Mapping[str, Any]) -> None:
        """A CiliumLocalRedirectPolicy as it is now; one that is refused redirects nothing."""
        namespace, name, fields = named(obj, "CiliumLocalRedirectPolicy")
        try:
            redirects = redirecting.read_redirects(obj)
        except PolicyError as error:
            for problem in error.problems:
                fields.remark(problem.path, f"{problem.message}; nothing is redirected")
            redirects = ()
        for redirect in redirects:
            for warning in redirect.warnings:
                path, _, text = warning.partition(": ")
                fields.remark(path, text)
        self._remark(("CiliumLocalRedirectPolicy", namespace, name), fields.remarks)
        self._set_redirects((namespace, name), redirects)

    def delete_redirect_policy(self, obj: Mapping[str, Any]) -> None:
        """A CiliumLocalRedirectPolicy is gone; only its name is looked at."""
        key = named(obj, "CiliumLocalRedirectPolicy")[:2]
        self._remark(("CiliumLocalRedirectPolicy", *key), ())
        self._set_redirects(key, ())

    def _set_redirects(self, key: tuple[str, str], redirects: Sequence[LocalRedirect]) -> None:
        now = {redirecting.redirect_service(one): one for one in redirects}
        before = self._redirects_of.pop(key, ())
        for name in before:
            if self._redirects.get(name) != now.get(name):
                self._stale.add(name)
            self._redirects.pop(name, None)
        if now:
            self._redirects_of[key] = tuple(now)
            self._redirects.update(now)
            self._stale |= now.keys() - set(before)

    def override_state(self, backend: L4Address, state: BackendState | None) -> None:
        """Put an active backend into another state, whatever services say; None ends that."""
        if state is None or state is BackendState.ACTIVE:
            self._overrides.pop(backend, None)
        else:
            self._overrides[backend] = state
        self._stale |= {
            name
            for name, slices in self._slices.items()
            if any(
                backend.address in endpoint.addresses
                for part in slices.values()
                for endpoint in part.endpoints
            )
        }

    # ---- what it comes to ----

    def services(self) -> tuple[ServiceName, ...]:
        """Every service that has frontends, in order."""
        self._refresh()
        return tuple(sorted({one.service for one in self._published.values()}))

    def frontends(self, name: ServiceName) -> tuple[Frontend, ...]:
        """The frontends that a service has; not those that another one has at the same place."""
        self._refresh()
        return tuple(
            one
            for key in self._built.get(name, ())
            if (one := self._published.get(key)) is not None and one.service == name
        )

    def all_frontends(self) -> tuple[Frontend, ...]:
        """The frontends of all services."""
        self._refresh()
        return tuple(self._published.values())

    def frontend(self, at: L4Address, scope: Scope = Scope.EXTERNAL) -> Frontend | None:
        """The frontend at a place."""
        self._refresh()
        return self._published.get((at, scope))

    def take_dirty(self) -> frozenset[ServiceName]:
        """The services whose frontends have changed since this was asked last."""
        self._refresh()
        dirty, self._dirty = frozenset(self._dirty), set()
        return dirty

    def take_changes(self) -> Changes:
        """What has changed since this was asked last, all services together."""
        self._refresh()
        changes = Changes(tuple(self._upserts.values()), tuple(self._deletes))
        self._upserts, self._deletes = {}, set()
        return changes

    def health_checks(self) -> tuple[HealthCheck, ...]:
        """Every service with a port for health checks, with its endpoints on this node."""
        self._refresh()
        return tuple(self._checks[name] for name in sorted(self._checks))

    def redirects(self) -> tuple[tuple[LocalRedirect, tuple[LocalPod, ...]], ...]:
        """All local redirects with the pods that they lead to."""
        self._refresh()
        return tuple(
            (self._redirects[name], self._redirect_pods.get(name, ()))
            for name in sorted(self._redirects)
        )

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """All that is wrong with objects, in order."""
        self._refresh()
        found = {remark for remarks in self._remarks.values() for remark in remarks}
        return tuple(sorted(found))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The same as texts."""
        return tuple(str(remark) for remark in self.remarks)

    # ---- building ----

    def _touch(self, name: ServiceName) -> None:
        self._stale.add(name)
        for redirect_name, redirect in self._redirects.items():
            if (redirect.namespace, redirect.service) == (name.namespace, name.name):
                self._stale.add(redirect_name)

    def _remark(self, key: object, remarks: Iterable[Remark]) -> None:
        found = tuple(dict.fromkeys(remarks))
        if found:
            self._remarks[key] = found
        else:
            self._remarks.pop(key, None)

    def _refresh(self) -> None:
        if not self._stale:
            return
        stale, self._stale = self._stale, set()
        places: set[L4Address] = set()
        for name in stale:
            before = self._built.pop(name, {})
            now: dict[Key, Frontend] = {}
            for one in self._build(name):
                now.setdefault((one.at, one.scope), one)
            for at, _ in before.keys() - now.keys():
                self._claims[at].discard(name)
            for at, _ in now:
                self._claims[at].add(name)
            if now:
                self._built[name] = now
            if before != now:
                places |= {at for at, _ in before.keys() | now.keys()}
        for at in places:
            self._settle(at)

    def _settle(self, at: L4Address) -> None:
        """Give a place to whom it belongs."""
        claimants = self._claims.get(at, set())
        self._remark(at, ())
        if not claimants:
            self._claims.pop(at, None)
            owner = None
        elif len(claimants) == 1:
            owner = next(iter(claimants))
        else:
            owner, *others = sorted(claimants, key=lambda name: self._precedence(name, at))
            if at.port != WHOLE_ADDRESS:
                lost = (one for one in others if not self._is_redirected(one, owner))
                self._remark(at, [self._conflict(at, owner, one) for one in lost])
        for scope in Scope:
            key = (at, scope)
            self._publish(key, self._built[owner].get(key) if owner is not None else None)

    def _publish(self, key: Key, now: Frontend | None) -> None:
        before = self._published.get(key)
        if before == now:
            return
        if before is not None:
            self._dirty.add(before.service)
        self._upserts.pop(key, None)
        if now is None:
            del self._published[key]
            self._deletes.add(key)
        else:
            self._published[key] = self._upserts[key] = now
            self._deletes.discard(key)
            self._dirty.add(now.service)

    def _precedence(self, name: ServiceName, at: L4Address) -> tuple[int, str, ServiceName]:
        built = self._built[name]
        kind = next(built[at, scope] for scope in Scope if (at, scope) in built).kind
        redirect = self._redirects.get(name)
        if redirect is not None and redirect.address is None:
            return 0, "", name
        service = self._services.get(name)
        return _FIRST[kind], service.created if service is not None else "", name

    def _conflict(self, at: L4Address, owner: ServiceName, other: ServiceName) -> Remark:
        text = f"{at} is left out, as {self._subject(owner)} has it already"
        return Remark(self._subject(other), "spec", text)

    def _subject(self, name: ServiceName) -> str:
        own, _, kind = name.name.partition(":")
        kinds = {"": "Service", "host-port": "Pod", "local-redirect": "CiliumLocalRedirectPolicy"}
        return f"{kinds[kind]} {name.namespace}/{own}"

    def _is_redirected(self, other: ServiceName, owner: ServiceName) -> bool:
        """Whether the owner is a redirect of just that service."""
        redirect = self._redirects.get(owner)
        return redirect is not None and (redirect.namespace, redirect.service) == (
            other.namespace,
            other.name,
        )

    def _build(self, name: ServiceName) -> Sequence[Frontend]:
        self._checks.pop(name, None)
        self._remark(name, ())
        if ":" in name.name:
            return self._build_redirect(name) or self._build_host_ports(name)
        service = self._services.get(name)
        if service is None or not self._is_served_here(service):
            return ()
        backends: dict[ServicePort, tuple[Candidate, ...]] = {
            port: candidates(
                service,
                port,
                self._slices.get(name, {}).values(),
                self._node,
                self._pod_addresses,
                self._overrides,
            )
            for port in service.ports
        }
        if service.health_check_port and service.external_local:
            local = {
                one.at.address
                for known in backends.values()
                for one in known
                if one.local and one.state is BackendState.ACTIVE
            }
            self._checks[name] = HealthCheck(name, service.health_check_port, len(local))
        self._check_ports(service)
        return building.build(service, backends, self._node, self._options)

    def _check_ports(self, service: ServiceObject) -> None:
        first, last = self._options.node_port_range
        remarks = [
            Remark(
                f"Service {service.name}",
                f"spec.ports[{index}].nodePort",
                f"{port.node_port} is not in node-port-range, {first} to {last}; programs at "
                "sockets find it only on addresses of this node",
            )
            for index, port in enumerate(service.ports)
            if port.node_port and port.node_port not in self._options.node_port_range
        ]
        if remarks:
            self._remarks[service.name] = (*self._remarks.get(service.name, ()), *remarks)

    def _is_served_here(self, service: ServiceObject) -> bool:
        if not service.kinds or service.proxy_name != self._options.service_proxy_name:
            return False
        labels = self._node.labels
        if service.node_label is not None:
            label = labels.get(LABEL_NODE)
            return label is not None and label.value == service.node_label
        if not service.node_selector:
            return True
        try:
            selector = parse_selector(service.node_selector)
        except InvalidError as error:
            text = f"{error}; no node serves it"
            path = "metadata.annotations.service.cilium.io/node-selector"
            self._remarks[service.name] = (Remark(f"Service {service.name}", path, text),)
            return False
        return selector.matches([str(label) for label in labels])

    def _build_redirect(self, name: ServiceName) -> Sequence[Frontend]:
        self._redirect_pods.pop(name, None)
        redirect = self._redirects.get(name)
        if redirect is None:
            return ()
        subject = f"CiliumLocalRedirectPolicy {redirect.namespace}/{redirect.name}"
        if not self._options.local_redirects:
            text = "nothing is redirected while enable-local-redirect-policy is off"
            self._remark(name, [Remark(subject, "spec", text)])
            return ()
        service = self._services.get(_ServiceName(redirect.namespace, redirect.service))
        result = redirecting.apply(
            redirect, service, self._pods.values(), self._node, self._options
        )
        self._remark(name, [Remark(subject, path, text) for path, text in result.remarks])
        self._redirect_pods[name] = result.pods
        return result.frontends

    def _build_host_ports(self, name: ServiceName) -> Sequence[Frontend]:
        pod = self._pods.get(PodName(name.namespace, name.name.partition(":")[0]))
        if pod is None or building.host_port_service(pod) != name:
            return ()
        if not self._options.kube_proxy_replacement:
            return ()
        found, wrong = building.host_ports(pod, self._node, self._options)
        self._remark(
            name,
            [Remark(f"Pod {pod.name}", "spec.containers.ports.hostPort", one) for one in wrong],
        )
        return found


def _homeless(part: SliceObject) -> set[Address]:
    return {
        address
        for endpoint in part.endpoints
        if not endpoint.node
        for address in endpoint.addresses
    }
