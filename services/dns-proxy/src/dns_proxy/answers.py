"""What servers answer: outcome, addresses, and how long they hold.

Only what belongs to the question counts: its own name, and the names that aliases in the answer
lead to from it. The time to live is the shortest on the way. An answer is read far enough to know
that it is whole; what cannot be read is never passed on.

Pure functions of bytes.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from struct import Struct
from typing import Final

from dns_proxy.messages import (
    CLASS_IN,
    HEADER_BYTES,
    MAX_NAME_BYTES,
    TYPE_OPT,
    Fault,
    MessageError,
    Query,
    name_text,
    type_name,
)

TYPE_A: Final = 1
TYPE_CNAME: Final = 5
TYPE_AAAA: Final = 28

MAX_TTL_S: Final = 0x7FFFFFFF
"""A larger one counts as 0 (RFC 2181)."""

NO_TTL: Final = 0xFFFFFFFF
"""What flows show for answers without records."""

MAX_POINTERS: Final = 64

_COUNTS = Struct("!HHHH")
_RECORD = Struct("!HHIH")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was understood.

    `addresses` are 4 or 16 bytes each, in order and once; `ttl_s` is 0 without addresses or
    aliases. `lowest_ttl_s` is that of all records of the answer, whatever they are, and `NO_TTL`
    without any. `truncated` answers make the client ask again, so nothing is learnt from them.
    """

    rcode: int
    addresses: tuple[bytes, ...]
    ttl_s: int
    aliases: tuple[str, ...]
    types: tuple[str, ...]
    lowest_ttl_s: int
    truncated: bool

    @property
    def address_texts(self) -> list[str]:
        """The addresses as text."""
        return [address_text(address) for address in self.addresses]


def address_text(address: bytes) -> str:
    """4 or 16 bytes as text."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def same_question(data: bytes, question: bytes) -> bool:
    """Whether a response repeats the question section; servers may change the case of the name."""
    end = HEADER_BYTES + len(question)
    if data[4:6] != b"\x00\x01" or not data[2] & 0x80:
        return False
    found = data[HEADER_BYTES:end]
    if found == question:
        return True
    # Lengths of labels are below the letters, so changing the case leaves them alone.
    return found[-4:] == question[-4:] and found[:-4].lower() == question[:-4].lower()


def parse_answer(data: bytes, query: Query) -> Answer:
    """Read a response that repeats the question. Raises `MessageError` when it is malformed."""
    try:
        return _parse(data, query)
    except MessageError:
        raise
    except Exception as error:  # cut short, in whatever field
        raise MessageError(Fault.RECORD) from error


def _parse(data: bytes, query: Query) -> Answer:
    _, answers, authorities, additional = _COUNTS.unpack_from(data, 4)
    truncated = bool(data[2] & 0x02)
    rcode = data[3] & 0x0F
    position = HEADER_BYTES + len(query.question)
    names: dict[int, tuple[list[bytes], int]] = {}
    found: list[tuple[str, int, int, int, int]] = []
    for index in range(answers + authorities + additional):
        labels, position = _read_name(data, position, names)
        kind, rclass, ttl, length = _RECORD.unpack_from(data, position)
        position += _RECORD.size
        start, position = position, position + length
        if position > len(data):
            raise MessageError(Fault.RECORD)
        if index < answers:
            if rclass == CLASS_IN:
                ttl = ttl if ttl <= MAX_TTL_S else 0
                found.append((name_text(labels), kind, ttl, start, position))
        elif kind == TYPE_OPT and index >= answers + authorities:
            rcode |= ttl >> 24 << 4
    if position != len(data):
        raise MessageError(Fault.TRAILING)
    if rcode or truncated or query.qclass != CLASS_IN:
        addresses, ttl_s, aliases = tuple[bytes, ...](), 0, tuple[str, ...]()
    else:
        addresses, ttl_s, aliases = _follow(data, query, found, names)
    types = tuple(dict.fromkeys(type_name(kind) for _, kind, _, _, _ in found))
    lowest = min((ttl for _, _, ttl, _, _ in found), default=NO_TTL)
    return Answer(rcode, addresses, ttl_s, aliases, types, lowest, truncated)


def _follow(
    data: bytes,
    query: Query,
    found: list[tuple[str, int, int, int, int]],
    names: dict[int, tuple[list[bytes], int]],
) -> tuple[tuple[bytes, ...], int, tuple[str, ...]]:
    """The addresses of the name asked for, the shortest life on the way, and the aliases."""
    owners = {query.name}
    aliases: list[str] = []
    ttls: list[int] = []
    pending = [record for record in found if record[1] == TYPE_CNAME]
    moved = True
    while moved and pending:
        moved, rest = False, []
        for record in pending:
            name, _, ttl, start, end = record
            if name not in owners:
                rest.append(record)
                continue
            labels, after = _read_name(data, start, names)
            if after != end:
                raise MessageError(Fault.RECORD)
            target = name_text(labels)
            ttls.append(ttl)
            moved = True
            if target not in owners:
                owners.add(target)
                aliases.append(target)
        pending = rest
    addresses: dict[bytes, None] = {}
    for name, kind, ttl, start, end in found:
        size = 4 if kind == TYPE_A else 16 if kind == TYPE_AAAA else 0
        if not size:
            continue
        if end - start != size:
            raise MessageError(Fault.RECORD)
        if name in owners:
            addresses[data[start:end]] = None
            ttls.append(ttl)
    return tuple(addresses), min(ttls, default=0), tuple(aliases)


def _read_name(
    data: bytes, start: int, names: dict[int, tuple[list[bytes], int]]
) -> tuple[list[bytes], int]:
    """A name that may be compressed: its labels, and the offset after it.

    `names` keeps what was read, by offset, so that many references to a name cost one reading.
    """
    known = names.get(start)
    if known is not None:
        return known
    labels: list[bytes] = []
    position, after, jumps, size = start, 0, 0, 1
    while length := data[position]:
        if length < 0x40:
            position += 1
            label = data[position : position + length]
            if len(label) != length:
                raise MessageError(Fault.NAME)
            labels.append(label)
            position += length
            size += length + 1
        elif length >= 0xC0:
            target = (length & 0x3F) << 8 | data[position + 1]
            after = after or position + 2
            jumps += 1
            if target >= position or jumps > MAX_POINTERS:
                raise MessageError(Fault.NAME)
            position = target
        else:
            raise MessageError(Fault.NAME)
        if size > MAX_NAME_BYTES:
            raise MessageError(Fault.NAME)
    names[start] = labels, after or position + 1
    return names[start]
