"""A cache of bounded size that forgets what was not used for a while."""

from __future__ import annotations

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class TwoGenerations(Generic[Key, Value]):
    """Holds what was used last: from `size` to twice as many entries.

    When the young generation is full it becomes the old one, and what the old one held and nobody
    asked for since is gone. Finding a young entry costs one look-up.
    """

    __slots__ = ("_old", "_size", "_young")

    def __init__(self, size: int = 8192) -> None:
        self._size = size
        self._young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}

    def get(self, key: Key) -> Value | None:
        """What is kept under a key."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Keep a value."""
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
