"""The models of what a policy says above the transport layer: HTTP, DNS, Kafka, TLS."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, StrictInt, StrictStr, WithJsonSchema, model_validator

from cilium_core.policy import fqdn
from cilium_core.policy.kafka_keys import API_KEYS, ROLES
from cilium_core.policy.models_values import Model, ObjectName, SecretModel, one_of
from cilium_core.policy.patterns import check_expression

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_SERVER_NAME: Final = re.compile(r"(\*?\*\.)?[-a-zA-Z0-9_]+(\.[-a-zA-Z0-9_]+)*\.?", re.ASCII)
_KAFKA_WORD: Final = re.compile(r"[-a-zA-Z0-9._]*", re.ASCII)
_VERSION: Final = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_NAME_SCHEMA: Final = r"^([-a-zA-Z0-9_]+[.]?)+$"
_PATTERN_SCHEMA: Final = r"^([-a-zA-Z0-9_*]+[.]?)+$"


def _check_header_name(text: str) -> str:
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not the name of an HTTP header")
    return text


def _check_header(text: str) -> str:
    if not text.split(" ", 1)[0].rstrip(":"):
        raise ValueError("begins with no name; write a header as 'Name: value' or 'Name'")
    return text


def _check_server_name(text: str) -> str:
    if len(text) > fqdn.MAX_NAME_LENGTH or not _SERVER_NAME.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} is not a server name; write a DNS name, which may begin with `*.` (one "
            "label) or `**.` (any number of labels)"
        )
    return text


def _check_kafka_word(text: str) -> str:
    if len(text) > 255 or not _KAFKA_WORD.fullmatch(text):
        raise ValueError("must be at most 255 letters, digits and -_.")
    return text


def _check_version(text: str) -> str:
    if text and (not _VERSION.fullmatch(text) or int(text) > 32767):
        raise ValueError(f"{text[:20]!r} is not a number from 0 to 32767")
    return text


def _check_role(text: str) -> str:
    if text and text.lower() not in ROLES:
        raise ValueError(f"{text[:40]!r} is not one of {', '.join(ROLES)}")
    return text


def _check_api_key(text: str) -> str:
    if text and text.lower() not in API_KEYS:
        raise ValueError(f"{text[:40]!r} is not the name of a Kafka request, such as produce")
    return text


Expression = Annotated[StrictStr, AfterValidator(check_expression)]
"""A regular expression that the proxies understand."""

DnsName = Annotated[
    StrictStr,
    AfterValidator(fqdn.check_name),
    WithJsonSchema({"type": "string", "maxLength": 255, "pattern": _NAME_SCHEMA}),
]
DnsPattern = Annotated[
    StrictStr,
    AfterValidator(fqdn.check_pattern),
    WithJsonSchema({"type": "string", "maxLength": 255, "pattern": _PATTERN_SCHEMA}),
]


class HeaderMatchModel(Model):
    """An item of `headerMatches`."""

    name: Annotated[StrictStr, Field(min_length=1), AfterValidator(_check_header_name)]
    value: StrictStr | None = None
    secret: SecretModel | None = None
    mismatch: Literal["LOG", "ADD", "DELETE", "REPLACE"] | None = None


class HttpModel(Model):
    """Requests that are allowed; everything written must hold."""

    path: Expression = ""
    method: Expression = ""
    host: Annotated[
        Expression, WithJsonSchema({"type": "string", "description": "Expression for the host."})
    ] = ""
    headers: list[Annotated[StrictStr, AfterValidator(_check_header)]] | None = None
    header_matches: list[HeaderMatchModel] | None = None


class DnsModel(Model):
    """A name, or a pattern of names."""

    match_name: DnsName | None = None
    match_pattern: DnsPattern | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.match_name is None and self.match_pattern is None:
            raise ValueError("needs matchName or matchPattern")
        return self


class FqdnModel(DnsModel):
    """An item of `toFQDNs`."""

    model_config = one_of("matchName", "matchPattern")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if self.match_name is not None and self.match_pattern is not None:
            raise ValueError("needs exactly one of matchName and matchPattern")
        fqdn.check_selectable(self.match_name or self.match_pattern or "")
        return self


class KafkaModel(Model):
    """Requests that are allowed; everything written must hold."""

    role: Annotated[
        StrictStr,
        AfterValidator(_check_role),
        WithJsonSchema({"type": "string", "enum": list(ROLES)}),
    ] = ""
    api_key: Annotated[StrictStr, AfterValidator(_check_api_key)] = ""
    api_version: Annotated[StrictStr, AfterValidator(_check_version)] = ""
    client_id: Annotated[StrictStr, AfterValidator(_check_kafka_word)] = Field(
        default="", alias="clientID"
    )
    topic: Annotated[
        StrictStr,
        AfterValidator(_check_kafka_word),
        WithJsonSchema({"type": "string", "maxLength": 255}),
    ] = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.role and self.api_key:
            raise ValueError("has both role and apiKey; a role stands for several keys")
        return self


class L7Rules(Model):
    """Rules above layer 4, all of one kind."""

    model_config = one_of("http", "kafka", "dns", "l7proto")

    http: list[HttpModel] | None = None
    kafka: list[KafkaModel] | None = None
    dns: list[DnsModel] | None = None
    l7proto: StrictStr | None = Field(default=None, alias="l7proto")
    l7: list[dict[StrictStr, StrictStr]] | None = Field(default=None, alias="l7")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        lists = (self.http, self.kafka, self.dns, self.l7proto)
        if sum(rules is not None for rules in lists) != 1:
            raise ValueError("needs exactly one of http, kafka, dns, l7proto")
        if self.l7 is not None and not self.l7proto:
            raise ValueError("l7 needs l7proto to say what it is about")
        if any("" in item for item in self.l7 or ()):
            raise ValueError("an item of l7 has an empty key")
        return self


class TlsModel(Model):
    """Keys and certificates for one side of a connection."""

    secret: SecretModel
    trusted_ca: StrictStr = Field(default="", alias="trustedCA")
    certificate: StrictStr = ""
    private_key: StrictStr = ""


class EnvoyConfigModel(Model):
    """Names an Envoy configuration object."""

    kind: Literal["CiliumEnvoyConfig", "CiliumClusterwideEnvoyConfig"] | None = None
    name: ObjectName


class ListenerModel(Model):
    """A listener of one's own for the traffic of a port."""

    envoy_config: EnvoyConfigModel
    name: Annotated[StrictStr, Field(min_length=1)]
    priority: Annotated[StrictInt, Field(ge=1, le=100)] | None = None


ServerNames = Annotated[
    list[
        Annotated[
            StrictStr,
            AfterValidator(_check_server_name),
            WithJsonSchema(
                {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 255,
                    "pattern": r"^(\*?\*\.)?([-a-zA-Z0-9_]+\.?)+$",
                }
            ),
        ]
    ],
    Field(min_length=1, json_schema_extra={"x-kubernetes-list-type": "set"}),
]
