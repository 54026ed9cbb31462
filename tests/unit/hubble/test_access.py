"""Clients with certificates see the namespaces that the rules give them, whatever they ask."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium.flows.v1 import flows_pb2, flows_pb2_grpc
from cilium.metadata.v1 import metadata_pb2
from cilium_core.access import METADATA_KEY, guarding
from cilium_core.settings import SettingsError, load
from flow import flow_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hubble_server.settings import ServerSettings
from observer import observer_pb2, observer_pb2_grpc
from peer import peer_pb2, peer_pb2_grpc

from tests.certificates import Authority
from tests.unit.hubble.conftest import running
from tests.unit.hubble.loads import traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.hubble.conftest import Server

Filter = flow_pb2.FlowFilter
SERVER_NAME = "node1.default.hubble-grpc.cilium.io"
RULES = """
clients:
  - names: [relay]
    namespaces: ["*"]
  - groups: [team-0]
    namespaces: [ns0]
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def limiting(folder: Path, authority: Authority, **settings: Any) -> AsyncIterator[Server]:
    """A server with rules, and flows between two namespaces."""
    certificate, key = authority.issue(SERVER_NAME)
    (folder / "rules.yaml").write_text(RULES)
    chosen = {
        "hubble_listen_address": "127.0.0.1:0",
        "hubble_disable_tls": False,
        "hubble_tls_cert_file": certificate,
        "hubble_tls_key_file": key,
        "hubble_tls_client_ca_files": (authority.certificate,),
        "hubble_access_file": folder / "rules.yaml",
    }
    async with running(folder, **chosen, **settings) as server:
        await server.feed_flows(traffic(400, pods=4))
        yield server


@asynccontextmanager
async def client(
    server: Server, authority: Authority, name: str, organization: str = ""
) -> AsyncIterator[grpc.aio.Channel]:
    certificate, key = authority.issue(name, organization=organization)
    credentials = grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    target = f"127.0.0.1:{server.app.tcp_port}"
    async with grpc.aio.secure_channel(target, credentials, options) as channel:
        yield channel


async def flows(channel: grpc.aio.Channel, **request: Any) -> list[flow_pb2.Flow]:
    call = observer_pb2_grpc.ObserverStub(channel).GetFlows(observer_pb2.GetFlowsRequest(**request))
    return [response.flow async for response in call if response.HasField("flow")]


def ends(found: list[flow_pb2.Flow]) -> set[tuple[str, str]]:
    return {(flow.source.namespace, flow.destination.namespace) for flow in found}


async def refusal(call: Any) -> str:
    async def finish() -> None:
        if hasattr(call, "__aiter__"):
            _ = [each async for each in call]
        else:
            await call

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish()
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    return caught.value.details() or ""


OURS = {("ns0", "ns0"), ("ns0", "ns1"), ("ns1", "ns0")}


async def test_a_limited_client_sees_flows_from_and_to_its_namespaces(
    tmp_path: Path, authority: Authority
) -> None:
    async with limiting(tmp_path, authority) as server:
        everything = [response.flow for response in await server.get()]
        async with client(server, authority, "relay") as channel:
            assert len(await flows(channel)) == 400
        async with client(server, authority, "ada", "team-0") as channel:
            found = await flows(channel)
            assert ends(found) == OURS
            assert len(found) == sum(
                "ns0" in (flow.source.namespace, flow.destination.namespace) for flow in everything
            )
            assert len(await flows(channel, number=20)) == 20
            wanted = [Filter(source_pod=["ns1/"])]
            assert ends(await flows(channel, whitelist=wanted)) == {("ns1", "ns0")}
            denied = [Filter(destination_pod=["ns0/"])]
            assert ends(await flows(channel, blacklist=denied)) == {("ns0", "ns1")}


async def test_counts_batches_and_namespaces_keep_to_the_limits(
    tmp_path: Path, authority: Authority
) -> None:
    async with (
        limiting(tmp_path, authority) as server,
        client(server, authority, "ada", "team-0") as channel,
    ):
        own = flows_pb2_grpc.FlowsServiceStub(channel)
        by = [flows_pb2.DIMENSION_SOURCE_NAMESPACE, flows_pb2.DIMENSION_DESTINATION_NAMESPACE]
        counted = await own.AggregateFlows(flows_pb2.AggregateFlowsRequest(by=by))
        assert {tuple(group.values) for group in counted.groups} == OURS
        batches = [
            observer_pb2.GetFlowsResponse.FromString(one).flow
            async for batch in own.GetFlowBatches(observer_pb2.GetFlowsRequest())
            for one in batch.responses
        ]
        assert ends(batches) == OURS
        observer = observer_pb2_grpc.ObserverStub(channel)
        told = await observer.GetNamespaces(observer_pb2.GetNamespacesRequest())
        assert [one.namespace for one in told.namespaces] == ["ns0"]
        status = await observer.ServerStatus(observer_pb2.ServerStatusRequest())
        assert status.num_flows == 400


async def test_the_history_keeps_to_the_limits_too(tmp_path: Path, authority: Authority) -> None:
    async with limiting(
        tmp_path,
        authority,
        hubble_history_dir=tmp_path / "history",
        hubble_event_buffer_capacity=63,
    ) as server:
        history = flow_pb2.Flow().time
        # more than the ring's slots, so that the first flows are in the history alone
        for _ in range(12):
            await server.feed_flows(traffic(400, pods=4))
        async with client(server, authority, "ada", "team-0") as channel:
            found = await flows(channel, since=history)
        assert ends(found) == OURS
        assert len(found) > 63


async def test_what_concerns_no_namespace_of_theirs_is_refused(
    tmp_path: Path, authority: Authority
) -> None:
    async with limiting(tmp_path, authority) as server:
        async with client(server, authority, "ada", "team-0") as channel:
            observer = observer_pb2_grpc.ObserverStub(channel)
            asked = Filter(source_pod=["ns1/"], destination_pod=["ns1/"])
            told = await refusal(observer.GetFlows(observer_pb2.GetFlowsRequest(whitelist=[asked])))
            assert told.startswith("client ada may see namespace ns0 only, and what is asked for")
            assert "of namespace ns1;" in told
            events = flows_pb2_grpc.FlowsServiceStub(channel).StreamEvents(
                flows_pb2.StreamEventsRequest()
            )
            assert "only for clients that may see all" in await refusal(events)
            peers = peer_pb2_grpc.PeerStub(channel).Notify(peer_pb2.NotifyRequest())
            assert "peer.Peer/Notify is only for" in await refusal(peers)
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert (await health).status == health_pb2.HealthCheckResponse.SERVING
        async with client(server, authority, "eve") as channel:
            status = observer_pb2_grpc.ObserverStub(channel).ServerStatus(
                observer_pb2.ServerStatusRequest()
            )
            assert await refusal(status) == (
                "client eve may see no namespace; no rule of access names it"
            )


async def test_agent_events_are_chosen_before_they_are_counted(
    tmp_path: Path, authority: Authority
) -> None:
    async with limiting(tmp_path, authority) as server:
        for name in ("ns0", "ns1", "ns1"):
            event = flow_pb2.AgentEvent(type=flow_pb2.ENDPOINT_CREATED)
            event.endpoint_update.namespace = name
            server.app.update(metadata_pb2.Update(agent_event=metadata_pb2.AgentEvent(event=event)))
        await server.until(lambda: server.app.store.head >= 403)
        async with client(server, authority, "ada", "team-0") as channel:
            call = observer_pb2_grpc.ObserverStub(channel).GetAgentEvents(
                observer_pb2.GetAgentEventsRequest(number=1)
            )
            found = [one.agent_event.endpoint_update.namespace async for one in call]
        assert found == ["ns0"]


async def test_a_change_of_the_rules_counts_at_once_for_open_streams_too(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "_LOOK_INTERVAL_S", 0.02)
    rules = tmp_path / "rules.yaml"
    async with (
        limiting(tmp_path, authority) as server,
        client(server, authority, "ada", "team-0") as limited,
        client(server, authority, "relay") as unlimited,
    ):
        request = observer_pb2.GetFlowsRequest(follow=True)
        open_streams = [
            observer_pb2_grpc.ObserverStub(one).GetFlows(request) for one in (limited, unlimited)
        ]
        for stream in open_streams:
            await stream.initial_metadata()
        rules.write_text(RULES.replace("namespaces: [ns0]", "namespaces: [ns1]"))
        assert "has changed; ask once more" in await refusal(open_streams[0])
        assert ends(await flows(limited)) == {("ns1", "ns1"), ("ns0", "ns1"), ("ns1", "ns0")}
        assert not open_streams[1].done()
        open_streams[1].cancel()


async def test_callers_can_only_limit_themselves(tmp_path: Path, authority: Authority) -> None:
    async with limiting(tmp_path, authority) as server:
        local = server.observer.GetFlows(
            observer_pb2.GetFlowsRequest(), metadata=((METADATA_KEY, "ns0"),)
        )
        assert ends([one.flow async for one in local]) == OURS
        async with client(server, authority, "ada", "team-0") as channel:
            observer = observer_pb2_grpc.ObserverStub(channel)
            more = observer.GetFlows(
                observer_pb2.GetFlowsRequest(), metadata=((METADATA_KEY, "ns0,ns1"),)
            )
            assert ends([one.flow async for one in more]) == OURS
            other = observer.GetFlows(
                observer_pb2.GetFlowsRequest(), metadata=((METADATA_KEY, "ns1"),)
            )
            assert "client ada may see namespace ns0 only" in await refusal(other)


def test_rules_without_certificates_are_refused_before_anything_runs(tmp_path: Path) -> None:
    flags = ["--hubble-access-file", str(tmp_path), "--hubble-listen-address", ":1"]
    with pytest.raises(SettingsError, match="hubble-access-file: needs to know its clients"):
        load(ServerSettings, flags, {})
