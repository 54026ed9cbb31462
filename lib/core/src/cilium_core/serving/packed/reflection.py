"""Server reflection, v1 and v1alpha, for a packed server.

Both versions have the same messages under different package names, so the generated classes of
v1alpha serve both; the descriptor of v1 is made from that of v1alpha in a pool of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

from cilium_core.serving.packed.calls import Call, Method, Status, dialogue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.descriptor import FileDescriptor

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_Response = reflection_pb2.ServerReflectionResponse


def _v1_pool() -> descriptor_pool.DescriptorPool:
    proto = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(proto)
    proto.name = "grpc/reflection/v1/reflection.proto"
    proto.package = "grpc.reflection.v1"
    for message in proto.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for service in proto.service:
        for method in service.method:
            method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
            method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(proto.SerializeToString())
    return pool


class ReflectionService:
    """Answers what services there are, and which files describe them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = sorted(names)
        self._pools: tuple[Any, ...] = (descriptor_pool.Default(), _v1_pool())

    def methods(self) -> dict[str, Method]:
        """Methods of the service, in either version."""
        return {"ServerReflectionInfo": dialogue(self._talk)}

    async def _talk(self, call: Call) -> None:
        while (request := await call.receive(reflection_pb2.ServerReflectionRequest)) is not None:
            response = self._answer(request)
            response.valid_host = request.host
            response.original_request.CopyFrom(request)
            await call.send(response)

    def _answer(self, request: reflection_pb2.ServerReflectionRequest) -> Any:
        match request.WhichOneof("message_request"):
            case "list_services":
                listed = reflection_pb2.ListServiceResponse()
                for name in self._names:
                    listed.service.add(name=name)
                return _Response(list_services_response=listed)
            case "file_by_filename":
                return self._file("FindFileByName", request.file_by_filename)
            case "file_containing_symbol":
                return self._file("FindFileContainingSymbol", request.file_containing_symbol)
            case "all_extension_numbers_of_type":
                # proto3 messages have no extensions; an unknown type is told as such.
                name = request.all_extension_numbers_of_type
                if self._find("FindMessageTypeByName", name) is None:
                    return _not_found()
                return _Response(
                    all_extension_numbers_response=reflection_pb2.ExtensionNumberResponse(
                        base_type_name=name
                    )
                )
        return _not_found()

    def _find(self, method: str, name: str) -> Any:
        for pool in self._pools:
            try:
                return getattr(pool, method)(name)
            except KeyError:
                continue
        return None

    def _file(self, method: str, name: str) -> Any:
        file = self._find(method, name)
        if file is None:
            return _not_found()
        files: dict[str, FileDescriptor] = {}
        _collect(file, files)
        encoded = []
        for each in files.values():
            proto = descriptor_pb2.FileDescriptorProto()
            each.CopyToProto(proto)
            encoded.append(proto.SerializeToString())
        return _Response(
            file_descriptor_response=reflection_pb2.FileDescriptorResponse(
                file_descriptor_proto=encoded
            )
        )


def _collect(file: FileDescriptor, files: dict[str, FileDescriptor]) -> None:
    """Add a file and all it imports."""
    if file.name not in files:
        files[file.name] = file
        for dependency in file.dependencies:
            _collect(dependency, files)


def _not_found() -> Any:
    return _Response(
        error_response=reflection_pb2.ErrorResponse(
            error_code=Status.NOT_FOUND.value, error_message="not found"
        )
    )
