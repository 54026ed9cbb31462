"""The little of Kafka's protocol that a probe needs: one produce or fetch request, and its outcome.

Standard library only. Versions are those that every broker since 0.11 and librdkafka's mock know.
"""

from __future__ import annotations

import struct
import time

PRODUCE, FETCH = 0, 1
_PRODUCE_VERSION, _FETCH_VERSION = 3, 4
_CORRELATION = 7


def request(act: str, topic: str, client: str = "prober") -> bytes:
    """A framed request to produce to, or consume from, partition 0 of a topic."""
    key, version, body = {
        "produce": (PRODUCE, _PRODUCE_VERSION, _produce),
        "consume": (FETCH, _FETCH_VERSION, _fetch),
    }[act]
    head = struct.pack("!hhi", key, version, _CORRELATION) + _string(client)
    message = head + body(topic)
    return struct.pack("!i", len(message)) + message


def outcome(act: str, answer: bytes) -> str:
    """What a broker's answer, without its frame, says: "ok", or the number of the error."""
    (correlation,) = struct.unpack_from("!i", answer)
    at = 4 if act == "produce" else 8  # fetch tells a throttle time first
    (topics,) = struct.unpack_from("!i", answer, at)
    if correlation != _CORRELATION or topics != 1:
        return "garbled"
    (size,) = struct.unpack_from("!h", answer, at + 4)
    _, _, error = struct.unpack_from("!iih", answer, at + 6 + size)
    return str(error) if error else "ok"


def _string(text: str) -> bytes:
    return struct.pack("!h", len(text)) + text.encode()


def _produce(topic: str) -> bytes:
    batch = _batch(b"hello")
    partition = struct.pack("!iii", 1, 0, len(batch)) + batch
    return struct.pack("!hhii", -1, 1, 1000, 1) + _string(topic) + partition


def _fetch(topic: str) -> bytes:
    head = struct.pack("!iiiibi", -1, 10, 0, 1 << 20, 0, 1)
    return head + _string(topic) + struct.pack("!iiqi", 1, 0, 0, 1 << 20)


def _batch(value: bytes) -> bytes:
    """A record batch, version 2, of one record."""
    record = b"\0\0\0\1" + _varint(len(value)) + value + b"\0"
    records = _varint(len(record)) + record
    now = int(time.time() * 1000)
    tail = struct.pack("!hiqqqhii", 0, 0, now, now, -1, -1, -1, 1) + records
    return struct.pack("!qiibI", 0, len(tail) + 9, 0, 2, crc32c(tail)) + tail


def _varint(value: int) -> bytes:
    """Zigzag, seven bits a byte; for small values that are not negative."""
    value <<= 1
    if value >= 0x80:
        return bytes([value & 0x7F | 0x80, value >> 7])
    return bytes([value])


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, as Kafka and SCTP want it."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()
