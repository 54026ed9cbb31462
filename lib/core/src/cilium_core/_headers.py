"""Where the headers are that the data plane and user space share."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enum import EnumMeta

    class _Members(EnumMeta):
        """Tells the type checker that members come from a header."""

        def __getattr__(cls, name: str) -> Any: ...

    class CEnum(IntEnum, metaclass=_Members):
        """An enum whose members a header lists."""
else:
    CEnum = IntEnum


def header(name: str) -> Path:
    """Path of a header shared with the data plane: inside the wheel, or in the repository."""
    package = Path(__file__).resolve().parent
    for folder in (package / "bpf", package.parents[3] / "bpf" / "lib"):
        if (path := folder / name).is_file():
            return path
    raise FileNotFoundError(
        f"{name}: neither {package / 'bpf'} nor the repository's bpf/lib has it;"
        " install cilium-core from its wheel or run inside the repository"
    )
