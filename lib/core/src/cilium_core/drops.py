"""Reasons for dropping a packet: number, name and the text that users read.

The one list is `bpf/lib/drop_reasons.h`, and that of the kernel's own reasons
`bpf/lib/kernel_drops.h`; this module reads them at import and never changes after.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from cilium_core._headers import CEnum, header

if TYPE_CHECKING:
    from collections.abc import Mapping


def _read() -> tuple[dict[str, int], dict[int, str]]:
    listed = re.findall(
        r"^\s*(?:DROP_|REASON_METRIC_)(\w+) = (\d+), /\* (.*) \*/$",
        header("drop_reasons.h").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    codes = {name: int(code) for name, code, _ in listed}
    return codes, {int(code): text for _, code, text in listed}


_codes, _texts = _read()

FIRST_DROP = 130
"""Codes below it only count something in the metrics map; nothing is dropped."""

DropReason: type[CEnum] = IntEnum(  # type: ignore[misc]
    "DropReason", {name: code for name, code in _codes.items() if code >= FIRST_DROP}
)
"""Drop reasons, named as in flow.DropReason but for a leading DROP_."""

texts: Mapping[int, str] = MappingProxyType(_texts)
"""Every reason of the metrics map, drops included, with its text."""


def text(code: int) -> str:
    """Text of a reason; one that is not in the list is told by its number."""
    return _texts.get(code, f"reason {code}")


@dataclass(frozen=True, slots=True)
class KernelDrop:
    """A reason of the kernel's own for dropping a packet."""

    name: str
    """As the kernel calls it, without SKB_DROP_REASON_."""
    text: str


def _read_kernel() -> dict[int, KernelDrop]:
    listed = re.findall(
        r"^\s*KERNEL_DROP_(\w+) = (\d+), /\* (.*) \*/$",
        header("kernel_drops.h").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    return {int(code): KernelDrop(name, text) for name, code, text in listed}


kernel_drops: Mapping[int, KernelDrop] = MappingProxyType(_read_kernel())
"""The kernel's reasons by our numbers, which a drop of FILE_KERNEL has in the place of a line."""

KERNEL_DROP_OTHER = 1
"""Number of a reason that is not in the list."""


def kernel_drop(code: int) -> KernelDrop:
    """Reason of the kernel behind one of our numbers; one of a later version is OTHER."""
    return kernel_drops.get(code, kernel_drops[KERNEL_DROP_OTHER])
