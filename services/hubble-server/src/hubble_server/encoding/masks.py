"""Field masks over flow.Flow: parsing, and applying to a message.

A mask is a tree of field names; a leaf (None) takes the field whole. Paths use the original names,
such as `source.identity` and `IP.source`. Parents that a path names are present in the result even
if the flow lacks them, except the members of a oneof. Pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Union

from flow import flow_pb2

from hubble_server.errors import MaskError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

Mask = dict[str, Union["Mask", None]]
"""Field name to what is wanted of it; None is all."""


def parse_mask(paths: Iterable[str]) -> Mask | None:
    """Tree of paths into flow.Flow; None when there are none. Raises MaskError."""
    root: Mask = {}
    for path in paths:
        _add(root, flow_pb2.Flow.DESCRIPTOR, path)
    return root or None


def _add(root: Mask, descriptor: Any, path: str) -> None:
    parts = path.split(".")
    node = root
    for depth, part in enumerate(parts):
        field = descriptor.fields_by_name.get(part) if descriptor is not None else None
        if field is None:
            raise MaskError(f"invalid fieldmask: {path!r} is not a path of flow.Flow")
        last = depth == len(parts) - 1
        if part in node and node[part] is None:
            _check(field.message_type, parts[depth + 1 :], path)
            return  # a parent is wanted whole already
        if last:
            node[part] = None
            return
        if field.is_repeated:
            raise MaskError(f"invalid fieldmask: {path!r} steps through the repeated field {part}")
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        node, descriptor = child, field.message_type


def _check(descriptor: Any, rest: list[str], path: str) -> None:
    if rest:
        try:
            _add({}, descriptor, ".".join(rest))
        except MaskError:
            raise MaskError(f"invalid fieldmask: {path!r} is not a path of flow.Flow") from None


def freeze(mask: Mask | None) -> Any:
    """Give a hashable form of a mask; equal masks give equal ones."""
    if mask is None:
        return None
    return frozenset((name, freeze(child)) for name, child in mask.items())


def apply_mask(mask: Mask, source: Message, target: Message) -> None:
    """Copy into `target` (an empty message of the same type) what the mask wants of `source`."""
    for name, child in mask.items():
        field = source.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated:
            getattr(target, name).MergeFrom(getattr(source, name))
        elif field.message_type is None:
            if field.containing_oneof is None or source.HasField(name):
                setattr(target, name, getattr(source, name))
        elif child is None:
            if source.HasField(name):
                getattr(target, name).CopyFrom(getattr(source, name))
        elif source.HasField(name) or field.containing_oneof is None:
            part = getattr(target, name)
            part.SetInParent()
            apply_mask(child, getattr(source, name), part)
