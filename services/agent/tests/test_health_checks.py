"""What load balancers hear on the port for health checks of a service."""

import asyncio
import json
import socket

import pytest
from cilium_agent.services import HealthChecks
from cilium_core.errors import UnavailableError
from cilium_core.services import HealthCheck, ServiceName

from tests.needing import need

WEB = ServiceName("shop", "web")


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as any_server:
        return any_server.getsockname()[1]


@pytest.fixture
async def checks():
    made = HealthChecks()
    yield made
    await made.stop()


async def ask(port, host="127.0.0.1"):
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET / HTTP/1.1\r\nHost: lb\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


async def test_a_node_with_backends_is_well(checks, port):
    await checks.set([HealthCheck(WEB, port, 2)])
    told = {"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2}
    assert await ask(port) == (200, told)


async def test_it_is_asked_over_ipv6_too(checks, port):
    need("" if socket.has_dualstack_ipv6() else "this machine has no IPv6")
    await checks.set([HealthCheck(WEB, port, 1)])
    assert (await ask(port, "::1"))[0] == 200


async def test_a_node_whose_last_backend_went_is_to_be_passed_by(checks, port):
    await checks.set([HealthCheck(WEB, port, 1)])
    await checks.set([HealthCheck(WEB, port, 0)])
    status, told = await ask(port)
    assert (status, told["localEndpoints"]) == (503, 0)


async def test_the_port_of_a_service_that_went_is_closed(checks, port):
    await checks.set([HealthCheck(WEB, port, 1)])
    await checks.set([])
    with pytest.raises(ConnectionRefusedError):
        await ask(port)


async def test_a_port_that_is_taken_does_not_stop_the_others(checks, port):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match="shop/web"):
            await checks.set([HealthCheck(WEB, other, 1), HealthCheck(WEB, port, 1)])
        assert (await ask(port))[0] == 200
    await checks.set([HealthCheck(WEB, other, 1), HealthCheck(WEB, port, 1)])
    assert (await ask(other))[0] == 200
