"""A real etcd on loopback, for tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.needing import need

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EtcdProcess:
    """One etcd member that can be killed and started again with its data."""

    def __init__(self, directory: Path, tls: Sequence[str] = ()) -> None:
        self.endpoint = f"127.0.0.1:{free_port()}"
        self._peer = f"http://127.0.0.1:{free_port()}"
        self._directory = directory
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        client = f"{'https' if self._tls else 'http'}://{self.endpoint}"
        self._directory.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                "etcd",
                f"--data-dir={self._directory / 'data'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={self._peer}",
                f"--initial-advertise-peer-urls={self._peer}",
                f"--initial-cluster=default={self._peer}",
                "--logger=zap",
                *self._tls,
                "--log-level=error",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        shutil.rmtree(self._directory / "data")


def require_etcd() -> None:
    need("" if shutil.which("etcd") else "etcd is not installed (Debian package etcd-server)")
