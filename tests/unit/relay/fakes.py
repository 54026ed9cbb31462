# ruff: noqa: N802  methods are named as the services name them
"""Nodes and clients that the relay's tests are made of."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
from cilium.flows.v1 import explain_pb2, explain_pb2_grpc, flows_pb2, flows_pb2_grpc
from flow import flow_pb2
from hubble_relay.app import Relay
from hubble_relay.settings import RelaySettings
from observer import observer_pb2, observer_pb2_grpc
from peer import peer_pb2, peer_pb2_grpc

LIMIT_S = 10.0
"""For how long anything is waited for."""


async def eventually(condition, limit_s=LIMIT_S):
    """Wait until the condition holds."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  conditions of any kind
            await asyncio.sleep(0.01)


def response(node, time_ns, summary=""):
    """An answer of GetFlows."""
    answer = observer_pb2.GetFlowsResponse(
        flow=flow_pb2.Flow(node_name=node, Summary=summary), node_name=node
    )
    answer.time.FromNanoseconds(time_ns)
    answer.flow.time.FromNanoseconds(time_ns)
    return answer


@dataclass
class FakeNode(
    observer_pb2_grpc.ObserverServicer,
    flows_pb2_grpc.FlowsServiceServicer,
    explain_pb2_grpc.ExplanationServiceServicer,
    peer_pb2_grpc.PeerServicer,
):
    """A hubble-server that says what it is told to."""

    name: str
    socket: str
    flows: list[int] = field(default_factory=list)
    """Times of its flows in ns."""
    old: bool = False
    """Has no batches."""
    error: tuple[grpc.StatusCode, str] | None = None
    """Ends every stream of flows with it, after the flows."""
    stalled: bool = False
    """Takes requests and answers nothing."""
    translated: str = ""
    """The service that it says clients of its flows asked at their sockets."""
    peers: list[peer_pb2.ChangeNotification] = field(default_factory=list)
    requests: list[observer_pb2.GetFlowsRequest] = field(default_factory=list)
    metadata: list[tuple[str, str]] = field(default_factory=list)
    _server: grpc.aio.Server | None = None
    _told: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self):
        return f"unix://{self.socket}"

    def added(self, kind=peer_pb2.PEER_ADDED):
        return peer_pb2.ChangeNotification(name=self.name, address=self.address, type=kind)

    def tell(self, *changes):
        """Send changes of peers to who listens."""
        self.peers += changes
        self._notify()

    def observe(self, time_ns=None):
        """See one more flow, now unless said otherwise."""
        self.flows.append(time.time_ns() if time_ns is None else time_ns)
        self._notify()

    def _notify(self):
        self._told.set()
        self._told = asyncio.Event()

    async def start(self):
        self._server = grpc.aio.server()
        observer_pb2_grpc.add_ObserverServicer_to_server(self, self._server)
        peer_pb2_grpc.add_PeerServicer_to_server(self, self._server)
        if not self.old:
            flows_pb2_grpc.add_FlowsServiceServicer_to_server(self, self._server)
            explain_pb2_grpc.add_ExplanationServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self):
        """Vanish, streams and all."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    async def _batches(self, request, context):
        self.requests.append(request)
        self.metadata = list(context.invocation_metadata())
        if self.stalled:
            await asyncio.Event().wait()
        since = request.since.ToNanoseconds() if request.HasField("since") else None
        wanted = [at for at in self.flows if since is None or at >= since]
        if request.number and since is None:
            wanted = wanted[-request.number :]
        told = len(self.flows)
        while True:
            for start in range(0, len(wanted), 16):
                yield wanted[start : start + 16]
            if self.error:
                await context.abort(*self.error)
            if not request.follow:
                return
            event = self._told
            if told == len(self.flows):
                await event.wait()
            wanted, told = self.flows[told:], len(self.flows)

    async def GetFlows(self, request, context):
        async for times in self._batches(request, context):
            for at in times:
                yield response(self.name, at)

    async def GetAgentEvents(self, request, context):
        async for times in self._batches(request, context):
            for at in times:
                answer = observer_pb2.GetAgentEventsResponse(node_name=self.name)
                answer.time.FromNanoseconds(at)
                yield answer

    async def GetDebugEvents(self, request, context):
        async for times in self._batches(request, context):
            for at in times:
                answer = observer_pb2.GetDebugEventsResponse(node_name=self.name)
                answer.time.FromNanoseconds(at)
                yield answer

    async def GetFlowBatches(self, request, context):
        async for times in self._batches(request, context):
            yield flows_pb2.FlowBatch(
                responses=[response(self.name, at).SerializeToString() for at in times],
                times_ns=times,
            )

    async def AggregateFlows(self, request, context):
        if self.error:
            await context.abort(*self.error)
        self.requests.append(request.flows)
        budget = flows_pb2.LossBudget(node_name=self.name, lost_in_kernel=2)
        group = flows_pb2.FlowGroup(
            values=["FORWARDED"],
            flows=len(self.flows),
            packets=2 * len(self.flows),
            bytes=60,
            first_ns=min(self.flows),
            last_ns=max(self.flows),
        )
        return flows_pb2.AggregateFlowsResponse(groups=[group], budgets=[budget])

    async def ExplainFlow(self, request, context):
        self.requests.append(request.flows)
        self.metadata = list(context.invocation_metadata())
        if self.error:
            await context.abort(*self.error)
        if not self.flows:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such flow")
        newest = response(self.name, max(self.flows)).flow
        newest.IP.source, newest.IP.destination = "10.0.0.1", "10.0.0.2"
        newest.l4.TCP.destination_port = 80
        answer = explain_pb2.ExplainFlowResponse(flow=newest, node_name=self.name)
        answer.translation.service = self.translated
        if not self.translated:
            answer.ClearField("translation")
        return answer

    async def ServerStatus(self, request, context):
        if self.error:
            await context.abort(*self.error)
        return observer_pb2.ServerStatusResponse(
            num_flows=len(self.flows),
            max_flows=100,
            seen_flows=len(self.flows) + 1,
            uptime_ns=len(self.name),
            version="node v1",
            flows_rate=0.5,
        )

    async def GetNamespaces(self, request, context):
        return observer_pb2.GetNamespacesResponse(
            namespaces=[
                observer_pb2.Namespace(namespace="shared"),
                observer_pb2.Namespace(namespace=self.name, cluster="c"),
            ]
        )

    async def Notify(self, request, context):
        told = 0
        while True:
            event = self._told
            for change in self.peers[told:]:
                yield change
            told = len(self.peers)
            await event.wait()


@asynccontextmanager
async def cluster(folder, *nodes, **settings):
    """A relay over nodes, the first of which knows all; gives the relay and a channel to it."""
    for node in nodes:
        await node.start()
    nodes[0].tell(*(node.added() for node in nodes))
    relay = Relay(
        RelaySettings(
            peer_service=(nodes[0].address,),
            **{"listen_address": (f"unix://{folder}/relay.sock",), **settings},
            health_listen_address="",
            disable_client_tls=True,
        )
    )
    await relay.start()
    channel = grpc.aio.insecure_channel(f"unix://{folder}/relay.sock")
    try:
        await eventually(
            lambda: (
                len(relay.pool.connections) == len(nodes)
                and all(
                    one.state is grpc.ChannelConnectivity.READY for one in relay.pool.connections
                )
            )
        )
        yield relay, channel
    finally:
        await channel.close()
        await relay.stop()
        for node in nodes:
            await node.stop()


class Stream:
    """An open GetFlows, read in the background."""

    def __init__(self, channel, request, metadata=()):
        stub = observer_pb2_grpc.ObserverStub(channel)
        self._call = stub.GetFlows(request, metadata=metadata)
        self.responses = []
        self.error = None
        self._task = asyncio.create_task(self._read())

    async def _read(self):
        try:
            async for one in self._call:
                self.responses.append(one)
        except grpc.aio.AioRpcError as error:
            self.error = error

    @property
    def times(self):
        """Times of the flows so far."""
        return [one.time.ToNanoseconds() for one in self.responses if one.HasField("flow")]

    @property
    def states(self):
        """Node states so far: (state, names, message)."""
        return [
            (
                one.node_status.state_change,
                list(one.node_status.node_names),
                one.node_status.message,
            )
            for one in self.responses
            if one.HasField("node_status")
        ]

    async def end(self):
        """Wait for its end, and give itself."""
        async with asyncio.timeout(LIMIT_S):
            await self._task
        return self

    async def cancel(self):
        """Leave."""
        self._call.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
