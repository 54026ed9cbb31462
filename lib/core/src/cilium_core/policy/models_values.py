"""What the models of all policy kinds are made of: names, keys, prefixes, selectors.

Every type checks its value and carries the JSON schema that the custom resource definitions show
for it. `None` in a model always means "not written", which is not the same as an empty list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel

from cilium_core.identities import Prefix, cidr_of_label, parse_prefix
from cilium_core.labels import (
    KEY_NAMESPACE_LABELS_PREFIX,
    SOURCE_ANY,
    SOURCE_CIDR,
    Label,
    LabelError,
)
from cilium_core.policy.anchors import prefix_contains
from cilium_core.policy.ports import PORT_MAX

_VALUE_SCHEMA: Final = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_KEY_PREFIX: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_OBJECT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)


def _check_key(text: str) -> str:
    """Check a selector key: an optional source with a colon, then a Kubernetes label key."""
    try:
        label = Label.parse(text, SOURCE_ANY)
    except LabelError as error:
        raise ValueError(str(error)) from error
    if label.source == SOURCE_CIDR and not label.value:
        if cidr_of_label(label) is None:
            raise ValueError(f"{text[:80]!r} does not name an address prefix")
        return text
    # A namespace's label may be as long as any other, whatever its key is prefixed with here.
    key = label.key.removeprefix(KEY_NAMESPACE_LABELS_PREFIX)
    prefix, slash, name = key.rpartition("/")
    if label.value or not _NAME.fullmatch(name) or (slash and not _KEY_PREFIX.fullmatch(prefix)):
        raise ValueError(
            f"{text[:80]!r} is not a label key; write [source:][prefix/]name with a name of at "
            "most 63 letters, digits and -_."
        )
    return text


def _check_value(text: str) -> str:
    if text and not _NAME.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} is not a label value; it must be empty or at most 63 letters, digits "
            "and -_. with a letter or digit at both ends"
        )
    return text


def _check_object_name(text: str) -> str:
    if not _OBJECT_NAME.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a Kubernetes object name")
    return text


def _integer_to_text(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if 0 <= value <= PORT_MAX else "out of range"
    return value


def _prefix_or_address(value: object) -> Prefix:
    if not isinstance(value, str):
        raise ValueError("write an address prefix as a string, like '10.0.0.0/8'")
    return parse_prefix(value)


def _prefix(value: object) -> Prefix:
    prefix = _prefix_or_address(value)
    if isinstance(value, str) and "/" not in value:
        raise ValueError(f"{value!r} has no prefix length; write {prefix}")
    return prefix


_CIDR_SCHEMA: Final = WithJsonSchema({"type": "string", "format": "cidr"})

LabelKey = Annotated[StrictStr, AfterValidator(_check_key)]
LabelValue = Annotated[
    StrictStr,
    AfterValidator(_check_value),
    WithJsonSchema({"type": "string", "maxLength": 63, "pattern": _VALUE_SCHEMA}),
]
ObjectName = Annotated[
    StrictStr,
    AfterValidator(_check_object_name),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": 253,
            "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        }
    ),
]
Cidr = Annotated[Prefix, PlainValidator(_prefix), _CIDR_SCHEMA]
"""A prefix that has a length."""

CidrOrAddress = Annotated[Prefix, PlainValidator(_prefix_or_address), _CIDR_SCHEMA]
"""A prefix, or one address."""

PortText = Annotated[StrictStr, BeforeValidator(_integer_to_text)]
PortNumber = Annotated[
    StrictInt,
    Field(ge=0, le=PORT_MAX),
    WithJsonSchema({"type": "integer", "format": "int32", "minimum": 0, "maximum": PORT_MAX}),
]


class Model(BaseModel):
    """Base of all policy models: frozen, camel case on the outside, no unknown fields.

    Validators are built at first use, which saves an agent that has no policy yet 50 ms.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, defer_build=True
    )


class Metadata(BaseModel):
    """The part of an object's metadata that matters to policy; the rest is ignored."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, defer_build=True
    )

    name: StrictStr
    namespace: StrictStr | None = None
    uid: StrictStr | None = None
    annotations: dict[StrictStr, StrictStr] | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not _OBJECT_NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name[:80]!r} is not a Kubernetes object name")
        if self.namespace and not _NAMESPACE.fullmatch(self.namespace):
            raise ValueError(
                f"namespace {self.namespace[:80]!r} is not a Kubernetes namespace name"
            )
        return self


class MatchExpression(Model):
    """One requirement of a selector."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[LabelValue] | None = None

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.operator in {"In", "NotIn"} and not self.values:
            raise ValueError(f"operator {self.operator} needs at least one of values")
        if self.operator in {"Exists", "DoesNotExist"} and self.values:
            raise ValueError(f"operator {self.operator} takes no values")
        return self


class Selector(Model):
    """A label selector; every part must hold."""

    match_labels: dict[LabelKey, LabelValue] | None = None
    match_expressions: Sequence[MatchExpression] | None = None


def _check_plain_key(text: str) -> str:
    """Check a label key as Kubernetes has them: no source before it."""
    prefix, slash, name = text.rpartition("/")
    if not _NAME.fullmatch(name) or (slash and not _KEY_PREFIX.fullmatch(prefix)):
        raise ValueError(
            f"{text[:80]!r} is not a label key; write [prefix/]name with a name of at most 63 "
            "letters, digits and -_."
        )
    return text


PlainKey = Annotated[StrictStr, AfterValidator(_check_plain_key)]


class PlainExpression(MatchExpression):
    """One requirement of a Kubernetes selector."""

    key: PlainKey


class PlainSelector(Selector):
    """A selector of Kubernetes, whose keys name no source."""

    match_labels: dict[PlainKey, LabelValue] | None = None
    match_expressions: list[PlainExpression] | None = None


class SecretModel(Model):
    """Names a Secret; without a namespace it is that of the policy."""

    name: Annotated[ObjectName, Field(description="Name of the Secret.")]
    namespace: StrictStr | None = None


def check_excepts(cidr: Prefix, excepts: list[Prefix], *, strict: bool = False) -> None:
    """Raise `ValueError` unless every except lies inside the prefix (`strict`: and is smaller)."""
    for excepted in excepts:
        if not prefix_contains(cidr, excepted) or (strict and excepted == cidr):
            raise ValueError(f"except {excepted} does not lie inside {cidr}")


def one_of(*names: str) -> ConfigDict:
    """The configuration of a model of which exactly one field is written, for its schema."""
    return ConfigDict(json_schema_extra={"oneOf": [{"required": [name]} for name in names]})


def check_one_of(model: Model, *names: str) -> None:
    """Raise `ValueError` unless exactly one of the named fields is written."""
    written = [name for name in names if getattr(model, name) is not None]
    if len(written) != 1:
        fields = type(model).model_fields
        shown = ", ".join(str(fields[name].alias or name) for name in names)
        raise ValueError(f"needs exactly one of {shown}")
