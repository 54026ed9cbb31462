"""Queries as clients send them, read strictly, and the refusals they get.

What a query means must not depend on who reads it: the proxy judges the name and a server answers
it. So a query is one question with an uncompressed name, nothing in the other sections but EDNS and
a transaction signature, and not a byte more. Everything else is refused and never forwarded.

Pure functions of bytes. Names are in presentation form, in lower case, with a final dot; bytes that
are no plain characters are escaped, so that no pattern but "everything" matches them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import Final

HEADER_BYTES: Final = 12
MAX_NAME_BYTES: Final = 255
MAX_LABEL_BYTES: Final = 63

RCODE_FORMERR: Final = 1
RCODE_SERVFAIL: Final = 2
RCODE_NXDOMAIN: Final = 3
RCODE_REFUSED: Final = 5

CLASS_IN: Final = 1
TYPE_OPT: Final = 41
TYPE_TSIG: Final = 250
TYPE_IXFR: Final = 251
TYPE_AXFR: Final = 252

TYPE_NAMES: Final = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    13: "HINFO",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    35: "NAPTR",
    39: "DNAME",
    41: "OPT",
    43: "DS",
    46: "RRSIG",
    47: "NSEC",
    48: "DNSKEY",
    50: "NSEC3",
    52: "TLSA",
    64: "SVCB",
    65: "HTTPS",
    251: "IXFR",
    252: "AXFR",
    255: "ANY",
    257: "CAA",
}

_COUNTS = Struct("!HHHH")
_PAIR = Struct("!HH")
_RECORD = Struct("!HHIH")
_PLAIN = re.compile(rb"[-_a-zA-Z0-9]*")
_QUOTED = frozenset(b'"().;\\@$')


class Fault(Enum):
    """What is wrong with a message; the value names it in the metrics."""

    SHORT = "too short"
    RESPONSE = "not a query"
    OPCODE = "opcode"
    FLAGS = "flags"
    COUNTS = "sections"
    NAME = "malformed name"
    RECORD = "malformed record"
    TRAILING = "trailing bytes"


class MessageError(Exception):
    """A message that is not understood."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault

    @property
    def answerable(self) -> bool:
        """Whether the sender may be answered: not when it might be a reflected answer itself."""
        return self.fault not in (Fault.SHORT, Fault.RESPONSE)


@dataclass(frozen=True, slots=True)
class Query:
    """A question that was understood.

    `question` is the question section as sent: name, type and class.
    """

    name: str
    qtype: int
    qclass: int
    question: bytes

    @property
    def transfer(self) -> bool:
        """Whether the answer may consist of several messages."""
        return self.qtype in (TYPE_AXFR, TYPE_IXFR)


def type_name(number: int) -> str:
    """The name of a record type, `TYPE…` for one without."""
    return TYPE_NAMES.get(number) or f"TYPE{number}"


def parse_query(data: bytes) -> Query:
    """Read a query. Raises `MessageError` on everything that is not exactly one."""
    if len(data) < HEADER_BYTES:
        raise MessageError(Fault.SHORT)
    if data[2] & 0x80:
        raise MessageError(Fault.RESPONSE)
    if data[2] & 0x78:
        raise MessageError(Fault.OPCODE)
    if data[2] & 0x02 or data[3] & 0x0F:  # truncated, or with an outcome already
        raise MessageError(Fault.FLAGS)
    questions, answers, authorities, additional = _COUNTS.unpack_from(data, 4)
    if questions != 1 or answers or authorities or additional > 2:
        raise MessageError(Fault.COUNTS)
    try:
        end, name = _read_name(data, HEADER_BYTES)
        qtype, qclass = _PAIR.unpack_from(data, end)
    except (IndexError, ValueError) as error:
        raise MessageError(Fault.NAME) from error
    except Exception as error:  # struct.error: the message ends within the question
        raise MessageError(Fault.RECORD) from error
    end += 4
    question = data[HEADER_BYTES:end]
    _check_additional(data, end, additional)
    return Query(name, qtype, qclass, question)


def refusal(data: bytes, question: bytes, rcode: int) -> bytes:
    """The answer with only an outcome to `data`, of which the id and flags are enough.

    `question` is its question section, empty when that was not understood.
    """
    flags = bytes((0x80 | data[2] & 0x79, 0x80 | data[3] & 0x10 | rcode))
    counts = b"\x00\x01" if question else b"\x00\x00"
    return b"".join((data[:2], flags, counts, b"\x00\x00\x00\x00\x00\x00", question))


def name_text(labels: list[bytes]) -> str:
    """A name in presentation form: lower case, escaped, with a final dot."""
    joined = b"".join(labels)
    if _PLAIN.fullmatch(joined):
        return b".".join([*labels, b""]).decode("ascii").lower() or "."
    return "".join(_label_text(label) + "." for label in labels).lower()


def _label_text(label: bytes) -> str:
    return "".join(
        f"\\{byte:c}" if byte in _QUOTED else chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03d}"
        for byte in label
    )


def _read_name(data: bytes, start: int) -> tuple[int, str]:
    """An uncompressed name: the offset after it, and its text.

    Raises `ValueError` or `IndexError` when there is none.
    """
    labels = []
    position = start
    while length := data[position]:
        if length > MAX_LABEL_BYTES:
            raise ValueError("compressed, or of an unknown kind")
        position += 1
        label = data[position : position + length]
        if len(label) != length:
            raise ValueError("cut short")
        labels.append(label)
        position += length
    position += 1
    if position - start > MAX_NAME_BYTES:
        raise ValueError("too long")
    return position, name_text(labels)


def _check_additional(data: bytes, position: int, count: int) -> None:
    """At most EDNS and then a signature, each whole, and nothing after them."""
    seen: list[int] = []
    for _ in range(count):
        try:
            end, name = _read_name(data, position)
            kind, _qclass, _ttl, length = _RECORD.unpack_from(data, end)
        except Exception as error:  # whatever way it is cut short
            raise MessageError(Fault.RECORD) from error
        position = end + _RECORD.size + length
        misplaced = kind in seen or TYPE_TSIG in seen
        if kind not in (TYPE_OPT, TYPE_TSIG) or misplaced or (kind == TYPE_OPT and name != "."):
            raise MessageError(Fault.RECORD)
        if kind == TYPE_OPT and not _options_whole(data, end + _RECORD.size, position):
            raise MessageError(Fault.RECORD)
        seen.append(kind)
    if position < len(data):
        raise MessageError(Fault.TRAILING)
    if position > len(data):
        raise MessageError(Fault.RECORD)


def _options_whole(data: bytes, position: int, end: int) -> bool:
    while position + 4 <= end <= len(data):
        position += 4 + _PAIR.unpack_from(data, position)[1]
    return position == end
