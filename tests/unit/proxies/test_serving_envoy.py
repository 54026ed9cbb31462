"""The services for Envoy, over a real socket: odd peers harm nobody but themselves."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from cilium_agent.proxies.envoy.discovery import Offers
from cilium_agent.proxies.envoy.logging import LogName
from cilium_agent.proxies.envoy.options import EnvoyOptions
from cilium_agent.proxies.envoy.resources import LISTENER, Builder
from cilium_agent.proxies.envoy.serving import (
    ACCESS_LOG,
    DISCOVERY,
    AccessLogServicer,
    DiscoveryServicer,
    make_server,
)
from cilium_agent.proxies.secrets import Secrets
from cilium_core.policy.l7 import HttpRule, L7Kind, Redirect
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.discovery.v3 import discovery_pb2

from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cilium.proxy.v1 import proxy_pb2

REDIRECT = Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(path="/a"),))
METHOD = f"/{DISCOVERY}/StreamAggregatedResources"


class Agent:
    """The agent's end."""

    def __init__(self, path: Path) -> None:
        self.path = path / "xds.sock"
        self.offers = Offers()
        self.offers.replace(Builder(Secrets(), EnvoyOptions()).build({REDIRECT: 10000}))
        self.offers.ready = True
        self.discovery = DiscoveryServicer(self.offers)
        self.taken: list[tuple[LogName, list[proxy_pb2.Record]]] = []
        logs = AccessLogServicer(lambda name, records: self.taken.append((name, records)))
        self.server = make_server(self.path, self.discovery, logs)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"unix:{self.path}")


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    made = Agent(tmp_path)
    await made.server.start()
    yield made
    await made.server.stop(0)


async def subscribe(agent: Agent) -> discovery_pb2.DiscoveryResponse:
    """Ask as Envoy does."""
    async with agent.channel() as channel:
        call = channel.stream_stream(
            METHOD,
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )()
        await call.write(discovery_pb2.DiscoveryRequest(type_url=LISTENER))
        response: discovery_pb2.DiscoveryResponse = await call.read()
        await call.write(
            discovery_pb2.DiscoveryRequest(
                type_url=LISTENER,
                version_info=response.version_info,
                response_nonce=response.nonce,
            )
        )
        await eventually(lambda: agent.offers.accepted)
        call.cancel()
        return response


async def test_the_socket_is_for_root_alone(agent: Agent) -> None:
    assert agent.path.stat().st_mode & 0o777 == 0o600


async def test_a_peer_gets_its_listeners(agent: Agent) -> None:
    assert len((await subscribe(agent)).resources) == 1
    await eventually(lambda: not agent.discovery.connected)
    assert agent.offers.accepted == {}


async def test_a_request_that_cannot_be_read_ends_its_own_conversation_only(agent: Agent) -> None:
    async with agent.channel() as channel:
        call = channel.stream_stream(METHOD)()
        await call.write(b"\xff\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
    await subscribe(agent)


async def test_bytes_that_are_no_http2_are_turned_away(agent: Agent) -> None:
    for _ in range(20):
        reader, writer = await asyncio.open_unix_connection(str(agent.path))
        writer.write(os.urandom(500))
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
    await subscribe(agent)


async def test_peers_that_leave_at_once_leave_nothing_behind(agent: Agent) -> None:
    for _ in range(20):
        async with agent.channel() as channel:
            call = channel.stream_stream(METHOD)()
            request = discovery_pb2.DiscoveryRequest(type_url=LISTENER)
            await call.write(request.SerializeToString())
            call.cancel()
    await eventually(lambda: not agent.discovery.connected)
    await subscribe(agent)


async def test_logs_of_unknown_names_and_without_names_are_not_taken(agent: Agent) -> None:
    nameless = als_pb2.StreamAccessLogsMessage()
    nameless.http_logs.log_entry.add()
    strange = als_pb2.StreamAccessLogsMessage()
    strange.CopyFrom(nameless)
    strange.identifier.log_name = "strange"
    known = als_pb2.StreamAccessLogsMessage()
    known.identifier.log_name = str(LogName.of(REDIRECT, 10000))
    async with agent.channel() as channel:
        call = channel.stream_unary(f"/{ACCESS_LOG}/StreamAccessLogs")()
        for message in (nameless, strange, known):
            await call.write(message.SerializeToString())
        await call.done_writing()
        await call
    assert agent.taken == [(LogName.of(REDIRECT, 10000), [])]
