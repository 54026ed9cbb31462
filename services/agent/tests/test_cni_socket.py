"""The CNI socket as the plugin sees it."""

import asyncio
import json

import pytest
from cilium_agent.cni.queueing import DeleteQueue
from cilium_agent.cni.serving import CNIService, Started
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.errors import PodLinkError, PodNotFoundError
from cilium_core.serving.http_server import HttpServer

BODY = {
    "containerID": "c1",
    "netns": "/run/netns/x",
    "ifname": "eth0",
    "args": {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "cart"},
    "config": {},
}


class Provisioner:
    def __init__(self):
        self.error = None
        self.deleted = []

    async def add(self, request):
        del request
        raise self.error

    async def delete(self, request):
        self.deleted.append(request.attachment.container_id)
        return False


class Plugin:
    """A server on a socket, and the plugin's way of asking it."""

    def __init__(self, path):
        self.path = path / "cni.sock"
        self.started = Started()
        self.provisioner = Provisioner()
        self.trouble = ""
        self.server = HttpServer()
        CNIService(
            started=self.started,
            table=EndpointTable(),
            provisioner=lambda: self.provisioner,
            check=None,
            gateways=lambda: ("10.244.0.1", "fd00::1"),
            trouble=lambda: self.trouble,
        ).routes(self.server)

    async def ask(self, method, path, body=BODY):
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        payload = json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nContent-Length: {len(payload)}\r\n\r\n"
        writer.write(head.encode() + payload)
        answer = await reader.read()
        writer.close()
        status = int(answer.split(b" ", 2)[1])
        return status, json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.fixture
async def plugin(tmp_path):
    made = Plugin(tmp_path)
    await made.server.listen_unix(made.path)
    yield made
    await made.server.stop(0)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PodNotFoundError("no pod"), 503, 11),
        (TimeoutError("slow"), 503, 11),
        (PodLinkError("other addresses"), 409, 101),
        (ValueError("bug"), 500, 999),
    ],
)
async def test_errors_become_cni_codes(plugin, error, status, code):
    plugin.started.set()
    plugin.provisioner.error = error
    answered, body = await plugin.ask("POST", "/v1/cni/add")
    assert (status, code, str(error)) == (answered, body["code"], body["msg"])


async def test_a_senseless_request_is_refused_while_starting_too(plugin):
    status, body = await plugin.ask("POST", "/v1/cni/add", {**BODY, "ifname": ""})
    assert (status, body["code"]) == (400, 4)


async def test_a_request_waits_for_a_starting_agent(plugin):
    asking = asyncio.create_task(plugin.ask("POST", "/v1/cni/del"))
    starting, _ = await plugin.ask("GET", "/v1/cni/status")
    assert (starting, asking.done()) == (503, False)
    plugin.started.set()
    assert await asking == (200, {})


async def test_deleting_an_unknown_container_succeeds(plugin):
    plugin.started.set()
    assert await plugin.ask("POST", "/v1/cni/del") == (200, {})
    assert plugin.provisioner.deleted == ["c1"]


async def test_checking_an_unknown_container_says_so(plugin):
    plugin.started.set()
    status, body = await plugin.ask("POST", "/v1/cni/check")
    assert (status, body["code"]) == (409, 100)


async def test_status_tells_starting_trouble_and_ready_apart(plugin):
    starting = await plugin.ask("GET", "/v1/cni/status")
    plugin.started.set()
    plugin.trouble = "etcd is away"
    trouble = await plugin.ask("GET", "/v1/cni/status")
    plugin.trouble = ""
    ready = await plugin.ask("GET", "/v1/cni/status")
    assert [starting[0], trouble[0], ready[0]] == [503, 503, 200]
    assert trouble[1]["msg"] == "etcd is away"


def test_queued_deletes_are_read_and_nonsense_is_dropped(tmp_path):
    (tmp_path / "a.delete").write_text(json.dumps(BODY))
    (tmp_path / "b.delete").write_text("{")
    (tmp_path / "c.other").write_text("x")
    (tmp_path / "d.delete").mkdir()
    queue = DeleteQueue(tmp_path)
    with queue.locked():
        queued = queue.read()
    assert [request.attachment.container_id for request in queued.values()] == ["c1"]
    for path in queued:
        queue.done(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.other", "d.delete", "lockfile"]
