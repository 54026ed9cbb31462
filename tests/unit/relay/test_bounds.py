"""What one node or one client may take of a relay."""

import asyncio
import time

from hubble_relay.collecting import FLOWS, CollectingOptions, Collector
from hubble_relay.merging import FOLLOWED_LIMIT
from observer import observer_pb2
from peer import peer_pb2
from relay import relay_pb2

from tests.unit.relay.fakes import FakeNode, Stream, cluster, eventually
from tests.unit.serving.raw_clients import raw


def nodes_in(folder, *names, **facts):
    return [FakeNode(name, f"{folder}/{name}.sock", **facts) for name in names]


async def test_streams_to_one_node_are_limited_and_the_node_is_told_of(tmp_path):
    following = observer_pb2.GetFlowsRequest(follow=True)
    async with cluster(tmp_path, *nodes_in(tmp_path, "a"), peer_streams_max=2) as (relay, channel):
        streams = [Stream(channel, following) for _ in range(2)]
        await eventually(lambda: relay.pool.connections[0].streams == 2)
        late = await Stream(channel, observer_pb2.GetFlowsRequest()).end()
        for stream in streams:
            await stream.cancel()
        await eventually(lambda: relay.pool.connections[0].streams == 0)
        after = await Stream(channel, observer_pb2.GetFlowsRequest()).end()

    assert late.states[-1] == (
        relay_pb2.NODE_ERROR,
        ["a"],
        "2 streams of this relay are open to a, and no more may be (peer-streams-max)",
    )
    assert after.states == [(relay_pb2.NODE_CONNECTED, ["a"], "")]


async def test_little_is_held_for_a_client_that_does_not_read(tmp_path):
    nodes = nodes_in(tmp_path, "a", "b", flows=list(range(1, 20_000)))
    sending = asyncio.Event()

    async def never(_times, _responses):
        sending.set()
        await asyncio.Event().wait()

    async with cluster(tmp_path, *nodes) as (relay, _):
        request = observer_pb2.GetFlowsRequest(follow=True)
        collector = Collector(relay.pool, FLOWS, request, (), CollectingOptions(own_name="r"))
        running = asyncio.create_task(collector.run(never))
        await sending.wait()
        held = -1
        while held != collector._merger.held:
            held = collector._merger.held
            await asyncio.sleep(0.2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    # two nodes, whose batches are of 16 flows
    assert held <= 2 * (FOLLOWED_LIMIT + 16)


async def test_clients_that_do_not_read_cost_others_nothing(tmp_path):
    nodes = nodes_in(tmp_path, "a", "b", flows=list(range(1, 2000)))
    everything = observer_pb2.GetFlowsRequest(follow=True, number=1 << 40).SerializeToString()
    async with cluster(tmp_path, *nodes) as (_, channel), raw(f"{tmp_path}/relay.sock") as slow:
        await slow.settled()
        for _ in range(10):
            await slow.call("GetFlows", everything)
        began = time.time_ns()
        live = Stream(channel, observer_pb2.GetFlowsRequest(follow=True, number=1))
        await eventually(lambda: len(live.times) == 2)
        nodes[0].observe()
        await eventually(lambda: live.times[-1] > began)
        await live.cancel()


async def test_ten_nodes_come_and_go(tmp_path):
    nodes = nodes_in(tmp_path, *map(str, range(10)))
    for index, node in enumerate(nodes):
        node.flows = list(range(1 + index, 1000, 10))
    async with cluster(tmp_path, *nodes) as (relay, channel):
        everything = await Stream(channel, observer_pb2.GetFlowsRequest()).end()
        gone, *_, last = nodes[1:]
        await gone.stop()
        await eventually(lambda: not relay.pool.connections[1].available)
        less = await Stream(channel, observer_pb2.GetFlowsRequest()).end()
        await gone.start()
        nodes[0].tell(last.added(peer_pb2.PEER_DELETED))
        await eventually(lambda: len(relay.pool.connections) == 9)
        await eventually(lambda: relay.pool.connections[1].available)
        others = await Stream(channel, observer_pb2.GetFlowsRequest()).end()

    assert everything.times == list(range(1, 1000))
    assert less.times == [at for at in range(1, 1000) if at % 10 != 2]
    assert less.states[1] == (relay_pb2.NODE_UNAVAILABLE, ["1"], "")
    assert others.times == [at for at in range(1, 1000) if at % 10]
