"""Messages within messages, as xDS has them everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.any_pb2 import Any

if TYPE_CHECKING:
    from google.protobuf.message import Message


def pack(message: Message) -> Any:
    """A message with its type; equal messages give equal bytes."""
    packed = Any()
    packed.Pack(message, deterministic=True)
    return packed
