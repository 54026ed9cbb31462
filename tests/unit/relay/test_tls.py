"""TLS between clients, relay and nodes."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc
import pytest
from hubble_cli.__main__ import run
from hubble_cli.errors import HubbleError
from hubble_relay.app import Relay
from hubble_relay.settings import RelaySettings

from tests.certificates import Authority
from tests.unit.relay.fakes import FakeNode, eventually

SERVER_NAME = "instance.hubble-relay.cilium.io"


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """An authority, and a certificate for relay and client each."""
    authority = Authority(tmp_path_factory.mktemp("pki"))
    pairs = {one: authority.issue(one, "*.hubble-relay.cilium.io") for one in ("relay", "client")}
    return SimpleNamespace(ca=authority.certificate, **pairs)


@asynccontextmanager
async def relay_with_tls(folder, pki, client_authorities=()):
    """A relay on TCP with TLS; gives its address."""
    node = FakeNode("a", f"{folder}/a.sock", flows=[1, 2])
    await node.start()
    node.tell(node.added())
    relay = Relay(
        RelaySettings(
            peer_service=(node.address,),
            listen_address=("127.0.0.1:0",),
            health_listen_address="",
            disable_client_tls=True,
            tls_relay_server_cert_file=pki.relay[0],
            tls_relay_server_key_file=pki.relay[1],
            tls_relay_client_ca_files=client_authorities,
        )
    )
    await relay.start()
    try:
        await eventually(lambda: relay.ready)
        yield f"127.0.0.1:{relay.ports[0]}"
    finally:
        await relay.stop()
        await node.stop()


async def hubble(*words):
    """Run the command line beside the relay's loop."""
    await asyncio.to_thread(run, words)


@pytest.mark.parametrize(
    "flags",
    [
        ["--tls-allow-insecure"],
        ["--tls-allow-insecure", "--basic-auth-username", "u", "--basic-auth-password", "p"],
        ["--tls-server-name", SERVER_NAME],
    ],
)
async def test_the_command_line_reaches_a_relay_with_tls(tmp_path, pki, flags, capsys):
    trust = ["--tls-ca-cert-files", str(pki.ca)] if "--tls-server-name" in flags else []

    async with relay_with_tls(tmp_path, pki) as address:
        await hubble("observe", "--server", f"tls://{address}", "--first", "1", *trust, *flags)

    assert "UNKNOWN VERDICT_UNKNOWN" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        ["--tls"],
        ["--tls", "--tls-ca-cert-files", "/none.pem"],
        [],
    ],
)
async def test_what_cannot_be_trusted_is_refused(tmp_path, pki, flags):
    async with relay_with_tls(tmp_path, pki) as address:
        with pytest.raises(HubbleError):
            await hubble("status", "--server", address, *flags)


async def test_clients_must_show_a_certificate_if_asked(tmp_path, pki, capsys):
    trust = ["--tls-ca-cert-files", str(pki.ca), "--tls-server-name", SERVER_NAME]
    own = [
        "--tls-client-cert-file",
        str(pki.client[0]),
        "--tls-client-key-file",
        str(pki.client[1]),
    ]

    async with relay_with_tls(tmp_path, pki, (pki.ca,)) as address:
        server = ["--server", f"tls://{address}"]
        await hubble("list", "nodes", *server, *trust, *own)
        assert "a      Connected" in capsys.readouterr().out
        with pytest.raises(HubbleError):
            await hubble("list", "nodes", *server, *trust)


async def test_old_tls_is_refused(tmp_path, pki):
    context = ssl.create_default_context(cafile=str(pki.ca))
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    async with relay_with_tls(tmp_path, pki) as address:
        host, port = address.split(":")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(host, int(port), ssl=context)


def test_state_names_of_grpc_are_those_of_the_metric():
    from hubble_relay.connections import _STATES

    assert {state.name for state in grpc.ChannelConnectivity} < set(_STATES)
