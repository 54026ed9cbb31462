"""What the data plane and user space share, read from the one C header that defines it.

`bpf/lib/abi.h` is compiled into every eBPF program; this module parses the same file, so that a
struct has one definition. Whoever reads or writes a map or an event takes the layout from here.
Nothing here changes after import, so it is safe from any thread. A header that a plain C parser
cannot read fails the import: nothing could work with it.

Every enumerator is also an attribute of the module (`abi.TRACE_TO_LXC`), as an int.
"""

from __future__ import annotations

import functools
import re
import struct
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import cffi

from cilium_core._headers import CEnum, header

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

_TYPES = """
typedef uint8_t __u8; typedef uint16_t __u16; typedef uint32_t __u32; typedef uint64_t __u64;
typedef int8_t __s8; typedef int16_t __s16; typedef int32_t __s32; typedef int64_t __s64;
"""


def plain(text: str) -> str:
    """C text without comments and preprocessor lines, which is what a declaration parser reads."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"^[ \t]*#.*$", "", text, flags=re.MULTILINE)


def _read() -> tuple[cffi.FFI, tuple[str, ...], dict[str, dict[str, int]]]:
    text = plain(header("abi.h").read_text(encoding="utf-8"))
    ffi = cffi.FFI()
    ffi.cdef(_TYPES + text)
    structs = tuple(re.findall(r"^struct (\w+) \{", text, flags=re.MULTILINE))
    enums: dict[str, dict[str, int]] = {}
    for name in re.findall(r"^enum (\w+) \{", text, flags=re.MULTILINE):
        relements = ffi.typeof(f"enum {name}").relements
        enums[name] = dict(sorted(relements.items(), key=lambda item: item[1]))
    return ffi, structs, enums


ffi, structs, _enums = _read()
"""The cffi FFI that knows every struct of the header, and the names of those structs."""

constants: Mapping[str, int] = MappingProxyType(
    {name: value for members in _enums.values() for name, value in members.items()}
)
"""Every enumerator of the header."""


def __getattr__(name: str) -> int:
    try:
        return constants[name]
    except KeyError:
        raise AttributeError(f"{name} is not in abi.h") from None


@functools.cache
def enum(name: str) -> type[CEnum]:
    """Return the Python enum of a C enum; one whose name ends in `_flag` is an IntFlag."""
    if name not in _enums:
        raise KeyError(f"enum {name} is not in abi.h, which has {', '.join(_enums)}")
    base: Any = IntFlag if name.endswith("_flag") else IntEnum
    title = "".join(part.capitalize() for part in name.split("_"))
    made: type[CEnum] = base(title, _enums[name], module=__name__)
    return made


@functools.cache
def sizeof(name: str) -> int:
    """Size of a struct (`"event"`) or a scalar (`"__u32"`) in bytes."""
    return int(ffi.sizeof(ctype(name)))


def ctype(name: str) -> str:
    """Return the C spelling of a type: struct names may leave `struct` out."""
    return f"struct {name}" if name in structs else name


def fields(name: str) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of every field of a struct, in order of offset."""
    return {
        field: (int(info.offset), int(ffi.sizeof(info.type)))
        for field, info in ffi.typeof(ctype(name)).fields
    }


def new(name: str, **values: Any) -> Any:
    """Make a zeroed struct with some fields set.

    Arrays of bytes take bytes, shorter ones are filled up with zeroes. Returns a cffi pointer.
    Raises AttributeError for an unknown field, OverflowError for a value that does not fit.
    """
    made = ffi.new(f"{ctype(name)} *")
    for field, value in values.items():
        if isinstance(value, bytes | bytearray):
            target = getattr(made, field)
            if len(value) > len(target):
                raise OverflowError(
                    f"{name}.{field}: {len(value)} bytes, and {len(target)} is the most"
                )
            ffi.memmove(target, bytes(value), len(value))
        else:
            setattr(made, field, value)
    return made


def pack(name: str, **values: Any) -> bytes:
    """Bytes of a struct with some fields set, the rest zero; see `new`."""
    return bytes(ffi.buffer(new(name, **values)))


def unpack(name: str, data: bytes | bytearray | memoryview) -> Any:
    """Make a struct out of bytes, which may be longer than it.

    Returns a cffi pointer to a copy. Raises ValueError when bytes are missing.
    """
    size = sizeof(name)
    if len(data) < size:
        raise ValueError(f"struct {name} is {size} bytes long, {len(data)} were given")
    made = ffi.new(f"{ctype(name)} *")
    ffi.memmove(made, data, size)
    return made


def as_bytes(value: Any) -> bytes:
    """Bytes of a cffi struct pointer, struct, or array."""
    if ffi.typeof(value).kind == "struct":
        value = ffi.addressof(value)
    return bytes(ffi.buffer(value))


def as_dict(value: Any) -> dict[str, Any]:
    """Fields of a struct as ints, bytes for arrays; padding left out."""
    kind = ffi.typeof(value)
    members = kind.item.fields if kind.kind == "pointer" else kind.fields
    found: dict[str, Any] = {}
    for field, info in members:
        if re.fullmatch(r"pad\d*|reserved", field):
            continue
        part = getattr(value, field)
        found[field] = bytes(ffi.buffer(part)) if info.type.kind == "array" else part
    return found


@functools.cache
def view(name: str, *chosen: str) -> struct.Struct:
    """Return a struct.Struct that reads and writes some fields of a struct, in the given order.

    The other bytes are skipped when reading and zero when writing. This is the fast way for many
    entries; arrays of bytes are bytes. The fields must be in the order of the header. Raises
    KeyError for an unknown field and ValueError for another order.
    """
    layout = dict(ffi.typeof(ctype(name)).fields)
    spec, at = "=", 0
    for field in chosen:
        info = layout[field]
        if info.offset < at:
            raise ValueError(f"{name}.{field} stands before the field asked for ahead of it")
        spec += f"{info.offset - at}x{_code(info.type)}"
        at = info.offset + ffi.sizeof(info.type)
    return struct.Struct(f"{spec}{sizeof(name) - at}x")


def _code(kind: Any) -> str:
    size = int(ffi.sizeof(kind))
    if kind.kind == "array":
        return f"{size}s"
    code = {1: "b", 2: "h", 4: "i", 8: "q"}[size]
    return code if int(ffi.cast(kind, -1)) < 0 else code.upper()


@functools.cache
def dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a struct, for reading many at once (NumPy is the caller's)."""
    import numpy as np

    names, formats, offsets = [], [], []
    for field, info in ffi.typeof(ctype(name)).fields:
        names.append(field)
        offsets.append(info.offset)
        formats.append(_format(info.type))
    spec = {"names": names, "formats": formats, "offsets": offsets, "itemsize": sizeof(name)}
    return np.dtype(spec)  # type: ignore[call-overload, no-any-return]


def _format(kind: Any) -> Any:
    if kind.kind == "array":
        return (_format(kind.item), (kind.length,))
    if kind.kind == "struct":
        return dtype(kind.cname.removeprefix("struct "))
    sign = "i" if int(ffi.cast(kind, -1)) < 0 else "u"
    return f"={sign}{ffi.sizeof(kind)}"
