from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium.agent.v1 import agent_pb2
from cilium.flows.v1 import explain_pb2, explain_pb2_grpc
from cilium.metadata.v1 import metadata_pb2
from cilium_core import abi
from cilium_core.access import METADATA_KEY
from cilium_core.drop_meanings import MEANINGS
from cilium_core.drops import DropReason
from cilium_core.serving.packed import CallError, PackedServer, Status, stream, unary
from flow import flow_pb2

from tests.unit.hubble.conftest import running
from tests.unit.hubble.loads import address_of, event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cilium_core.serving.packed import Call
    from numpy.typing import NDArray

    from tests.unit.hubble.conftest import Server

DROPPED = event(
    type=abi.constants["EVENT_DROP"],
    subtype=int(DropReason["POLICY_DENIED"]),
    file=abi.constants["FILE_LXC"],
    line=77,
    endpoint=2,
    proto=6,
    src_identity=1000,
    dst_identity=1001,
    saddr=address_of(0),
    daddr=address_of(1),
    sport=40000,
    dport=8080,
    bytes=1500,
    packets=3,
)


class FakeAgent:
    """An agent that answers what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[agent_pb2.ExplainPolicyRequest] = []
        self.gone: set[str] = set()
        self.free = asyncio.Event()
        self.free.set()
        self.busy = 0
        self.answer = agent_pb2.ExplainPolicyResponse(
            revision=7,
            ingress=agent_pb2.ExplainedDirection(
                direction="ingress", reason="default-deny", message="no rule allows it"
            ),
        )

    async def explain_policy(
        self, request: agent_pb2.ExplainPolicyRequest, _call: Call
    ) -> agent_pb2.ExplainPolicyResponse:
        self.asked.append(request)
        self.busy += 1
        await self.free.wait()
        self.busy -= 1
        if self.gone & {request.source, request.destination}:
            raise CallError(Status.NOT_FOUND, "there is no pod ns0/pod-0")
        return self.answer

    async def explain_service(
        self, _request: agent_pb2.ExplainServiceRequest, _call: Call
    ) -> agent_pb2.ExplainServiceResponse:
        raise CallError(Status.NOT_FOUND, "no service is asked there")

    async def list_services(self, request: agent_pb2.ListServicesRequest, call: Call) -> None:
        await call.send(
            agent_pb2.ListServicesResponse(services=[agent_pb2.Service(name=request.name)])
        )


@asynccontextmanager
async def agent_at(state_dir: Path) -> AsyncIterator[FakeAgent]:
    agent, server = FakeAgent(), PackedServer()
    server.add(
        "cilium.agent.v1.AgentService",
        {
            "ExplainPolicy": unary(agent.explain_policy, agent_pb2.ExplainPolicyRequest),
            "ExplainService": unary(agent.explain_service, agent_pb2.ExplainServiceRequest),
            "ListServices": stream(agent.list_services, agent_pb2.ListServicesRequest),
        },
    )
    await server.listen_unix(state_dir / "cilium.sock")
    try:
        yield agent
    finally:
        await server.stop()


async def why(
    server: Server, uuid: str = "", *, verify: bool = False, **filters: Any
) -> explain_pb2.ExplainFlowResponse:
    chosen = flow_pb2.FlowFilter(**({"uuid": [uuid]} if uuid else filters))
    request = explain_pb2.ExplainFlowRequest(verify=verify)
    request.flows.whitelist.append(chosen)
    stub = explain_pb2_grpc.ExplanationServiceStub(server.channel)
    answer: explain_pb2.ExplainFlowResponse = await stub.ExplainFlow(request)
    return answer


async def test_a_dropped_flow_is_explained_by_itself_and_by_the_policies_of_now(
    server: Server, tmp_path: Path
) -> None:
    async with agent_at(tmp_path) as agent:
        await server.feed_flows(DROPPED)
        flow = (await server.get(number=1))[0].flow

        answer = await why(server, flow.uuid)

    assert answer.flow == flow
    assert answer.node_name == "node1"
    assert answer.conclusion == (
        "Policy dropped it at ns1/pod-1 (ingress), as no rule allows it (default deny)."
    )
    assert (answer.drop.code, answer.drop.text) == (133, "Policy denied")
    assert "default deny" in answer.drop.meaning
    assert answer.drop.remedy
    assert answer.policy == agent.answer
    assert not answer.notes
    assert agent.asked == [
        agent_pb2.ExplainPolicyRequest(
            source="ns0/pod-0", destination="ns1/pod-1", protocol=6, port=8080
        )
    ]


async def test_the_newest_flow_that_passes_the_filters_is_explained(
    server: Server, tmp_path: Path
) -> None:
    async with agent_at(tmp_path):
        for port in (1, 2, 3):
            later = DROPPED.copy()
            later["sport"] = port << 8
            await server.feed_flows(later)

        answer = await why(server, verdict=[flow_pb2.DROPPED])

    assert answer.flow.l4.TCP.source_port == 3


@pytest.mark.parametrize(
    ("since", "until", "port"), [(0, 1, 2), (2, None, 3), (None, 0, 1), (1, 2, 3)]
)
async def test_the_newest_flow_of_a_range_of_time_is_explained(
    server: Server, tmp_path: Path, since: int | None, until: int | None, port: int
) -> None:
    async with agent_at(tmp_path):
        for source in (1, 2, 3):
            later = DROPPED.copy()
            later["sport"] = source << 8
            await server.feed_flows(later)
        times = [response.time for response in await server.get(first=True)]
        request = explain_pb2.ExplainFlowRequest()
        if since is not None:
            request.flows.since.CopyFrom(times[since])
        if until is not None:
            request.flows.until.CopyFrom(times[until])
        stub = explain_pb2_grpc.ExplanationServiceStub(server.channel)

        answer = await stub.ExplainFlow(request)

        assert answer.flow.l4.TCP.source_port == port
        request.flows.since.FromNanoseconds(times[-1].ToNanoseconds() + 1)
        request.flows.ClearField("until")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ExplainFlow(request)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_programs_are_asked_when_that_is_wanted(server: Server, tmp_path: Path) -> None:
    async with agent_at(tmp_path) as agent:
        await server.feed_flows(DROPPED)

        await why(server, verify=True, destination_port=["8080"])

    assert agent.asked[0].verify


async def test_a_flow_that_nobody_has_is_not_found(server: Server) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await why(server, "00000000-0000-0000-0000-000000000000")

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "node1 has no such flow, or no longer"


async def test_without_the_agent_the_flow_is_told_and_that_policies_were_not_asked(
    server: Server, tmp_path: Path
) -> None:
    await server.feed_flows(DROPPED)

    answer = await why(server, destination_port=["8080"])

    assert answer.drop.code == 133
    assert not answer.HasField("policy")
    (note,) = answer.notes
    assert note.startswith("Policies could not be asked: the agent does not answer at ")
    assert str(tmp_path / "cilium.sock") in note


async def test_clients_that_would_wait_for_too_long_are_sent_away(
    server: Server, tmp_path: Path
) -> None:
    await server.feed_flows(DROPPED)
    async with agent_at(tmp_path) as agent:
        agent.free.clear()
        asked = [asyncio.create_task(why(server, destination_port=["8080"])) for _ in range(40)]
        await server.until(lambda: sum(one.done() for one in asked) == 40 - 34)
        most_at_once = agent.busy
        agent.free.set()
        done = await asyncio.gather(*asked, return_exceptions=True)

    refused = [one for one in done if isinstance(one, grpc.aio.AioRpcError)]
    assert {one.code() for one in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(refused) == 40 - 34
    assert most_at_once <= 2


async def test_a_pod_that_is_gone_is_asked_about_by_the_labels_it_had(
    server: Server, tmp_path: Path
) -> None:
    async with agent_at(tmp_path) as agent:
        agent.gone.add("ns0/pod-0")
        await server.feed_flows(DROPPED)

        answer = await why(server, destination_port=["8080"])

    assert answer.HasField("policy")
    assert agent.asked[-1].source == (
        "k8s:app=app0,k8s:io.cilium.k8s.policy.cluster=default,k8s:io.kubernetes.pod.namespace=ns0"
    )
    assert "there is no pod ns0/pod-0" in answer.notes[0]


async def test_what_has_changed_since_is_told(server: Server, tmp_path: Path) -> None:
    async with agent_at(tmp_path) as agent:
        agent.answer.ingress.allowed = True
        agent.answer.source.labels.append("k8s:app=other")
        await server.feed_flows(DROPPED)

        answer = await why(server, destination_port=["8080"])

    labels, policies = answer.notes
    assert labels.startswith("The labels of ns0/pod-0 have changed since: it had k8s:app=app0")
    assert labels.endswith("it now has k8s:app=other.")
    assert policies.startswith("The policies of now (revision 7) allow it at ingress")


async def test_flows_of_the_history_are_explained_too(tmp_path: Path) -> None:
    history = tmp_path / "history"
    async with (
        agent_at(tmp_path),
        running(tmp_path, hubble_history_dir=history, hubble_event_buffer_capacity=1) as server,
    ):
        await server.feed_flows(DROPPED)
        uuid = (await server.get(number=1))[0].flow.uuid
        other = DROPPED.copy()
        other["dport"] = 0x5000
        # enough to push it out of the ring, spare slots and all
        for _ in range(3):
            await server.feed_flows(other)

        answer = await why(server, uuid)

    assert answer.flow.uuid == uuid


async def test_a_translation_at_the_socket_tells_what_service_was_asked(
    server: Server, tmp_path: Path
) -> None:
    def at_socket(point: str, daddr: str, dport: int, cookie: int) -> NDArray[Any]:
        made = event(
            type=7, subtype=abi.constants[point], endpoint=1, proto=6, daddr=daddr, dport=dport
        )
        made["orig_saddr"][0] = list(cookie.to_bytes(8, "little") + bytes(8))
        return made

    server.app.update(
        metadata_pb2.Update(
            service=metadata_pb2.Service(
                frontend=metadata_pb2.Frontend(ip="10.96.0.1", port=80, protocol=6),
                namespace="shop",
                name="cart",
            )
        )
    )
    async with agent_at(tmp_path):
        for one in (
            at_socket("XLATE_PRE_FORWARD", "10.96.0.9", 99, cookie=4),
            at_socket("XLATE_PRE_FORWARD", "10.96.0.1", 80, cookie=5),
            at_socket("XLATE_POST_FORWARD", address_of(1), 8080, cookie=5),
            DROPPED,
        ):
            await server.feed_flows(one)

        dropped = await why(server, verdict=[flow_pb2.DROPPED])
        translated = await why(server, verdict=[flow_pb2.TRANSLATED])

    for answer in (dropped, translated):
        assert answer.translation.service == "shop/cart"
        assert (answer.translation.frontend.ip, answer.translation.frontend.port) == (
            "10.96.0.1",
            80,
        )
        assert [one.name for one in answer.frontends] == ["shop/cart"]


async def test_a_client_limited_to_namespaces_sees_no_rules_of_others(
    server: Server, tmp_path: Path
) -> None:
    async with agent_at(tmp_path) as agent:
        agent.answer.ingress.rules.add(kind="CiliumNetworkPolicy", namespace="ns1", name="secret")
        await server.feed_flows(DROPPED)
        stub = explain_pb2_grpc.ExplanationServiceStub(server.channel)
        request = explain_pb2.ExplainFlowRequest()

        mine = await stub.ExplainFlow(request, metadata=((METADATA_KEY, "ns0"),))
        theirs = await stub.ExplainFlow(request, metadata=((METADATA_KEY, "ns1"),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ExplainFlow(request, metadata=((METADATA_KEY, "ns2"),))

    assert not mine.policy.ingress.rules
    assert mine.notes == [
        "The rules at ns1/pod-1 are not shown: its namespace is not one you may see."
    ]
    assert theirs.policy.ingress.rules[0].name == "secret"
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_each_drop_reason_has_a_meaning() -> None:
    assert {int(reason) for reason in DropReason} == set(MEANINGS)
