"""Declaring settings as fields of a frozen dataclass."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from cilium_core.settings._values import Codec, codec_for


@dataclass(frozen=True, slots=True)
class Field:
    """One setting, as read from the model."""

    name: str
    key: str
    default: Any
    help: str
    group: str
    codec: Codec
    low: float | None
    high: float | None

    def parse(self, text: str) -> Any:
        """Value of `text`. Raises ValueError completing the sentence "expected …"."""
        value = self.codec.parse(text)
        for each in value if self.codec.many else (value,):
            if isinstance(each, (int, float)) and not isinstance(each, bool):
                self._check_range(each)
        return value

    def _check_range(self, value: float) -> None:
        show = self.codec.show
        if self.low is not None and value < self.low:
            raise ValueError(f"{show(self.low)} or more")
        if self.high is not None and value > self.high:
            raise ValueError(f"{show(self.high)} or less")


def setting(
    default: Any,
    help: str,  # noqa: A002 - reads as what it is at every use
    *,
    group: str = "General",
    low: float | None = None,
    high: float | None = None,
    key: str = "",
) -> Any:
    """Declare a setting. `low` and `high` bound a number; `key` replaces the derived key.

    `help` is a sentence for users: what it changes, and when to change it.
    """
    metadata = {"help": help, "group": group, "low": low, "high": high, "key": key}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def fields_of(model: type[Any]) -> tuple[Field, ...]:
    """Settings of `model`, in the order of declaration. Raises TypeError for a bad model."""
    hints = typing.get_type_hints(model, include_extras=True)
    found = []
    for item in dataclasses.fields(model):
        if "help" not in item.metadata:
            raise TypeError(f"{model.__name__}.{item.name} is not declared with setting()")
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        found.append(
            Field(
                name=item.name,
                key=item.metadata["key"] or item.name.replace("_", "-"),
                default=default,
                help=item.metadata["help"],
                group=item.metadata["group"],
                codec=codec_for(hints[item.name]),
                low=item.metadata["low"],
                high=item.metadata["high"],
            )
        )
    return tuple(found)
