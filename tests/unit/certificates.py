"""A certificate authority for one test, made with the openssl program."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.needing import need

if TYPE_CHECKING:
    from pathlib import Path


class Authority:
    """Signs certificates for 127.0.0.1; files lie in one directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        need("" if shutil.which("openssl") else "openssl is not installed")
        self._directory = directory
        self.certificate = directory / f"{name}.crt"
        self._key = directory / f"{name}.key"
        self._openssl(
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"],
            ["-keyout", self._key, "-out", self.certificate, "-subj", f"/CN={name}", "-days", "2"],
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        """Give certificate and key."""
        key, request, certificate, extensions = (
            self._directory / f"{name}.{end}" for end in ("key", "csr", "crt", "ext")
        )
        extensions.write_text("subjectAltName=IP:127.0.0.1\n")
        self._openssl(
            ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"],
            ["-keyout", key, "-out", request, "-subj", f"/CN={name}"],
        )
        self._openssl(
            ["x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key],
            ["-CAcreateserial", "-out", certificate, "-days", "2", "-extfile", extensions],
        )
        return certificate, key

    def _openssl(self, *arguments: list[str | Path]) -> None:
        command = ["openssl", *(str(word) for part in arguments for word in part)]
        subprocess.run(command, check=True, capture_output=True)
