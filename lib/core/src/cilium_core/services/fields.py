"""Reading fields of objects that anybody may have written: what is malformed is remarked on.

A `Fields` is one object or a part of it, knows its path, and collects the remarks of the whole
object; every getter gives a value of the asked type or a default.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cilium_core.policy.ports import Protocol
from cilium_core.services.objects import Remark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_core.services.models import Address, Network

_PROTOCOLS = {one.name: one for one in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)}
_PORT_MAX = 65535
_SHOWN = 60


def shown(value: object) -> str:
    """A value as it is put into a message: whole if short."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


@lru_cache(maxsize=1 << 16)
def _parse(text: str) -> Address:
    return ipaddress.ip_address(text)


class Fields:
    """One mapping of an object."""

    def __init__(
        self, value: Mapping[str, Any], subject: str, path: str, remarks: list[Remark]
    ) -> None:
        self._value = value
        self._subject = subject
        self._path = path
        self.remarks = remarks

    @classmethod
    def of(cls, obj: Mapping[str, Any], subject: str) -> Fields:
        """The whole of an object, called `subject` in remarks."""
        return cls(obj, subject, "", [])

    def remark(self, name: str, text: str) -> None:
        """Say what is wrong with a field."""
        self.remarks.append(Remark(self._subject, self.path(name), text))

    def path(self, name: str) -> str:
        """Where a field is in the object."""
        return f"{self._path}.{name}" if self._path else name

    def raw(self, name: str) -> object:
        """The value as it is."""
        return self._value.get(name)

    def part(self, name: str) -> Fields:
        """A mapping inside; an empty one where there is none."""
        value = self._value.get(name)
        if value is not None and not isinstance(value, Mapping):
            self.remark(name, f"{shown(value)} is no object; it counts as not written")
            value = None
        return Fields(value or {}, self._subject, self.path(name), self.remarks)

    def parts(self, name: str) -> Iterator[Fields]:
        """The mappings of a list."""
        for index, item in enumerate(self._list(name)):
            path = f"{name}[{index}]"
            if isinstance(item, Mapping):
                yield Fields(item, self._subject, self.path(path), self.remarks)
            else:
                self.remark(path, f"{shown(item)} is no object; it is left out")

    def texts(self, name: str) -> Iterator[tuple[str, str]]:
        """The texts of a list, each with its place."""
        for index, item in enumerate(self._list(name)):
            path = f"{name}[{index}]"
            if isinstance(item, str):
                yield path, item
            else:
                self.remark(path, f"{shown(item)} is no text; it is left out")

    def named_texts(self) -> Iterator[tuple[str, str]]:
        """All names with texts, such as labels."""
        for name, value in self._value.items():
            if isinstance(name, str) and isinstance(value, str):
                yield name, value

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        value = self._value.get(name)
        if value is None:
            return default
        if isinstance(value, str):
            return value
        self.remark(name, f"{shown(value)} is no text; {default!r} is taken")
        return default

    def one_of(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of some texts; the empty one is the default."""
        value = self.text(name) or default
        if value in choices:
            return value
        self.remark(name, f"{shown(value)} is none of {', '.join(choices)}; {default} is taken")
        return default

    def flag(self, name: str, default: bool) -> bool:
        """Yes or no."""
        value = self._value.get(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        self.remark(name, f"{shown(value)} is neither true nor false; {default} is taken")
        return default

    def number(self, name: str, lowest: int, highest: int, default: int) -> int:
        """A whole number within limits, both inclusive."""
        value = self._value.get(name)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return value
        self.remark(
            name, f"{shown(value)} is no number from {lowest} to {highest}; {default} is taken"
        )
        return default

    def port(self, name: str) -> int | None:
        """A port from 1 to 65535; None, with a remark, where it is missing or anything else."""
        value = self._value.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _PORT_MAX:
            return value
        self.remark(name, f"{shown(value)} is no port from 1 to 65535; the entry is left out")
        return None

    def protocol(self, name: str = "protocol") -> Protocol | None:
        """A transport protocol, TCP if none is written; None, with a remark, for others."""
        value = self._value.get(name)
        if value is None or value == "":
            return Protocol.TCP
        found = _PROTOCOLS.get(value) if isinstance(value, str) else None
        if found is None:
            self.remark(name, f"{shown(value)} is not TCP, UDP or SCTP; the entry is left out")
        return found

    def addresses(self, name: str, *none: str) -> tuple[Address, ...]:
        """The addresses of a list of texts, each once; texts of `none` are no address."""
        found: dict[Address, None] = {}
        for path, text in self.texts(name):
            address = None if text in none else self.read_address(path, text)
            if address is not None:
                found[address] = None
        return tuple(found)

    def read_address(self, path: str, text: str, *, near: bool = False) -> Address | None:
        """An address that a frontend or backend can have; None, with a remark, for others.

        Loopback and link-local addresses, which mean something else on every node, are such only
        with `near`: whoever writes a service must not reach by it what listens there.
        """
        try:
            address = _parse(text)
        except ValueError:
            self.remark(path, f"{shown(text)} is no address; it is left out")
            return None
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if address.is_unspecified or address.is_multicast or getattr(address, "scope_id", None):
            self.remark(path, f"{shown(text)} is no address of one host; it is left out")
            return None
        if not near and (address.is_loopback or address.is_link_local):
            self.remark(path, f"{shown(text)} means something else on every node; it is left out")
            return None
        return address

    def read_network(self, path: str, text: str) -> Network | None:
        """A prefix, whose host bits do not matter; None, with a remark, for what is none."""
        try:
            return ipaddress.ip_network(text.strip(), strict=False)
        except ValueError:
            self.remark(path, f"{shown(text)} is no prefix such as 10.0.0.0/8; it is left out")
            return None

    def _list(self, name: str) -> list[Any]:
        value = self._value.get(name)
        if value is None:
            return []
        if isinstance(value, list | tuple):
            return list(value)
        self.remark(name, f"{shown(value)} is no list; it counts as not written")
        return []


def named(obj: Mapping[str, Any], kind: str) -> tuple[str, str, Fields]:
    """Namespace, name and fields of an object; `default` and the empty text where not written."""
    metadata = obj.get("metadata")
    if not isinstance(metadata, Mapping):
        metadata = {}
    namespace, name = metadata.get("namespace"), metadata.get("name")
    namespace = namespace if isinstance(namespace, str) and namespace else "default"
    name = name if isinstance(name, str) else ""
    return namespace, name, Fields.of(obj, f"{kind} {namespace}/{name}")
