"""Certificates as servers and Secret objects hold them."""

from __future__ import annotations

import base64
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def server_context(pair: tuple[Path, Path]) -> ssl.SSLContext:
    """What a server needs; connections remember the name that they were asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, pair))

    def remember(connection: Any, name: str | None, _: ssl.SSLContext) -> None:
        connection.seen_name = name

    context.sni_callback = remember
    return context


def secret_document(
    name: str, pair: tuple[Path, Path] | None = None, authority: Path | None = None
) -> dict[str, Any]:
    """A Secret object with the usual items."""
    files: dict[str, Path] = {}
    if pair is not None:
        files |= {"tls.crt": pair[0], "tls.key": pair[1]}
    if authority is not None:
        files["ca.crt"] = authority
    data = {item: base64.b64encode(file.read_bytes()).decode() for item, file in files.items()}
    return {"metadata": {"namespace": "default", "name": name}, "data": data}
