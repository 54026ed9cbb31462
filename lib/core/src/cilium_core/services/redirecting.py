"""Local redirects: which frontends lead to pods of this node instead of where they led. Pure.

A redirect holds as long as it has a ready pod here with an address of the frontend's family;
otherwise traffic goes where it went before. What can be understood in two ways is remarked on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cilium_core.objects.converting import convert
from cilium_core.policy.local_redirects import LocalRedirectPolicy, translate
from cilium_core.policy.parsing import check_model
from cilium_core.services.backends import order
from cilium_core.services.models import (
    Backend,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
    ServiceName,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cilium_core.policy.local_redirects import LocalRedirect, PortPair
    from cilium_core.services.objects import (
        LocalPod,
        NodeFacts,
        ServiceObject,
        ServiceOptions,
        ServicePort,
    )


class Asked(NamedTuple):
    """An address and port that a redirect is for, and the port that its pods listen on."""

    at: L4Address
    port: int
    name: str


class Redirected(NamedTuple):
    """What a redirect comes to now."""

    frontends: tuple[Frontend, ...] = ()
    pods: tuple[LocalPod, ...] = ()
    remarks: tuple[tuple[str, str], ...] = ()
    """Paths and texts."""


def read_redirects(obj: Mapping[str, Any]) -> tuple[LocalRedirect, ...]:
    """The redirects of an object; one in an older form may be several.

    Raises `PolicyError` with every problem.
    """
    converted = convert(obj)
    return tuple(
        translate(check_model(LocalRedirectPolicy, one), converted.warnings)
        for one in converted.objects
    )


def redirect_service(redirect: LocalRedirect) -> ServiceName:
    """What a redirect is called among services; no object can have the name."""
    return ServiceName(redirect.namespace, f"{redirect.name}:local-redirect")


def apply(
    redirect: LocalRedirect,
    service: ServiceObject | None,
    pods: Iterable[LocalPod],
    node: NodeFacts,
    options: ServiceOptions,
) -> Redirected:
    """The frontends of a redirect; `service` is the one that it names, if that is there."""
    remarks: list[tuple[str, str]] = []
    asked = list(_asked(redirect, service, options, remarks))
    serving = tuple(
        sorted(
            (pod for pod in pods if pod.ready and redirect.pods.matches(pod.labels)),
            key=lambda pod: pod.name,
        )
    )
    found: dict[L4Address, Frontend] = {}
    for at, port, name in asked:
        addresses = {
            address
            for pod in serving
            for address in pod.addresses
            if address.version == at.address.version
        }
        targets = sorted((L4Address(one, port, at.protocol) for one in addresses), key=order)
        backends = tuple(
            Backend(one, node=node.name, zone=node.zone, local=True) for one in targets
        )
        if backends:
            found[at] = Frontend(
                at,
                Scope.EXTERNAL,
                FrontendKind.LOCAL_REDIRECT,
                redirect_service(redirect),
                name,
                backends,
                backends,
                routable=False,
                skip_own=redirect.skip_from_backend,
            )
    return Redirected(tuple(found.values()), serving, tuple(remarks))


def _asked(
    redirect: LocalRedirect,
    service: ServiceObject | None,
    options: ServiceOptions,
    remarks: list[tuple[str, str]],
) -> Iterator[Asked]:
    if redirect.address is not None:
        networks = options.local_redirect_networks
        if networks and not any(redirect.address in one for one in networks):
            remarks.append(
                (
                    "spec.redirectFrontend.addressMatcher.ip",
                    f"{redirect.address} is not in lrp-address-matcher-cidrs; it is left alone",
                )
            )
            return
        for pair in redirect.ports:
            if pair.frontend is not None:
                at = L4Address(redirect.address, pair.frontend, pair.protocol)
                yield Asked(at, pair.backend, pair.name)
        return
    where = "spec.redirectFrontend.serviceMatcher"
    if service is None or not service.cluster_ips or FrontendKind.CLUSTER_IP not in service.kinds:
        why = "does not exist" if service is None else "has no cluster address"
        text = f"service {redirect.namespace}/{redirect.service} {why}; nothing is redirected"
        remarks.append((where, text))
        return
    if redirect.skip_from_backend:
        text = "the pods that serve reach nobody at the addresses of the service themselves"
        remarks.append(("spec.skipRedirectFromBackend", text))
    for port, pair in _pairs(redirect, service, where, remarks):
        for address in service.cluster_ips:
            at = L4Address(address, port.port, port.protocol)
            yield Asked(at, pair.backend, port.name)


def _pairs(
    redirect: LocalRedirect,
    service: ServiceObject,
    where: str,
    remarks: list[tuple[str, str]],
) -> Iterator[tuple[ServicePort, PortPair]]:
    """Ports of the service with what they lead to: by number, by name, or the only one there is."""
    for pair in redirect.ports:
        same = [port for port in service.ports if port.protocol is pair.protocol]
        if pair.frontend is not None:
            matches = [port for port in same if port.port == pair.frontend]
            missing = f"port {pair.frontend}/{pair.protocol.name}"
        elif len(redirect.ports) > 1:
            matches = [port for port in same if port.name.lower() == pair.name]
            missing = f"{pair.protocol.name} port called {pair.name!r}"
        else:
            matches = [port for port in same if pair.name and port.name.lower() == pair.name]
            matches = matches or same
            missing = f"{pair.protocol.name} port"
            if len(matches) > 1:
                numbers = ", ".join(str(port.port) for port in matches)
                text = f"ports {numbers} of the service all lead to port {pair.backend} of the pods"
                remarks.append((f"{where}.toPorts", f"{text}; name the ports to tell them apart"))
        if not matches:
            name = f"{redirect.namespace}/{redirect.service}"
            remarks.append((f"{where}.toPorts", f"service {name} has no {missing}"))
        for port in matches:
            yield port, pair
