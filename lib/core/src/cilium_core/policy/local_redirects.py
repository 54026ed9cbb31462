"""CiliumLocalRedirectPolicy: traffic to one address or service goes to pods of the same node.

The models with all their rules, the normal form, and the older spellings that are still understood.
`cilium_core.services.redirecting` turns the normal form into frontends of a node.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictStr, WithJsonSchema
from pydantic import model_validator as _model_validator

from cilium_core.labels import KEY_NAMESPACE
from cilium_core.policy.models_values import (
    Metadata,
    Model,
    ObjectName,
    PortText,
    Selector,
    check_one_of,
    one_of,
)
from cilium_core.policy.ports import Protocol, parse_port
from cilium_core.policy.selectors import LabelSelector, equals
from cilium_core.policy.translating_peers import read_selector

if TYPE_CHECKING:
    from collections.abc import Sequence

KIND: Final = "CiliumLocalRedirectPolicy"
_PORT_NAME: Final = re.compile(r"(?=[a-z0-9-]{1,15}\Z)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")

_IMMUTABLE: Final = Field(
    json_schema_extra={
        "x-kubernetes-validations": [
            {"message": "cannot be changed; make a new policy", "rule": "self == oldSelf"}
        ]
    }
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _check_number(text: str) -> str:
    port = parse_port(text)
    if not isinstance(port, int) or port == 0:
        raise ValueError(f"{text[:20]!r} is not a port number from 1 to 65535")
    return text


def _check_port_name(text: str) -> str:
    if text and not _PORT_NAME.fullmatch(text.lower()):
        raise ValueError(
            f"{text[:40]!r} is not a port name: at most 15 letters, digits and single dashes, with "
            "at least one letter"
        )
    return text.lower()


def _check_address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError(f"{text[:60]!r} is not an address") from error
    return text


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class RedirectPort(Model):
    """A port; the name pairs frontends with backends."""

    port: Annotated[
        PortText,
        AfterValidator(_check_number),
        WithJsonSchema(
            {
                "type": "string",
                "pattern": "^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}"
                "|655[0-2][0-9]|6553[0-5])$",
            }
        ),
    ]
    protocol: Annotated[Literal["TCP", "UDP"], BeforeValidator(_upper)]
    name: Annotated[StrictStr, AfterValidator(_check_port_name)] = ""


class AddressMatcher(Model):
    """One address with ports."""

    ip: Annotated[
        StrictStr,
        AfterValidator(_check_address),
        WithJsonSchema({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}),
    ]
    to_ports: list[RedirectPort]


class ServiceMatcher(Model):
    """A service of the policy's namespace, with some of its ports or all."""

    service_name: ObjectName
    namespace: StrictStr
    to_ports: list[RedirectPort] | None = None


class RedirectFrontend(Model):
    """What traffic is sent to."""

    model_config = one_of("addressMatcher", "serviceMatcher")

    address_matcher: AddressMatcher | None = None
    service_matcher: ServiceMatcher | None = None

    @_model_validator(mode="after")
    def _check(self) -> Self:
        check_one_of(self, "address_matcher", "service_matcher")
        return self

    def ports(self) -> Sequence[RedirectPort]:
        """The ports; none is every port of the service."""
        if self.address_matcher is not None:
            return self.address_matcher.to_ports
        return (self.service_matcher.to_ports or ()) if self.service_matcher is not None else ()


class RedirectBackend(Model):
    """Where traffic goes instead: pods of the policy's namespace on the same node."""

    local_endpoint_selector: Selector
    to_ports: list[RedirectPort]


class LocalRedirectSpec(Model):
    """The `spec` of CiliumLocalRedirectPolicy."""

    redirect_frontend: Annotated[RedirectFrontend, _IMMUTABLE]
    redirect_backend: Annotated[RedirectBackend, _IMMUTABLE]
    skip_redirect_from_backend: Annotated[StrictBool, _IMMUTABLE] = False
    description: StrictStr | None = None

    @_model_validator(mode="after")
    def _check_ports(self) -> Self:
        front, back = self.redirect_frontend.ports(), self.redirect_backend.to_ports
        if not back:
            raise ValueError("redirectBackend.toPorts is empty; name the port that pods listen on")
        if self.redirect_frontend.address_matcher is not None and not front:
            raise ValueError("addressMatcher.toPorts is empty; name the port that is redirected")
        for side, ports in (("frontend", front), ("backend", back)):
            if len(ports) > 1 and not all(port.name for port in ports):
                raise ValueError(f"several ports of the {side} need names, by which they pair")
            names = [port.name for port in ports if port.name]
            if len(set(names)) < len(names):
                raise ValueError(f"two ports of the {side} have the same name")
        if front:
            self._check_pairs(front, back)
        return self

    @staticmethod
    def _check_pairs(front: Sequence[RedirectPort], back: Sequence[RedirectPort]) -> None:
        if len(front) == 1 and len(back) == 1:
            pairs = [(front[0], back[0])]
        else:
            by_name = {port.name: port for port in back}
            missing = [port.name for port in front if port.name not in by_name]
            if missing or len(front) != len(back):
                raise ValueError("frontend and backend must have ports of the same names")
            pairs = [(port, by_name[port.name]) for port in front]
        for one, other in pairs:
            if one.protocol != other.protocol:
                raise ValueError(
                    f"port {one.port} of the frontend is {one.protocol}, that of the backend "
                    f"{other.protocol}"
                )


class LocalRedirectPolicy(Model):
    """CiliumLocalRedirectPolicy as users write it."""

    api_version: Literal["cilium.io/v2"]
    kind: Literal["CiliumLocalRedirectPolicy"]
    metadata: Metadata
    spec: LocalRedirectSpec
    status: Any = None

    @_model_validator(mode="after")
    def _check_namespace(self) -> Self:
        matcher = self.spec.redirect_frontend.service_matcher
        if matcher is not None and matcher.namespace != (self.metadata.namespace or "default"):
            raise ValueError(
                f"spec.redirectFrontend.serviceMatcher.namespace is {matcher.namespace[:63]!r}; it "
                "must be the policy's own"
            )
        return self


@dataclass(frozen=True, slots=True)
class PortPair:
    """A frontend port and the backend port that it leads to; `frontend` None is any port."""

    protocol: Protocol
    frontend: int | None
    backend: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class LocalRedirect:
    """A local redirect in normal form: an address or the name of a service, and the pods."""

    namespace: str
    name: str
    address: Address | None
    service: str
    pods: LabelSelector
    ports: tuple[PortPair, ...]
    skip_from_backend: bool
    warnings: tuple[str, ...] = ()


def translate(model: LocalRedirectPolicy, warnings: Sequence[str] = ()) -> LocalRedirect:
    """Bring a checked object into normal form."""
    spec, namespace = model.spec, model.metadata.namespace or "default"
    frontend = spec.redirect_frontend
    address = frontend.address_matcher
    service = frontend.service_matcher
    front, back = frontend.ports(), spec.redirect_backend.to_ports
    by_name = {port.name: port for port in front}
    pairs = []
    for port in back:
        match = front[0] if len(front) == 1 == len(back) else by_name.get(port.name)
        number = int(match.port) if match is not None else None
        pairs.append(PortPair(Protocol[port.protocol], number, int(port.port), port.name))
    pods = read_selector(spec.redirect_backend.local_endpoint_selector)
    return LocalRedirect(
        namespace,
        model.metadata.name,
        ipaddress.ip_address(address.ip) if address is not None else None,
        service.service_name if service is not None else "",
        pods.require(equals(KEY_NAMESPACE, namespace)),
        tuple(pairs),
        spec.skip_redirect_from_backend,
        tuple(warnings),
    )
