"""The TCP listener speaks TLS 1.3, and asks for certificates when it is given authorities."""

from __future__ import annotations

import os
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from hubble_server.peers import tls_name
from observer import observer_pb2, observer_pb2_grpc
from peer import peer_pb2, peer_pb2_grpc

from tests.unit.hubble.conftest import Server, running

SERVER_NAME = "node1.default.hubble-grpc.cilium.io"


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@dataclass(frozen=True)
class Authority:
    """Makes certificates in a folder."""

    folder: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def make(self, subject: str) -> tuple[Path, Path]:
        key, request, certificate = (
            self.folder / f"{self.name}-{subject}.{kind}" for kind in ("key", "csr", "pem")
        )
        names = self.folder / "names"
        names.write_text("subjectAltName=DNS:*.default.hubble-grpc.cilium.io\n", encoding="ascii")
        new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        openssl("req", *new, "-subj", f"/CN={subject}", "-keyout", key, "-out", request)
        signed_by = ("-CA", self.certificate, "-CAkey", self.folder / f"{self.name}.key")
        openssl("x509", "-req", "-in", request, *signed_by, "-CAcreateserial", "-days", "2",
                "-extfile", names, "-out", certificate)  # fmt: skip
        return certificate, key


def authority(folder: Path, name: str) -> Authority:
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-subj", f"/CN={name}", "-days", "2",
            "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")  # fmt: skip
    return Authority(folder, name)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls"), "trusted")


def tls_settings(trusted: Authority, *, mutual: bool) -> dict[str, Any]:
    certificate, key = trusted.make("server")
    return {
        "hubble_listen_address": "127.0.0.1:0",
        "hubble_disable_tls": False,
        "hubble_tls_cert_file": certificate,
        "hubble_tls_key_file": key,
        "hubble_tls_client_ca_files": (trusted.certificate,) if mutual else (),
    }


def credentials_of(root: Path, client: tuple[Path, Path] | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root.read_bytes(),
        private_key=client[1].read_bytes() if client else None,
        certificate_chain=client[0].read_bytes() if client else None,
    )


async def ask(server: Server, root: Path, client: tuple[Path, Path] | None) -> str:
    """The server's version, told over TLS."""
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    target = f"127.0.0.1:{server.app.tcp_port}"
    async with grpc.aio.secure_channel(target, credentials_of(root, client), options) as channel:
        stub = observer_pb2_grpc.ObserverStub(channel)
        answer = await stub.ServerStatus(observer_pb2.ServerStatusRequest(), timeout=5)
        return str(answer.version)


async def test_a_client_that_trusts_the_authority_gets_in(
    tmp_path: Path, trusted: Authority
) -> None:
    async with running(tmp_path, pods=0, **tls_settings(trusted, mutual=False)) as server:
        assert (await ask(server, trusted.certificate, None)).startswith("cilium v")


async def test_with_client_authorities_only_their_clients_get_in(
    tmp_path: Path, trusted: Authority
) -> None:
    stranger = authority(tmp_path, "stranger")
    async with running(tmp_path, pods=0, **tls_settings(trusted, mutual=True)) as server:
        assert await ask(server, trusted.certificate, trusted.make("client"))
        for client in (None, stranger.make("client")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(server, trusted.certificate, client)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_older_versions_of_tls_are_refused(tmp_path: Path, trusted: Authority) -> None:
    import asyncio

    context = ssl.create_default_context(cafile=trusted.certificate)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(tmp_path, pods=0, **tls_settings(trusted, mutual=False)) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(
                "127.0.0.1", server.app.tcp_port, ssl=context, server_hostname=SERVER_NAME
            )


async def test_peers_are_told_the_name_to_verify(tmp_path: Path, trusted: Authority) -> None:
    async with running(tmp_path, pods=0, **tls_settings(trusted, mutual=False)) as server:
        call = peer_pb2_grpc.PeerStub(server.channel).Notify(peer_pb2.NotifyRequest())
        assert (await call.read()).tls.server_name == SERVER_NAME
        call.cancel()


def test_dots_in_names_become_dashes() -> None:
    assert tls_name("c.d", "a.b") == "a-b.c-d.hubble-grpc.cilium.io"
    assert tls_name("", "n") == "n.default.hubble-grpc.cilium.io"


def test_a_certificate_without_a_key_is_told_before_anything_runs() -> None:
    from cilium_core.settings import SettingsError, load
    from hubble_server.settings import ServerSettings

    flags = ["--hubble-disable-tls", "false", "--hubble-listen-address", ":1"]
    with pytest.raises(SettingsError, match="hubble-tls-key-file: is needed while"):
        load(ServerSettings, flags, os.environ)
    with pytest.raises(SettingsError, match="invalid capacity: 4096"):
        load(ServerSettings, ["--hubble-event-buffer-capacity", "4096"], os.environ)
