"""What the models of objects are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, StrictInt, StrictStr, WithJsonSchema

from cilium_core.policy.models_values import Model


def _dashes(name: str) -> str:
    return name.replace("_", "-")


class Dashed(Model):
    """A model whose fields are written with dashes."""

    model_config = ConfigDict(alias_generator=_dashes)


class ObjectMetadata(Model):
    """Metadata of an object whose labels and annotations matter."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[StrictStr, Field(min_length=1, max_length=253)]
    namespace: StrictStr | None = None
    labels: dict[StrictStr, StrictStr] | None = None
    annotations: dict[StrictStr, StrictStr] | None = None


Whatever = Annotated[
    dict[str, Any] | None,
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""A part that is not looked into."""

Int64 = Annotated[StrictInt, WithJsonSchema({"type": "integer", "format": "int64"})]
