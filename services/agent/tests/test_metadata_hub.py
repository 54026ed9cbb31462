import pytest
from cilium.metadata.v1 import metadata_pb2 as pb
from cilium_agent import metadata
from cilium_agent.errors import SlowWatcherError
from cilium_agent.metadata import MetadataHub


def endpoint(number, identity=1):
    return pb.Update(endpoint=pb.Endpoint(id=number, identity=identity))


async def snapshot(watch):
    updates = []
    async for response in watch:
        updates += response.updates
        if response.snapshot_complete:
            return updates
    raise AssertionError("the stream ended before the snapshot was complete")


async def test_a_watcher_gets_the_state_then_changes_in_order():
    hub = MetadataHub()
    hub.publish([endpoint(1), endpoint(2), pb.Update(endpoint_deleted=1)])
    watch = hub.watch()
    assert [endpoint(2)] == await snapshot(watch)
    hub.publish([endpoint(3)])
    hub.publish([pb.Update(endpoint_deleted=2)])
    response = await anext(watch)
    assert (2, [endpoint(3), pb.Update(endpoint_deleted=2)]) == (
        response.revision,
        list(response.updates),
    )
    await watch.aclose()
    assert hub.watchers == 0


async def test_an_empty_state_completes_at_once():
    response = await anext(MetadataHub().watch())
    assert (response.revision, response.snapshot_complete) == (1, True)


async def test_revisions_rise_by_one_through_a_long_snapshot(monkeypatch):
    monkeypatch.setattr(metadata, "BATCH", 2)
    hub = MetadataHub()
    hub.publish(endpoint(number) for number in range(1, 6))
    seen = []
    async for response in hub.watch():
        seen.append((response.revision, response.snapshot_complete))
        if response.snapshot_complete:
            break
    assert seen == [(1, False), (2, False), (3, True)]


async def test_what_changes_nothing_is_not_passed_on():
    hub = MetadataHub()
    hub.publish([endpoint(1)])
    watch = hub.watch()
    await snapshot(watch)
    hub.publish([endpoint(1), pb.Update(endpoint_deleted=9), endpoint(1, identity=2)])
    assert [endpoint(1, identity=2)] == list((await anext(watch)).updates)


async def test_a_watcher_that_falls_behind_is_cut_off(monkeypatch):
    monkeypatch.setattr(metadata, "MAX_BACKLOG", 3)
    hub = MetadataHub()
    watch = hub.watch()
    await snapshot(watch)
    hub.publish(endpoint(number) for number in range(1, 6))
    with pytest.raises(SlowWatcherError):
        await anext(watch)


async def test_names_stay_until_there_are_none():
    def names(*told):
        return pb.Update(names=pb.Names(endpoint=1, ip="192.0.2.1", names=told))

    hub = MetadataHub()
    hub.publish([names("a.test"), names("a.test", "b.test")])
    watch = hub.watch()
    assert [names("a.test", "b.test")] == await snapshot(watch)
    hub.publish([names("a.test", "b.test"), names(), names()])
    assert [names()] == list((await anext(watch)).updates)
    assert await snapshot(hub.watch()) == []
