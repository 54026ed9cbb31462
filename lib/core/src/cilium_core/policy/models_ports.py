"""The models of `toPorts` and `icmps`."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    StrictStr,
    WithJsonSchema,
    model_validator,
)

from cilium_core.policy.models_l7 import L7Rules, ListenerModel, ServerNames, TlsModel
from cilium_core.policy.models_values import Model, PortNumber, PortText
from cilium_core.policy.ports import (
    ICMP_NAMES,
    PORT_MAX,
    PROTOCOL_NAMES,
    PortRange,
    icmp_range,
    parse_port,
)

_PORT_SCHEMA: Final = (
    r"^(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4})$"
)
_PORT_NAME_SCHEMA: Final = r"^([a-zA-Z0-9]+-)*[a-zA-Z0-9]*[a-zA-Z][a-zA-Z0-9]*(-[a-zA-Z0-9]+)*$"


def _check_protocol(text: str) -> str:
    if text.upper() not in PROTOCOL_NAMES:
        raise ValueError(f"{text[:40]!r} is not one of {', '.join(PROTOCOL_NAMES)}")
    return text.upper()


ProtocolName = Annotated[
    StrictStr,
    AfterValidator(_check_protocol),
    WithJsonSchema({"type": "string", "enum": list(PROTOCOL_NAMES)}),
]


class PortProtocol(Model):
    """One port, named port or port range of a protocol."""

    port: (
        Annotated[
            PortText,
            WithJsonSchema({"type": "string", "pattern": f"{_PORT_SCHEMA}|{_PORT_NAME_SCHEMA}"}),
        ]
        | None
    ) = None
    end_port: PortNumber | None = None
    protocol: ProtocolName = "ANY"

    @model_validator(mode="after")
    def _check_port(self) -> Self:
        number = None if self.port is None else parse_port(self.port)
        if number == 0 and self.end_port not in {None, 0, PORT_MAX}:
            raise ValueError("port 0 means every port and takes no endPort; start the range at 1")
        return self


Ports = Annotated[list[PortProtocol] | None, Field(max_length=40)]


class PortDenyRule(Model):
    """An item of toPorts in a deny rule."""

    ports: Ports = None


class PortRule(Model):
    """An item of toPorts in an allow rule."""

    ports: Ports = None
    rules: L7Rules | None = None
    terminating_tls: TlsModel | None = Field(default=None, alias="terminatingTLS")
    originating_tls: TlsModel | None = Field(default=None, alias="originatingTLS")
    server_names: ServerNames | None = None
    listener: ListenerModel | None = None

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.listener is not None and self.rules is not None:
            raise ValueError("has both listener and rules; write one list item for each")
        if self.server_names and self.has_l7_rules and self.terminating_tls is None:
            raise ValueError(
                "serverNames beside rules needs terminatingTLS, since what is encrypted cannot be "
                "looked into"
            )
        return self

    @property
    def has_l7_rules(self) -> bool:
        """Whether the item has rules that a proxy enforces; an empty list has none."""
        rules = self.rules
        return rules is not None and bool(rules.http or rules.kafka or rules.dns or rules.l7proto)


def _icmp_type(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("an ICMP type is a number from 0 to 255 or a name")
    return value


_ICMP_SCHEMA: Final = WithJsonSchema(
    {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "x-kubernetes-int-or-string": True,
        "pattern": "^([0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5]|"
        + "|".join((*ICMP_NAMES, "ExtendedEcho Reply"))
        + ")$",
    }
)


class IcmpField(Model):
    """One ICMP type."""

    family: Literal["IPv4", "IPv6"] = "IPv4"
    type: Annotated[int | str, PlainValidator(_icmp_type), _ICMP_SCHEMA]

    @model_validator(mode="after")
    def _check_type(self) -> Self:
        self.to_range()
        return self

    def to_range(self) -> PortRange:
        """The type as protocol and number."""
        return icmp_range(self.family, self.type)


class IcmpRule(Model):
    """A list of ICMP types."""

    fields: Annotated[list[IcmpField] | None, Field(max_length=40)] = None
