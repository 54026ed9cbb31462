"""Requests that make no sense: each gets an error, and the relay goes on."""

import asyncio
import random

import grpc
from observer import observer_pb2, observer_pb2_grpc

from tests.unit.relay.fakes import FakeNode, cluster

METHODS = (
    "/observer.Observer/GetFlows",
    "/observer.Observer/ServerStatus",
    "/observer.Observer/GetNodes",
    "/observer.Observer/GetAgentEvents",
    "/cilium.flows.v1.FlowsService/GetFlowBatches",
    "/grpc.health.v1.Health/Check",
    "/observer.Observer/None",
    "/",
)


async def test_random_requests_are_answered_or_refused(tmp_path):
    chance = random.Random(7)
    node = FakeNode("a", f"{tmp_path}/a.sock", flows=[1])
    async with cluster(tmp_path, node) as (_, channel):
        stub = observer_pb2_grpc.ObserverStub(channel)
        for _ in range(200):
            call = channel.unary_stream(chance.choice(METHODS))
            payload = chance.randbytes(chance.choice([0, 1, 5, 40, 2000]))
            told = "an answer"
            try:
                async with asyncio.timeout(5):
                    async for _ in call(payload):
                        pass
            except grpc.aio.AioRpcError as error:
                told = error.details()
            assert told

        status = await stub.ServerStatus(observer_pb2.ServerStatusRequest())

    assert status.num_connected_nodes.value == 1


async def test_bytes_that_are_no_http_end_their_own_connection_only(tmp_path):
    chance = random.Random(11)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    async with cluster(tmp_path, FakeNode("a", f"{tmp_path}/a.sock")) as (_, channel):
        for start in (b"", preface, b"GET / HTTP/1.1\r\n\r\n"):
            for _ in range(30):
                reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/relay.sock")
                writer.write(start + chance.randbytes(chance.choice([0, 1, 9, 100])))
                writer.write_eof()
                async with asyncio.timeout(5):
                    await reader.read()
                writer.close()

        stub = observer_pb2_grpc.ObserverStub(channel)
        status = await stub.ServerStatus(observer_pb2.ServerStatusRequest())

    assert status.num_connected_nodes.value == 1
