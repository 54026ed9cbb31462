"""What names stand for: learning, labels in the kernel, expiry, connections, restarts."""

from __future__ import annotations

import asyncio
import ipaddress
import json

import pytest
from cilium.proxy.v1 import proxy_pb2
from cilium_agent.fqdn import NameManager, NameOptions, restored_labels
from cilium_agent.fqdn.caches import EndpointNames, Lookup
from cilium_core.errors import InvalidError, UnavailableError
from cilium_core.labels import Label, LabelSet
from cilium_core.policy.selectors import FqdnSelector
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.waiting import eventually

NOW = 1_000_000.0
EXACT, PATTERN = FqdnSelector(name="api.example.com"), FqdnSelector(pattern="*.example.com")
FIRST, SECOND = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")


class World:
    """A manager with a kernel that can refuse, a clock, and connections."""

    def __init__(self, path, **options) -> None:
        self.kernel: dict = {}
        self.calls = 0
        self.broken = False
        self.now = NOW
        self.connections: set[tuple[str, str]] = set()
        self.published: list = []
        self.endpoints = {"10.0.0.1": 1, "10.0.0.2": 2}
        self.identities = {0x01000005: LabelSet([EXACT.label])}
        self.names = NameManager(
            path,
            NameOptions(**options),
            apply=self.apply,
            owner=self.endpoints.get,
            connections=self.live,
            identities=lambda: self.identities,
            publish=self.published.extend,
            clock=lambda: self.now,
        )

    async def apply(self, names) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        if self.broken:
            raise OSError("no kernel")
        for address, labels in names.items():
            if labels:
                self.kernel[str(address)] = {label.key for label in labels}
            else:
                del self.kernel[str(address)]

    async def live(self):
        return self.connections

    async def learn(self, name="api.example.com.", *addresses, ttl=60, client="10.0.0.1"):
        observation = proxy_pb2.NameObservation(
            time_ns=int(self.now * 1e9),
            client=ipaddress.ip_address(client).packed,
            name=name,
            addresses=[address.packed for address in addresses or (FIRST,)],
            ttl_s=ttl,
        )
        return (await self.names.observe([observation]))[0]


@pytest.fixture
async def world(tmp_path) -> World:
    world = World(tmp_path / "fqdn.json")
    await world.names.restore()
    world.names.set_selectors([EXACT, PATTERN])
    return world


async def test_the_kernel_has_the_labels_of_every_selector_before_the_answer_may_leave(world):
    lifetime = await world.learn("api.example.com.", FIRST, SECOND)

    assert lifetime >= 60
    both = {"api.example.com", "*.example.com"}
    assert world.kernel == {"192.0.2.1": both, "2001:db8::1": both}


async def test_what_the_kernel_knows_is_not_told_again(world):
    await world.learn()
    await world.learn(client="10.0.0.2")

    assert world.calls == 1


async def test_a_name_that_no_selector_means_gives_no_labels_until_one_does(world):
    await world.learn("other.test.")
    assert world.kernel == {}

    world.names.set_selectors([FqdnSelector(pattern="*.test")])
    await world.names.settle()

    assert world.kernel == {"192.0.2.1": {"*.test"}}


async def test_a_selector_that_goes_takes_its_label_along(world):
    await world.learn()
    world.names.set_selectors([PATTERN])
    await world.names.settle()
    assert world.kernel == {"192.0.2.1": {"*.example.com"}}

    world.names.set_selectors([])
    await world.names.settle()
    assert world.kernel == {}


async def test_two_answers_at_once_both_wait_for_the_kernel(world):
    done = await asyncio.gather(world.learn(), world.learn(client="10.0.0.2"))

    assert len(done) == 2
    assert "192.0.2.1" in world.kernel


async def test_a_kernel_that_fails_is_an_error_and_is_told_later(world):
    world.broken = True
    with pytest.raises(UnavailableError, match="no kernel"):
        await world.learn()

    world.broken = False
    await world.names.settle()
    assert "192.0.2.1" in world.kernel


async def test_an_expired_name_keeps_its_labels_while_a_connection_lives_and_loses_them_after(
    world,
):
    await world.learn(ttl=30)
    world.connections = {("10.0.0.1", "192.0.2.1")}
    for _ in range(10):
        world.now += 60
        await world.names.collect()
    assert "192.0.2.1" in world.kernel or await settled(world)
    assert [row.source for row in world.names.rows()] == ["connection"]

    world.connections = set()
    world.now += 60
    await world.names.collect()
    assert "192.0.2.1" in world.kernel  # two minutes of grace after the connection
    world.now += 121
    await world.names.collect()
    await world.names.settle()
    assert world.kernel == {}
    assert world.names.rows() == []


async def settled(world) -> bool:
    await world.names.settle()
    return True


async def test_a_connection_of_another_endpoint_keeps_nothing(world):
    await world.learn(ttl=0)
    world.connections = {("10.0.0.2", "192.0.2.1")}
    world.now += 61
    await world.names.collect()
    world.now += 61
    await world.names.collect()
    await world.names.settle()

    assert world.kernel == {}


async def test_an_answer_without_life_serves_a_client_that_is_about_to_connect(world):
    assert await world.learn(ttl=0) >= 10
    world.now += 1
    await world.names.collect()
    await world.names.settle()

    assert "192.0.2.1" in world.kernel


async def test_the_shortest_life_can_be_set(tmp_path):
    world = World(tmp_path / "fqdn.json", tofqdns_min_ttl=3600)
    await world.names.restore()
    assert await world.learn(ttl=1) >= 3600


async def test_a_name_has_so_many_addresses_and_the_first_to_expire_makes_room(tmp_path):
    world = World(tmp_path / "fqdn.json", tofqdns_endpoint_max_ip_per_hostname=2)
    await world.names.restore()
    for number, ttl in ((1, 300), (2, 60), (3, 900)):
        await world.learn("a.test.", ipaddress.ip_address(f"192.0.2.{number}"), ttl=ttl)

    kept = [row.addresses for row in world.names.rows() if row.source == "lookup"]
    assert kept == [("192.0.2.1", "192.0.2.3")]


async def test_zombies_have_a_limit(tmp_path):
    world = World(tmp_path / "fqdn.json", tofqdns_max_deferred_connection_deletes=3)
    await world.names.restore()
    for number in range(1, 9):
        await world.learn("a.test.", ipaddress.ip_address(f"192.0.2.{number}"), ttl=0)
    world.now += 1
    world.connections = {("10.0.0.1", f"192.0.2.{number}") for number in range(1, 9)}
    await world.names.collect()

    assert len(world.names.rows()) == 3


async def test_addresses_that_lead_nowhere_outside_are_not_learned(world):
    await world.learn("api.example.com.", ipaddress.ip_address("127.0.0.1"))
    await world.learn("api.example.com.", ipaddress.ip_address("::"))

    assert world.kernel == {}


async def test_an_ipv4_address_in_ipv6_clothes_is_what_the_client_connects_to(world):
    await world.learn("api.example.com.", ipaddress.ip_address("::ffff:192.0.2.9"))

    assert list(world.kernel) == ["192.0.2.9"]


async def test_an_endpoint_that_goes_takes_its_names_along(world):
    await world.learn()
    world.names.endpoint_gone(1)
    await world.names.settle()

    assert world.kernel == {}


async def test_a_restart_knows_what_was_known(world, tmp_path):
    await world.learn(ttl=600)
    await world.learn("old.example.com.", SECOND, ttl=0)
    world.now += 1
    await world.names.collect()
    await world.names.save()

    after = World(tmp_path / "fqdn.json")
    await after.names.restore([1])
    after.names.set_selectors([EXACT, PATTERN])
    await after.names.settle()

    await world.names.settle()
    assert after.kernel == world.kernel
    assert [row[:3] for row in after.names.rows()] == [row[:3] for row in world.names.rows()]
    assert restored_labels(tmp_path / "fqdn.json") == {0x01000005: LabelSet([EXACT.label])}


async def test_a_later_expiry_is_on_disk_with_the_next_collection_and_at_the_end(world, tmp_path):
    task = asyncio.create_task(world.names.run())
    await world.learn(ttl=600)
    await eventually((tmp_path / "fqdn.json").exists)
    world.now += 300
    await world.learn(ttl=600)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    after = World(tmp_path / "fqdn.json")
    await after.names.restore()
    assert [row.expires_s for row in after.names.rows()] == [NOW + 900]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1}'])
async def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path, content):
    (tmp_path / "fqdn.json").write_bytes(content)
    world = World(tmp_path / "fqdn.json")
    await world.names.restore()

    assert world.names.rows() == []
    assert restored_labels(tmp_path / "fqdn.json") == {}


async def test_what_a_proxy_tells_before_an_earlier_run_is_known_again_is_not_lost(world, tmp_path):
    await world.learn("old.example.com.", SECOND)
    await world.names.save()
    after = World(tmp_path / "fqdn.json")
    early = asyncio.ensure_future(after.learn("new.example.com.", FIRST))
    await asyncio.sleep(0)

    assert not early.done()
    await after.names.restore([1])
    await early
    assert {(row.endpoint, row.name) for row in after.names.rows()} == {
        (1, "old.example.com."),
        (1, "new.example.com."),
    }


async def test_names_of_endpoints_that_are_gone_are_not_restored(world, tmp_path):
    await world.learn()
    await world.names.save()
    after = World(tmp_path / "fqdn.json")
    await after.names.restore([2])

    assert after.names.rows() == []


async def test_names_can_be_known_from_a_file(tmp_path):
    listed = [
        {
            "fqdn": "api.example.com",
            "ttl": 60,
            "lookup-time": "2030-01-01T00:00:00+00:00",
            "expiration-time": "2030-01-01T00:01:00+00:00",
            "ips": ["192.0.2.1"],
        }
    ]
    path = tmp_path / "pre.json"
    path.write_text(json.dumps(listed))
    world = World(tmp_path / "fqdn.json", tofqdns_pre_cache=path)
    await world.names.restore()

    assert [row.name for row in world.names.rows()] == ["api.example.com."]
    path.write_text("[{}]")
    with pytest.raises(InvalidError, match=r"pre\.json"):
        await world.names.restore()


async def test_users_can_look_for_names_and_forget_them(world):
    await world.learn()
    await world.learn("other.test.", SECOND, client="10.0.0.2")

    assert [row.endpoint for row in world.names.rows(pattern="*.example.com")] == [1]
    assert [row.name for row in world.names.rows(endpoint=2)] == ["other.test."]
    assert world.names.selectors()[EXACT] == ["192.0.2.1"]
    assert await world.names.clean("*.example.com") == 1
    assert [row.name for row in world.names.rows()] == ["other.test."]
    await world.names.settle()
    assert world.kernel == {}


async def test_cleaning_leaves_addresses_with_connections_their_labels(world):
    await world.learn()
    world.connections = {("10.0.0.1", "192.0.2.1")}
    await world.names.clean()
    await world.names.settle()

    assert "192.0.2.1" in world.kernel


async def test_what_an_endpoint_resolved_is_published_when_it_changes(world):
    await world.learn()
    await world.learn()
    world.names.endpoint_gone(1)

    published = [(u.names.endpoint, u.names.ip, list(u.names.names)) for u in world.published]
    assert published == [(1, "192.0.2.1", ["api.example.com"]), (1, "192.0.2.1", [])]


async def test_work_left_over_is_carried_out_in_the_background(world, tmp_path):
    task = asyncio.create_task(world.names.run())
    try:
        await world.learn("other.test.")
        world.names.set_selectors([FqdnSelector(name="other.test")])
        await eventually(lambda: world.kernel and (tmp_path / "fqdn.json").exists())
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert world.kernel == {"192.0.2.1": {"other.test"}}


names = st.sampled_from(["a.", "b.", "c."])
hosts = st.integers(1, 4).map(lambda n: ipaddress.ip_address(f"192.0.2.{n}"))
steps = st.one_of(
    st.tuples(st.just("learn"), names, hosts, st.integers(0, 200)),
    st.tuples(st.just("expire")),
    st.tuples(st.just("clean"), names),
    st.tuples(st.just("collect"), st.sets(hosts)),
    st.tuples(st.just("wait"), st.integers(1, 200)),
)


@settings(deadline=None)
@given(st.lists(steps, max_size=40))
def test_the_index_of_an_endpoint_says_what_its_entries_say(steps):
    cache, now = EndpointNames(), NOW
    for step in steps:
        before = {address: set(found) for address, found in cache.names.items()}
        changed: set = set()
        match step:
            case ("learn", name, host, ttl):
                changed = cache.learn(Lookup(name, host, ttl, now, now + ttl), 2, 3)
            case ("expire",):
                changed = cache.expire(now, 3)[1]
            case ("clean", name):
                changed = cache.clean(lambda one, name=name: one.name == name, now, 3)[1]
            case ("collect", alive):
                changed = cache.collect(alive, now, now, 0)
            case ("wait", seconds):
                now += seconds
        expected: dict = {}
        for one in cache:
            expected.setdefault(one.address, set()).add(one.name)
        for zombie in cache.zombies.values():
            expected.setdefault(zombie.address, set()).update(zombie.names)
        assert expected == cache.names
        assert len(cache.zombies) <= 3
        differing = {
            host
            for host in before.keys() | expected.keys()
            if before.get(host) != expected.get(host)
        }
        assert differing <= changed


def test_labels_are_those_that_selectors_are_written_with():
    assert EXACT.label == Label("fqdn", "api.example.com")
