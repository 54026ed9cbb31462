"""Where this kernel has its fields, and what numbers its enums have: its own description, BTF.

Programs that look into the kernel's structs get the offsets from here instead of from headers, so
they are right for the kernel that runs. Pure reading, through libbpf; takes a few 100 ms.
"""

from __future__ import annotations

import ctypes as ct
import functools
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath.errors import KernelTypesError

if TYPE_CHECKING:
    from collections.abc import Iterator

_STRUCT, _ENUM = 4, 6
_HEADER = ct.c_uint32 * 3


@functools.cache
def _lib() -> Any:
    lib = ct.CDLL("libbpf.so.1", use_errno=True)
    lib.btf__load_vmlinux_btf.restype = ct.c_void_p
    lib.btf__free.argtypes = (ct.c_void_p,)
    lib.btf__find_by_name_kind.argtypes = (ct.c_void_p, ct.c_char_p, ct.c_uint32)
    lib.btf__type_by_id.argtypes = (ct.c_void_p, ct.c_uint32)
    lib.btf__type_by_id.restype = ct.c_void_p
    lib.btf__name_by_offset.argtypes = (ct.c_void_p, ct.c_uint32)
    lib.btf__name_by_offset.restype = ct.c_char_p
    return lib


class KernelTypes:
    """The types of the running kernel; a context manager.

    Raises KernelTypesError when the kernel does not describe itself.
    """

    def __init__(self) -> None:
        self._btf = _lib().btf__load_vmlinux_btf()
        if not self._btf:
            raise KernelTypesError(
                "the kernel does not tell its types: /sys/kernel/btf/vmlinux is not there;"
                " use one built with CONFIG_DEBUG_INFO_BTF"
            )

    def __enter__(self) -> KernelTypes:
        return self

    def __exit__(self, *_: object) -> None:
        _lib().btf__free(self._btf)

    def offsets(self, struct: str, *wanted: str) -> list[int]:
        """Offsets in bytes of fields of a struct. Raises KernelTypesError for one it lacks."""
        found = dict(self._members(self._find(struct, _STRUCT), 0))
        for name in wanted:
            if name not in found:
                raise KernelTypesError(f"struct {struct} of this kernel has no field {name}")
        return [found[name] for name in wanted]

    def enum(self, name: str) -> dict[str, int]:
        """Names and values of an enum. Raises KernelTypesError when there is none."""
        at, count, _ = self._open(self._find(name, _ENUM))
        values = (ct.c_uint32 * (2 * count)).from_address(at)
        return {self._name(values[2 * i]): values[2 * i + 1] for i in range(count)}

    def _find(self, name: str, kind: int) -> int:
        number: int = _lib().btf__find_by_name_kind(self._btf, name.encode(), kind)
        if number < 0:
            raise KernelTypesError(f"this kernel has no {name}")
        return number

    def _open(self, number: int) -> tuple[int, int, bool]:
        """Address behind the header of a type, how many members follow, and their form."""
        at = _lib().btf__type_by_id(self._btf, number)
        info = _HEADER.from_address(at)[1]
        return at + ct.sizeof(_HEADER), info & 0xFFFF, bool(info >> 31)

    def _members(self, number: int, base: int) -> Iterator[tuple[str, int]]:
        """Names and offsets of a struct's fields, those of nameless structs within too."""
        at, count, has_bitfields = self._open(number)
        values = (ct.c_uint32 * (3 * count)).from_address(at)
        for i in range(count):
            name, kind, bits = values[3 * i : 3 * i + 3]
            offset = base + ((bits & 0xFFFFFF if has_bitfields else bits) >> 3)
            if name:
                yield self._name(name), offset
            else:
                yield from self._members(kind, offset)

    def _name(self, offset: int) -> str:
        text: bytes = _lib().btf__name_by_offset(self._btf, offset)
        return text.decode()
