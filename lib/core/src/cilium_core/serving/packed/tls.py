"""TLS of packed listeners: version 1.3, optionally mutual, certificates reloaded while running."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

from cilium_core.errors import InvalidError
from cilium_core.files import versions_of
from cilium_core.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = get_logger()

_LOOK_INTERVAL_S: Final = 10.0


def server_context(
    certificate: Path,
    key: Path,
    client_cas: Sequence[Path] = (),
    *,
    protocols: Sequence[str] = ("h2",),
) -> ssl.SSLContext:
    """Context of a listener; `client_cas` make client certificates mandatory.

    Raises InvalidError when a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(list(protocols))
    reload_certificate(context, certificate, key)
    if client_cas:
        context.verify_mode = ssl.CERT_REQUIRED
        for path in client_cas:
            try:
                context.load_verify_locations(path)
            except (OSError, ssl.SSLError) as error:
                raise InvalidError(f"{path} cannot be used as client CA: {error}") from error
    return context


def reload_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Show these files in later handshakes. Raises InvalidError, keeping what was loaded."""
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidError(
            f"certificate {certificate} with key {key} cannot be used: {error}"
        ) from error


async def keep_certificate(
    context: ssl.SSLContext, certificate: Path, key: Path, client_cas: Sequence[Path] = ()
) -> None:
    """Show the certificate of these files, and believe what these authorities sign, as they change.

    Runs until cancelled. An authority that is taken out of its file is believed until the server
    is started again.
    """
    files = (certificate, key, *client_cas)
    seen = versions_of(files)
    while True:
        await asyncio.sleep(_LOOK_INTERVAL_S)
        if (now := versions_of(files)) == seen:
            continue
        seen = now
        try:
            reload_certificate(context, certificate, key)
            for path in client_cas:
                context.load_verify_locations(path)
        except (OSError, ssl.SSLError, InvalidError) as error:
            log.error("certificate cannot be loaded again", reason=str(error))
        else:
            log.info("certificate loaded again", file=str(certificate))
