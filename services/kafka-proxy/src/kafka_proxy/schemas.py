"""Kafka's messages as data: which fields follow each other in which version.

The definitions are those of kio, which generates them from Kafka's own. Its reader is not used: it
allocates what a length field claims before looking at how many bytes there are, and so lets any
client end the process. Here a definition is compiled, once, into what `encoding` reads and writes.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from kio.index import load_request_schema, load_response_schema
from kio.schema.index import api_key_map, schema_name_map
from kio.schema.types import TopicName

PRODUCE: Final = 0
FETCH: Final = 1
METADATA: Final = 3
SASL_HANDSHAKE: Final = 17
API_VERSIONS: Final = 18
ENVELOPE: Final = 58


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a struct."""

    name: str
    kind: str
    """A type of kio, such as int32, string or error_code; "struct" for one of its own."""

    struct: Struct | None
    array: bool
    nullable: bool
    is_topic: bool
    """Whether it holds names of topics."""

    is_topic_id: bool
    """Whether it holds the id of a topic."""


@dataclass(frozen=True, slots=True, eq=False)
class Struct:
    """Fields in order; in flexible versions, lengths are compact and tagged fields may follow."""

    fields: tuple[Field, ...]
    tagged: Mapping[int, Field]
    flexible: bool
    flexible_header: bool
    """Whether the header before a message of this kind ends with tagged fields."""


@functools.cache
def request_struct(key: int, version: int) -> Struct | None:
    """The request of an API key and version, None when it is not known."""
    return _compile(load_request_schema(key, version)) if _known(key, version) else None


@functools.cache
def response_struct(key: int, version: int) -> Struct | None:
    """The response to a request, None when it is not known."""
    return _compile(load_response_schema(key, version)) if _known(key, version) else None


def known_versions(key: int) -> tuple[int, int] | None:
    """Lowest and highest version of a request that can be read, None for none."""
    name = api_key_map.get(key)
    if name is None:
        return None
    return min(schema_name_map[name]), max(schema_name_map[name])


def kio_name(key: int) -> str:
    """Name of an API key as newer definitions have it, without separators; its number if none."""
    return api_key_map.get(key, str(key)).replace("_", "")


def _known(key: int, version: int) -> bool:
    versions = known_versions(key)
    return versions is not None and versions[0] <= version <= versions[1]


@functools.cache
def _compile(entity: type[Any]) -> Struct:
    hints = typing.get_type_hints(entity)
    fields: list[Field] = []
    tagged: dict[int, Field] = {}
    for each in dataclasses.fields(entity):
        field = _field(each, hints[each.name])
        tag = each.metadata.get("tag")
        if tag is None:
            fields.append(field)
        else:
            # being absent is how a tagged field is null
            tagged[tag] = dataclasses.replace(field, nullable=False)
    header = getattr(entity, "__header_schema__", None)
    return Struct(
        tuple(fields), tagged, entity.__flexible__, bool(getattr(header, "__flexible__", False))
    )


def _field(field: dataclasses.Field[Any], hint: Any) -> Field:
    inner, nullable = _without_none(hint)
    array = typing.get_origin(inner) is tuple
    if array:
        inner, _ = _without_none(typing.get_args(inner)[0])
    nested = isinstance(inner, type) and dataclasses.is_dataclass(inner)
    struct = _compile(inner) if nested else None
    return Field(
        name=field.name,
        kind="struct" if struct else field.metadata["kafka_type"],
        struct=struct,
        array=array,
        nullable=nullable,
        is_topic=isinstance(inner, type) and issubclass(inner, TopicName),
        is_topic_id=inner is UUID and field.name == "topic_id",
    )


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint, False
    rest = [one for one in typing.get_args(hint) if one is not types.NoneType]
    return rest[0], True
