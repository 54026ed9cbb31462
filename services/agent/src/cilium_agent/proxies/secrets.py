"""Secret objects as far as proxies need them: values of headers, certificates and keys.

Whoever watches Secret objects hands them over here; the proxies' configuration is made anew when
one that it uses changes. Nothing is written to disk or to a log. Used from the event loop.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from cilium_core.policy.l7 import SecretRef
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = get_logger()


class Secrets:
    """The Secret objects of the cluster, by name."""

    def __init__(self) -> None:
        self._data: dict[SecretRef, Mapping[str, bytes]] = {}
        self._synchronised = False
        self._listeners: list[Callable[[SecretRef | None], None]] = []

    @property
    def synchronised(self) -> bool:
        """Whether all Secrets that exist have been handed over once."""
        return self._synchronised

    def listen(self, listener: Callable[[SecretRef | None], None]) -> None:
        """Call `listener` with what changed, with None once everything is known."""
        self._listeners.append(listener)

    def upsert(self, document: Mapping[str, Any]) -> None:
        """Take a Secret object; items that are not base64 are left out, with a warning."""
        metadata = document.get("metadata") or {}
        reference = SecretRef(metadata.get("namespace") or "default", metadata.get("name") or "")
        data = {}
        for item, text in (document.get("data") or {}).items():
            try:
                data[item] = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError, TypeError):
                log.warning(
                    "an item of a Secret is not base64",
                    secret=f"{reference.namespace}/{reference.name}",
                    item=item,
                )
        for item, text in (document.get("stringData") or {}).items():
            data[item] = str(text).encode()
        if self._data.get(reference) != data:
            self._data[reference] = data
            self._tell(reference)

    def delete(self, namespace: str, name: str) -> None:
        """Forget a Secret; an unknown one is fine."""
        reference = SecretRef(namespace, name)
        if self._data.pop(reference, None) is not None:
            self._tell(reference)

    def finish(self) -> None:
        """Say that all Secrets that exist have been handed over."""
        if not self._synchronised:
            self._synchronised = True
            self._tell(None)

    def get(self, reference: SecretRef) -> Mapping[str, bytes] | None:
        """The items of a Secret; None when it does not exist."""
        return self._data.get(reference)

    def value(self, reference: SecretRef) -> str | None:
        """The value of a Secret with a single item, as text; None when there is no such thing."""
        items = list((self._data.get(reference) or {}).values())
        if len(items) != 1:
            return None
        try:
            return items[0].decode().strip("\r\n")
        except UnicodeDecodeError:
            return None

    def _tell(self, reference: SecretRef | None) -> None:
        for listener in self._listeners:
            listener(reference)
