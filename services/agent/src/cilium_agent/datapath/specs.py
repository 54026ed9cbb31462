"""What the C sources say about maps and tail calls, read from the headers that define them.

`bpf/lib/maps.h` lists the maps, `bpf/lib/calls.h` the tail call slots; both are written in a form
that the compiler and the regular expressions below understand. Pure but for reading the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_core import abi

from cilium_agent.datapath import syscalls
from cilium_agent.datapath.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

_ARGUMENTS = r"\(([^)]*)\)"
_CALL = re.compile(r"^\s*(CALL_\w+)\s*=\s*(\d+),\s*/\*\s*(\w+)\s*\*/", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map: what maps.h says, sizes in bytes, with the node's own number of entries."""

    index: int
    """The number that stands for the map in compiled programs."""
    name: str
    """As in C, without MAP_."""
    pin: str
    type: int
    key: str
    """C type, for abi."""
    value: str
    max_entries: int
    flags: int
    inner: MapSpec | None = None

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return abi.sizeof(self.key)

    @property
    def value_size(self) -> int:
        """Bytes of a value, of one processor for per-CPU maps."""
        return abi.sizeof(self.value)

    @property
    def per_cpu(self) -> bool:
        """Whether every processor has a value of its own."""
        return self.type in syscalls.PER_CPU_TYPES


def bpf_folder() -> Path:
    """Folder of the C sources: inside the wheel, or in the repository."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "bpf", package.parents[3] / "bpf"):
        if (folder / "lib" / "maps.h").is_file():
            return folder
    raise SourceError(
        f"no data plane sources in {package / 'bpf'} nor in {package.parents[3] / 'bpf'};"
        " install cilium-agent from its wheel or run inside the repository"
    )


def parse_maps(text: str) -> dict[str, MapSpec]:
    """Read the map list; keys are C names without MAP_. Raises SourceError naming the line."""
    found: dict[str, MapSpec] = {}
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    for line in text.splitlines():
        if match := re.fullmatch(rf"\s*MAP{_ARGUMENTS}[;,]?\s*", line):
            index, name, pin, *rest = _split(line, match[1], 8)
            spec = _spec(line, int(index), name, pin.strip('"'), rest)
            if spec.index in {other.index for other in found.values()}:
                raise SourceError(f"maps.h: index {spec.index} is used twice, again by {name}")
            found[name] = spec
        elif match := re.fullmatch(rf"\s*INNER{_ARGUMENTS}[;,]?\s*", line):
            name, *rest = _split(line, match[1], 6)
            if name not in found:
                raise SourceError(f"maps.h: INNER({name}, …) does not follow its MAP line")
            outer = found[name]
            found[name] = replace(outer, inner=_spec(line, -1, name, outer.pin, rest))
    if not found:
        raise SourceError("maps.h lists no map")
    return found


def _split(line: str, arguments: str, count: int) -> list[str]:
    parts = [part.strip() for part in arguments.split(",")]
    if len(parts) != count:
        raise SourceError(f"maps.h: {count} arguments are wanted in: {line.strip()}")
    return parts


def _spec(line: str, index: int, name: str, pin: str, rest: list[str]) -> MapSpec:
    kind, key, value, entries, flags = rest
    try:
        return MapSpec(
            index=index,
            name=name,
            pin=pin,
            type=syscalls.MAP_TYPES[kind],
            key=key.removeprefix("struct "),
            value=value.removeprefix("struct "),
            max_entries=_entries(entries),
            flags=sum(
                0 if flag == "0" else syscalls.MAP_FLAGS[flag]
                for flag in re.split(r"\s*\|\s*", flags)
            ),
        )
    except (KeyError, ValueError) as error:
        raise SourceError(f"maps.h: {error} is not known in: {line.strip()}") from error


def _entries(text: str) -> int:
    """Number of entries: a number, `CPUS`, or a number of them for each processor."""
    number, _, times = text.partition("*") if "*" in text else ("1", "", text)
    if times.strip() != "CPUS":
        return int(text, 0)
    return int(number, 0) * syscalls.possible_cpus()


def parse_calls(text: str) -> dict[str, int]:
    """Read the tail call slots: function name to slot."""
    slots: dict[str, int] = {}
    for name, slot, function in _CALL.findall(text):
        if int(slot) in slots.values():
            raise SourceError(f"calls.h: slot {slot} is used twice, again by {name}")
        slots[function] = int(slot)
    return slots


def read_maps(folder: Path, sizes: Mapping[str, int] | None = None) -> dict[str, MapSpec]:
    """Read the maps of a source folder with this node's sizes.

    `sizes` maps pin names to numbers of entries; for a map of maps it is the size of the inner
    ones. Raises SourceError for an unknown map.
    """
    found = parse_maps((folder / "lib" / "maps.h").read_text(encoding="utf-8"))
    by_pin = {spec.pin: name for name, spec in found.items()}
    for pin, entries in (sizes or {}).items():
        if pin not in by_pin:
            raise SourceError(f"size of map {pin}: there is no such map; known: {sorted(by_pin)}")
        spec = found[by_pin[pin]]
        if spec.inner is not None:
            found[by_pin[pin]] = replace(spec, inner=replace(spec.inner, max_entries=entries))
        else:
            found[by_pin[pin]] = replace(spec, max_entries=entries)
    return found


def read_calls(folder: Path) -> dict[str, int]:
    """Read the tail call slots of a source folder; none when it has no calls.h."""
    path = folder / "lib" / "calls.h"
    return parse_calls(path.read_text(encoding="utf-8")) if path.is_file() else {}
