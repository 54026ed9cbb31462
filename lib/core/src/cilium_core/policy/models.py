"""The models of CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy as users write them.

Pydantic models with the names and limits of the public schemas. They check shape and values; what
an object means, and whether this cluster can enforce it, is the business of the translation.
Unknown fields are errors. The parts are in `models_peers`, `models_ports`, `models_l7` and
`models_values`.

`None` in a model always means "not written", which is not the same as an empty list.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    model_validator,
)

from cilium_core.labels import SOURCE_UNSPEC, Label, LabelError
from cilium_core.policy.models_peers import (
    EgressDenyItem,
    EgressItem,
    IngressDenyItem,
    IngressItem,
)
from cilium_core.policy.models_values import Metadata, Model, Selector


def _rule_label(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        label = Label.parse(value)
    except LabelError as error:
        raise ValueError(str(error)) from error
    return {"key": label.key, "value": label.value, "source": label.source}


class DefaultDeny(Model):
    """Whether unmatched traffic is dropped, by direction."""

    ingress: StrictBool | None = None
    egress: StrictBool | None = None


class RuleLabel(Model):
    """A label that the user attaches to a rule; also written as `source:key=value`."""

    key: Annotated[StrictStr, Field(min_length=1, max_length=317)]
    value: Annotated[StrictStr, Field(max_length=253)] = ""
    source: Annotated[StrictStr, Field(max_length=63)] = SOURCE_UNSPEC

    def to_label(self) -> Label:
        """The label itself; an empty source counts as none."""
        return Label(self.source or SOURCE_UNSPEC, self.key, self.value)


def _check_log(text: str) -> str:
    if len(text) > 32 or not text.isprintable():
        raise ValueError("must be at most 32 printable characters")
    return text


class LogConfig(Model):
    """What flow records of the rule carry."""

    value: Annotated[StrictStr, AfterValidator(_check_log)] = ""


class CiliumRule(Model):
    """One rule: `spec`, or an item of `specs`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["endpointSelector"]}, {"required": ["nodeSelector"]}],
            "anyOf": [
                {"required": [name]} for name in ("ingress", "egress", "ingressDeny", "egressDeny")
            ],
        }
    )

    endpoint_selector: Selector | None = None
    node_selector: Selector | None = None
    ingress: list[IngressItem] | None = None
    egress: list[EgressItem] | None = None
    ingress_deny: list[IngressDenyItem] | None = None
    egress_deny: list[EgressDenyItem] | None = None
    enable_default_deny: DefaultDeny | None = None
    labels: list[Annotated[RuleLabel, BeforeValidator(_rule_label)]] | None = None
    description: StrictStr | None = None
    log: LogConfig | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if (self.endpoint_selector is None) == (self.node_selector is None):
            raise ValueError("needs exactly one of endpointSelector and nodeSelector")
        if not (self.ingress or self.egress or self.ingress_deny or self.egress_deny):
            raise ValueError("needs at least one of ingress, egress, ingressDeny, egressDeny")
        return self


class CiliumPolicy(Model):
    """CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy."""

    api_version: Literal["cilium.io/v2"]
    kind: Literal["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"]
    metadata: Metadata
    spec: CiliumRule | None = None
    specs: list[CiliumRule] | None = None
    status: Any = None

    @model_validator(mode="after")
    def _check_specs(self) -> Self:
        if self.spec is None and not self.specs:
            raise ValueError("needs spec or specs")
        return self
