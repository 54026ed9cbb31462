"""Flattens protobuf descriptors into lines, one fact each, so that APIs can be compared as text.

A field is `field <message>.<name> = <number> <type> [repeated] [oneof:<group>] [deprecated]`, an
enum value `value <enum>.<NAME> = <number> [deprecated]`, a method
`rpc <service>/<method> <request> -> [stream ]<response>`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import FileDescriptor
    from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto

_SCALARS = {
    number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()
}


def facts(file: FileDescriptor) -> set[str]:
    """Everything a peer can rely on in one proto file."""
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    found: set[str] = set()
    for message in proto.message_type:
        found.update(_message(f"{proto.package}.{message.name}", message))
    for enum in proto.enum_type:
        found.update(_enum(f"{proto.package}.{enum.name}", enum))
    for service in proto.service:
        for method in service.method:
            stream = "stream " if method.server_streaming else ""
            found.add(
                f"rpc {proto.package}.{service.name}/{method.name} "
                f"{method.input_type[1:]} -> {stream}{method.output_type[1:]}"
            )
    return found


def _message(name: str, message: DescriptorProto) -> Iterator[str]:
    yield f"message {name}"
    for field in message.field:
        words = [f"field {name}.{field.name} = {field.number}"]
        words.append(field.type_name[1:] if field.type_name else _SCALARS[field.type])
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            words.append("repeated")
        if field.HasField("oneof_index") and not field.proto3_optional:
            words.append(f"oneof:{message.oneof_decl[field.oneof_index].name}")
        if field.options.deprecated:
            words.append("deprecated")
        yield " ".join(words)
    for nested in message.nested_type:
        yield from _message(f"{name}.{nested.name}", nested)
    for enum in message.enum_type:
        yield from _enum(f"{name}.{enum.name}", enum)


def _enum(name: str, enum: EnumDescriptorProto) -> Iterator[str]:
    for value in enum.value:
        deprecated = " deprecated" if value.options.deprecated else ""
        yield f"value {name}.{value.name} = {value.number}{deprecated}"
