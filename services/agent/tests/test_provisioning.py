"""Creation and removal of endpoints against recording stand-ins of what surrounds them."""

import pytest
from cilium_agent.addresses import PodAddresses
from cilium_agent.cni.requests import PodRequest
from cilium_agent.endpoints.provisioning import Provisioner
from cilium_agent.endpoints.records import Attachment, Link
from cilium_agent.endpoints.rows import NOT_READY
from cilium_agent.endpoints.states import State
from cilium_agent.endpoints.storing import EndpointDirectory
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.pods import PodTable
from cilium_agent.restoring import Remains, Restorer
from cilium_core.identities import parse_prefix
from cilium_core.labels import LabelFilter

POD = {
    "metadata": {"namespace": "shop", "name": "cart", "uid": "u", "labels": {"app": "cart"}},
    "spec": {"nodeName": "n1", "containers": []},
}
STEPS = ["save", "make_link", "acquire", "prepare", "connect", "announce", "build", "published"]


class World:
    """Everything around the provisioner; `fail` names the step that raises."""

    def __init__(self, path):
        self.calls = []
        self.fail = ""
        self.links = set()
        self.rows = {}
        self.identities = []
        self.announced = set()
        self.policies = set()
        self.scrubbed = []
        self.table = EndpointTable()
        self.files = EndpointDirectory(path)
        self.addresses = PodAddresses(ipv4=True, ipv6=True)
        self.addresses.set_pod_cidrs([parse_prefix("10.244.0.0/24"), parse_prefix("fd00::/64")])
        self.pods = PodTable("default", LabelFilter())
        self.pods.upsert_pod(POD)
        self.provisioner = Provisioner(
            table=self.table,
            directory=self,
            pods=self.pods,
            plane=self,
            addresses=self.addresses,
            identities=self,
            policies=self,
            announcer=self,
            remnants=self,
        )

    def step(self, name):
        self.calls.append(name)
        if name == self.fail:
            raise OSError(f"{name} failed")

    def save(self, endpoint):
        self.step("save")
        self.files.save(endpoint)

    def remove(self, endpoint_id):
        self.files.remove(endpoint_id)

    async def make_link(self, endpoint):
        self.links.add(endpoint.attachment)
        self.step("make_link")
        return Link("lxc1", 5, "02:00:00:00:00:01", "02:00:00:00:00:02")

    async def remove_link(self, endpoint):
        self.calls.append("remove_link")
        self.links.discard(endpoint.attachment)

    def has_link(self, endpoint):
        return endpoint.attachment in self.links

    async def prepare(self, endpoint_id):
        self.step("prepare")

    async def connect(self, row):
        self.rows[row.id] = row
        self.step("connect")

    async def disconnect(self, endpoint_id):
        self.rows.pop(endpoint_id, None)

    async def scrub(self, addresses):
        self.scrubbed.append(addresses)

    async def acquire(self, labels):
        self.step("acquire")
        self.identities.append(labels)
        return 41201

    def release(self, what):
        if isinstance(what, Attachment):
            return self.no_remnants()
        self.identities.remove(what)
        return None

    async def no_remnants(self):
        return False

    async def build(self, endpoint):
        assert self.rows[endpoint.id].flags == NOT_READY
        assert endpoint.id in self.announced
        self.policies.add(endpoint.id)
        self.step("build")

    def forget(self, endpoint_id):
        self.policies.discard(endpoint_id)

    async def announce(self, endpoint):
        self.announced.add(endpoint.id)
        self.step("announce")

    async def published(self, endpoint, timeout_s):
        del endpoint, timeout_s
        self.step("published")
        return True

    async def withdraw(self, endpoint):
        self.announced.discard(endpoint.id)

    def nothing_is_left(self):
        owners = set(self.addresses.pool.owners.values())
        left = (self.links, self.rows, self.identities, self.announced, self.policies)
        found = self.files.load()
        return (
            not any(left)
            and owners == {"router"}
            and len(self.table) == 0
            and not (found.endpoints or found.unfinished or found.broken)
        )


def request(container="c1", name="cart"):
    attachment = Attachment(container, "/run/netns/x", "eth0")
    return PodRequest(attachment, "shop", name, "", None)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def test_a_pod_gets_addresses_identity_and_file(world):
    endpoint = await world.provisioner.add(request())
    assert (endpoint.ipv4, endpoint.ipv6, endpoint.identity) == ("10.244.0.2", "fd00::2", 41201)
    assert [endpoint.id] == [e.id for e in world.files.load().endpoints]


@pytest.mark.parametrize("step", STEPS)
async def test_a_failure_at_any_step_leaves_nothing(world, step):
    world.fail = step
    with pytest.raises(OSError, match=f"{step} failed"):
        await world.provisioner.add(request())
    await world.provisioner.drain()
    assert world.nothing_is_left()


async def test_the_intent_is_on_disk_before_anything_is_made(world):
    world.fail = "make_link"
    with pytest.raises(OSError, match="make_link"):
        await world.provisioner.add(request())
    assert world.calls.index("save") < world.calls.index("make_link")


async def test_deleting_gives_everything_back_after_connections_are_swept(world):
    endpoint = await world.provisioner.add(request())
    assert await world.provisioner.delete(request())
    await world.provisioner.drain()
    assert world.nothing_is_left()
    assert [(endpoint.ipv4, endpoint.ipv6)] == world.scrubbed


async def test_deleting_twice_is_no_error(world):
    await world.provisioner.add(request())
    assert [await world.provisioner.delete(request()) for _ in range(2)] == [True, False]


async def test_asking_again_for_an_interface_replaces_the_endpoint(world):
    first = await world.provisioner.add(request())
    second = await world.provisioner.add(request())
    assert State.DISCONNECTED is first.state
    assert [second.id] == [e.id for e in world.table]


async def test_a_removal_that_failed_half_way_can_be_repeated(world):
    endpoint = await world.provisioner.add(request())
    remove_link, world.remove_link = world.remove_link, None
    with pytest.raises(TypeError):
        await world.provisioner.delete(request())
    assert State.DISCONNECTING is endpoint.state
    world.remove_link = remove_link
    assert await world.provisioner.delete(request())
    await world.provisioner.drain()
    assert world.nothing_is_left()


async def test_an_endpoint_whose_interface_stays_away_is_removed(world):
    endpoint = await world.provisioner.add(request())
    world.links.clear()
    await world.provisioner.sweep()
    assert endpoint in world.table
    await world.provisioner.sweep()
    await world.provisioner.drain()
    assert world.nothing_is_left()


async def test_an_interface_that_is_there_is_left_alone(world):
    await world.provisioner.add(request())
    for _ in range(3):
        await world.provisioner.sweep()
    assert len(world.table) == 1


async def test_a_freed_id_and_address_rest_before_they_are_used_again(world):
    first = await world.provisioner.add(request())
    await world.provisioner.delete(request())
    await world.provisioner.drain()
    second = await world.provisioner.add(request("c2"))
    assert first.id != second.id
    assert first.ipv4 != second.ipv4


async def test_a_restored_endpoint_outlives_its_unreadable_pod_but_not_a_deleted_one(world):
    endpoint = await world.provisioner.add(request())
    restorer = Restorer(table=world.table, directory=world, addresses=world.addresses, plane=world)
    endpoint.state = State.RESTORING
    pods = PodTable("default", LabelFilter())
    pods.doubt_pod("shop", "cart")
    remains = Remains(kept=[endpoint])
    await restorer.remove_podless(remains, pods, world.provisioner)
    assert remains.kept == [endpoint]
    pods.delete_pod("shop", "cart")
    await restorer.remove_podless(remains, pods, world.provisioner)
    assert remains.kept == []
