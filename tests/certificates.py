"""A certificate authority for one test, made with the openssl program."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

from tests.needing import need

if TYPE_CHECKING:
    from pathlib import Path


class Authority:
    """Signs certificates for names and 127.0.0.1; files lie in one directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        need("" if shutil.which("openssl") else "openssl is not installed")
        self._directory = directory
        self.certificate = directory / f"{name}.crt"
        self._key = directory / f"{name}.key"
        files = ("-keyout", self._key, "-out", self.certificate)
        _openssl("req", "-x509", *_KEY, *files, "-days", "2", "-subj", f"/CN={name}")

    def issue(self, *names: str, organization: str = "") -> tuple[Path, Path]:
        """Give certificate and key; the subject is the first name, in an organization if given."""
        stem = names[0].replace("*", "star")
        key, request, certificate, extensions = (
            self._directory / f"{stem}.{end}" for end in ("key", "csr", "crt", "ext")
        )
        subject = f"/O={organization}/CN={names[0]}" if organization else f"/CN={names[0]}"
        alternatives = ["IP:127.0.0.1", *(f"DNS:{name}" for name in names)]
        extensions.write_text(f"subjectAltName={','.join(alternatives)}\n")
        _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", subject)
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


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(*arguments: object) -> None:
    words = [str(word) for word in arguments]
    subprocess.run(["openssl", *words], check=True, capture_output=True)
