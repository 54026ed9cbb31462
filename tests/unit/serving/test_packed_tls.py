"""A packed listener goes over to new certificates and authorities without a restart."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest
from cilium_core.errors import InvalidError
from cilium_core.serving.packed import PackedServer, keep_certificate, server_context, tls

from tests.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_S = 30.0


async def names(port: int, authority: Authority, *pair: Path) -> set[str]:
    """Names in the certificate that a client is shown; none when it is sent away."""
    context = authority.client_context("h2")
    context.check_hostname = False
    if pair:
        context.load_cert_chain(*pair)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        certificate = writer.get_extra_info("peercert")
        # with TLS 1.3 a server says only now whether it takes the client
        await reader.readexactly(1)
        writer.close()
    except (ssl.SSLError, OSError, asyncio.IncompleteReadError):
        return set()
    return {value for kind, value in certificate["subjectAltName"] if kind == "DNS"}


async def test_certificate_and_authorities_follow_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_LOOK_INTERVAL_S", 0.05)
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    stranger = other.issue("stranger")
    certificate, key = authority.issue("first")
    clients = tmp_path / "clients.crt"
    clients.write_bytes(authority.certificate.read_bytes())
    context = server_context(certificate, key, [clients])
    server = PackedServer()
    port = await server.listen_tcp("127.0.0.1:0", context)
    keeping = asyncio.create_task(keep_certificate(context, certificate, key, [clients]))
    try:
        own = authority.issue("client")
        assert await names(port, authority, *own) == {"first"}
        assert await names(port, authority, *stranger) == set()
        key.write_text("no key")  # half of a change, and a client is served all the same
        assert await names(port, authority, *own) == {"first"}
        for old, new in zip((certificate, key), authority.issue("second"), strict=True):
            old.write_bytes(new.read_bytes())
        clients.write_bytes(clients.read_bytes() + other.certificate.read_bytes())
        async with asyncio.timeout(LIMIT_S):
            while await names(port, authority, *stranger) != {"second"}:
                pass
    finally:
        keeping.cancel()
        await server.stop()


def test_a_context_needs_files_that_can_be_used(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("x")
    with pytest.raises(InvalidError, match="cannot be used as client CA"):
        server_context(certificate, key, [key])
    with pytest.raises(InvalidError, match="cannot be used"):
        server_context(certificate, tmp_path / "none")
