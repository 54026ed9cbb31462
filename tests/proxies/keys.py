"""Certificates for names, and Secret objects that hold them."""

from __future__ import annotations

import base64
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

from tests.needing import need

if TYPE_CHECKING:
    from pathlib import Path


class Authority:
    """Signs certificates for DNS names; files lie in one directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        need("" if shutil.which("openssl") else "openssl is not installed")
        self._directory = directory
        self.certificate = directory / f"{name}.crt"
        self._key = directory / f"{name}.key"
        files = ("-keyout", self._key, "-out", self.certificate)
        _openssl("req", "-x509", *_KEY, *files, "-days", "2", "-subj", f"/CN={name}")

    def issue(self, *names: str) -> tuple[Path, Path]:
        """Give certificate and key for DNS names."""
        stem = names[0].replace("*", "star")
        key, request, certificate, extensions = (
            self._directory / f"{stem}.{end}" for end in ("key", "csr", "crt", "ext")
        )
        extensions.write_text(f"subjectAltName={','.join(f'DNS:{name}' for name in names)}\n")
        _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", "/CN=server")
        signing = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", "2")
        output = ("-out", certificate, "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, *signing, *output)
        return certificate, key

    def client_context(self, *protocols: str) -> ssl.SSLContext:
        """What a client needs that trusts this authority."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context


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


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(*arguments: object) -> None:
    words = [str(word) for word in arguments]
    subprocess.run(["openssl", *words], check=True, capture_output=True)
