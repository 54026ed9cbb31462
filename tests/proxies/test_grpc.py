"""gRPC through Envoy: rules are HTTP rules, refusals are gRPC statuses."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cilium_core.policy.l7 import HeaderMatch, HttpRule, L7Kind, Redirect, SecretRef, TlsContext

from tests.certificates import Authority
from tests.namespaces import SERVER
from tests.proxies.keys import secret_document
from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.namespaces import Namespaces
    from tests.proxies.networks import Node

pytestmark = pytest.mark.asyncio(loop_scope="module")

PORT = 50051
ENDS = str(Path(__file__).with_name("grpc_ends.py"))


@asynccontextmanager
async def greeter(namespaces: Namespaces) -> AsyncIterator[None]:
    command = ["ip", "netns", "exec", namespaces.server, sys.executable, ENDS, "serve", str(PORT)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
        yield
    finally:
        process.terminate()
        await process.wait()


async def calls(
    namespaces: Namespaces, *methods: str, family: int = 4, **environment: str
) -> list[list[str]]:
    """Code, details and answer of each."""
    address = f"[{SERVER[6]}]" if family == 6 else SERVER[4]
    command = ["ip", "netns", "exec", namespaces.client, sys.executable, ENDS, "call"]
    process = await asyncio.create_subprocess_exec(
        *command,
        f"{address}:{PORT}",
        *methods,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    results: list[list[str]] = json.loads(output)
    return results


@pytest.mark.parametrize("ingress", [True, False])
async def test_methods_are_allowed_one_by_one(node: Node, ingress: bool) -> None:
    rule = HttpRule(path="/demo.Greeter/Hello", method="POST")
    await node.enforce({PORT: Redirect(ingress=ingress, kind=L7Kind.HTTP, http=(rule,))})
    async with greeter(node.namespaces):
        results = await calls(node.namespaces, "/demo.Greeter/Hello", "/demo.Greeter/Bye")
    assert results[0] == ["OK", "", "/demo.Greeter/Hello!"]
    assert results[1][:2] == ["PERMISSION_DENIED", "Access denied\r\n"]
    request = await eventually(
        lambda: next((r for r in node.seen.records if "Greeter/Bye" in r.l7.http.url), None)
    )
    assert request.l7.http.protocol == "HTTP/2"


async def test_headers_of_calls_are_looked_at(node: Node) -> None:
    match = HeaderMatch("user-agent", "grpc-python.*", pattern=True)
    allowed = Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(headers=(match,)),))
    refused = Redirect(
        ingress=True, kind=L7Kind.HTTP, http=(HttpRule(headers=(HeaderMatch("x"),)),)
    )
    async with greeter(node.namespaces):
        await node.enforce({PORT: allowed})
        assert (await calls(node.namespaces, "/a.B/C", family=6))[0][0] == "OK"
        await node.enforce({PORT: refused})
        assert (await calls(node.namespaces, "/a.B/C", family=6))[0][0] == "PERMISSION_DENIED"


async def test_encrypted_calls_reach_a_server_that_speaks_plain_http2(
    node: Node, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("grpc.example.com")
    node.secrets.upsert(secret_document("grpc", pair))
    redirect = Redirect(
        ingress=False,
        kind=L7Kind.HTTP,
        http=(HttpRule(path="/demo.Greeter/Hello"),),
        terminating=TlsContext(SecretRef("default", "grpc")),
    )
    await node.enforce({PORT: redirect})
    async with greeter(node.namespaces):
        results = await calls(
            node.namespaces,
            "/demo.Greeter/Hello",
            "/demo.Greeter/Bye",
            CA=str(authority.certificate),
            AUTHORITY="grpc.example.com",
        )
    assert [code for code, _, _ in results] == ["OK", "PERMISSION_DENIED"]
