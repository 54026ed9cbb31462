"""What responses say: the first error in one. Pure functions of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_proxy.encoding import Reader, Value

if TYPE_CHECKING:
    from kafka_proxy.schemas import Struct


def error_of(form: Struct, body: bytes) -> int:
    """First error that is not 0, 0 for none. `body` is what follows the correlation id.

    Raises ProtocolError when it cannot be read.
    """
    reader = Reader(memoryview(body))
    if form.flexible_header:
        reader.tags(None, {})
    return _first(form, reader.struct(form))


def _first(form: Struct, value: Value) -> int:
    found = 0
    for field in form.fields:
        item = value[field.name]
        if field.kind == "error_code" and not field.array:
            found = int(item)
        elif field.struct is not None and item is not None:
            for one in item if field.array else (item,):
                if one is not None and (found := _first(field.struct, one)):
                    return found
        if found:
            return found
    return 0
