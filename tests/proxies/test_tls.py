"""Server names, and TLS that ends and begins at the proxy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from cilium_core.policy.l7 import HttpRule, L7Kind, Redirect, SecretRef, TlsContext
from flow import flow_pb2

from tests.certificates import Authority
from tests.namespaces import CLIENT, SERVER, connected
from tests.proxies.keys import secret_document, server_context
from tests.proxies.origins import DISCONNECTS, call, serving
from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.proxies.networks import Node

pytestmark = pytest.mark.asyncio(loop_scope="module")


NAMES = ("api.example.com", "a.b.example.com", "evil.org")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom the servers' certificates are from."""
    return Authority(tmp_path_factory.mktemp("world"), "world")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom the proxy's certificates are from."""
    return Authority(tmp_path_factory.mktemp("own"), "own")


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def origin(node: Node, world: Authority) -> AsyncIterator[None]:
    """A TLS server on port 443."""
    async with serving(node.namespaces, 443, tls=server_context(world.issue(*NAMES))):
        yield


def names(*listed: str, ingress: bool = False, **more: object) -> Redirect:
    return Redirect(
        ingress=ingress,
        kind=L7Kind.TLS,
        server_names=frozenset(listed),
        allow_all=not listed,
        **more,  # type: ignore[arg-type]
    )


async def get(node: Node, authority: Authority, name: str, path: str = "/", **how: int) -> object:
    """Status of a request by TLS, or None when there is no connection."""
    try:
        answer = await call(
            node.namespaces,
            "GET",
            path,
            host=name,
            port=443,
            tls=authority.client_context(),
            name=name,
            **how,
        )
    except DISCONNECTS:
        return None
    return answer


async def passes(node: Node, authority: Authority, name: str, **how: int) -> bool:
    return await get(node, authority, name, **how) is not None


@pytest.mark.parametrize(
    ("listed", "name", "allowed"),
    [
        ("api.example.com", "api.example.com", True),
        ("api.example.com", "evil.org", False),
        ("*.example.com", "api.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("**.example.com", "a.b.example.com", True),
        ("**.example.com", "evil.org", False),
    ],
)
async def test_only_listed_names_get_through(
    node: Node, world: Authority, listed: str, name: str, allowed: bool
) -> None:
    await node.enforce({443: names(listed)})
    assert await passes(node, world, name) is allowed


@pytest.mark.parametrize("ingress", [True, False])
@pytest.mark.parametrize("family", [4, 6])
async def test_bytes_pass_unread_with_the_right_address(
    node: Node, world: Authority, ingress: bool, family: int
) -> None:
    await node.enforce({443: names("api.example.com", ingress=ingress)})
    answer = await get(node, world, "api.example.com", family=family)
    seen = answer.seen  # type: ignore[attr-defined]
    assert seen["server_name"] == "api.example.com"
    assert (seen["client"] == CLIENT[family]) is not ingress


async def test_a_refused_connection_is_reset_before_it_is_answered(node: Node) -> None:
    await node.enforce({443: names("api.example.com")})
    sock = await connected(node.namespaces.client, SERVER[4], 443)
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(b"GET / HTTP/1.1\r\nhost: api.example.com\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_a_connection_without_a_name_is_refused(node: Node, world: Authority) -> None:
    await node.enforce({443: names("**.example.com")})
    context = world.client_context()
    context.check_hostname = False
    with pytest.raises(DISCONNECTS):
        await call(node.namespaces, "GET", "/", port=443, tls=context, name=SERVER[4])


async def test_connections_are_reported(node: Node, world: Authority) -> None:
    node.seen.records.clear()
    await node.enforce({443: names("api.example.com")})
    await passes(node, world, "api.example.com")
    await passes(node, world, "evil.org")
    expected = {
        ("TLS api.example.com", flow_pb2.FORWARDED),
        ("TLS evil.org refused", flow_pb2.DROPPED),
    }
    await eventually(lambda: expected <= {(r.summary, r.verdict) for r in node.seen.records})


async def test_without_names_every_connection_passes(node: Node, world: Authority) -> None:
    await node.enforce({443: names()})
    assert await passes(node, world, "evil.org")


async def test_auditing_lets_other_names_pass(node: Node, world: Authority) -> None:
    node.seen.records.clear()
    await node.enforce({443: names("api.example.com", audit=True)})
    assert await passes(node, world, "evil.org")


def contexts(node: Node, world: Authority, own: Authority, *shown: str) -> dict[str, TlsContext]:
    node.secrets.upsert(secret_document("shown", own.issue(*(shown or NAMES))))
    node.secrets.upsert(secret_document("trusted", authority=world.certificate))
    return {
        "terminating": TlsContext(SecretRef("default", "shown")),
        "originating": TlsContext(SecretRef("default", "trusted")),
    }


async def test_rules_are_enforced_within_tls(node: Node, world: Authority, own: Authority) -> None:
    redirect = Redirect(
        ingress=False,
        kind=L7Kind.HTTP,
        http=(HttpRule(path="/ok"),),
        **contexts(node, world, own),
    )
    await node.enforce({443: redirect})
    passed = await get(node, own, "api.example.com", "/ok")
    refused = await get(node, own, "api.example.com", "/secret")
    assert passed.seen["server_name"] == "api.example.com"  # type: ignore[attr-defined]
    assert passed.seen["client"] == CLIENT[4]  # type: ignore[attr-defined]
    assert refused.status == 403  # type: ignore[attr-defined]


async def test_a_server_with_the_wrong_certificate_is_not_spoken_to(
    node: Node, world: Authority, own: Authority
) -> None:
    redirect = Redirect(
        ingress=False,
        kind=L7Kind.HTTP,
        allow_all=True,
        **contexts(node, world, own, "unknown.org", "api.example.com"),
    )
    await node.enforce({443: redirect})
    assert (await get(node, own, "api.example.com")).status == 200  # type: ignore[attr-defined]
    assert (await get(node, own, "unknown.org")).status == 503  # type: ignore[attr-defined]


async def test_names_are_limited_before_tls_ends(
    node: Node, world: Authority, own: Authority
) -> None:
    redirect = Redirect(
        ingress=False,
        kind=L7Kind.HTTP,
        http=(HttpRule(path="/ok"),),
        server_names=frozenset({"api.example.com"}),
        **contexts(node, world, own),
    )
    await node.enforce({443: redirect})
    assert await passes(node, own, "api.example.com")
    assert not await passes(node, own, "evil.org")


async def test_a_rule_may_be_limited_to_names(node: Node, world: Authority, own: Authority) -> None:
    redirect = Redirect(
        ingress=False,
        kind=L7Kind.HTTP,
        http=(
            HttpRule(path="/ok", server_names=("api.example.com",)),
            HttpRule(path="/other", server_names=("*.b.example.com", "x.y")),
        ),
        **contexts(node, world, own),
    )
    await node.enforce({443: redirect})

    async def status(name: str, path: str) -> int:
        answer = await get(node, own, name, path)
        return answer.status  # type: ignore[attr-defined, no-any-return]

    assert await status("api.example.com", "/ok") == 200
    assert await status("api.example.com", "/other") == 403
    assert await status("a.b.example.com", "/ok") == 403
    assert await status("a.b.example.com", "/other") == 200


async def test_plain_connections_are_refused_where_tls_ends(
    node: Node, world: Authority, own: Authority
) -> None:
    redirect = Redirect(
        ingress=False, kind=L7Kind.HTTP, allow_all=True, **contexts(node, world, own)
    )
    await node.enforce({443: redirect})
    with pytest.raises(DISCONNECTS):
        await call(node.namespaces, "GET", "/", port=443)


async def test_tls_may_end_and_begin_without_http(
    node: Node, world: Authority, own: Authority
) -> None:
    await node.enforce({443: names("api.example.com", **contexts(node, world, own))})
    answer = await get(node, own, "api.example.com")
    assert answer.seen["server_name"] == "api.example.com"  # type: ignore[attr-defined]


async def test_a_plain_client_may_be_given_tls_to_the_server(
    node: Node, world: Authority, own: Authority
) -> None:
    originating = contexts(node, world, own)["originating"]
    redirect = Redirect(ingress=False, kind=L7Kind.HTTP, allow_all=True, originating=originating)
    await node.enforce({443: redirect})
    answer = await call(node.namespaces, "GET", "/", host="api.example.com", port=443)
    assert answer.seen["server_name"] == "api.example.com"


async def test_a_listener_waits_closed_for_its_secret(node: Node, own: Authority) -> None:
    redirect = Redirect(
        ingress=True,
        kind=L7Kind.HTTP,
        allow_all=True,
        terminating=TlsContext(SecretRef("default", "late")),
    )
    ports = await node.proxies.realise([redirect], limit_s=20)
    node.namespaces.steer({80: ports[redirect]})
    assert any("secret default/late does not exist" in p for p in node.proxies.status().problems)

    async def answered() -> bool:
        try:
            context = own.client_context()
            await call(node.namespaces, "GET", "/", tls=context, name="late.org")
        except (*DISCONNECTS, TimeoutError):
            return False
        return True

    assert not await answered()
    node.secrets.upsert(secret_document("late", own.issue("late.org")))
    await eventually(answered)
    assert not any("default/late" in problem for problem in node.proxies.status().problems)


async def test_clients_show_certificates_where_a_ca_is_named(
    node: Node, world: Authority, own: Authority
) -> None:
    node.secrets.upsert(
        secret_document("mutual", own.issue("mutual.org"), authority=world.certificate)
    )
    redirect = Redirect(
        ingress=True,
        kind=L7Kind.HTTP,
        allow_all=True,
        terminating=TlsContext(SecretRef("default", "mutual"), trusted_ca="ca.crt"),
    )
    await node.enforce({80: redirect})
    context = own.client_context()
    with pytest.raises(DISCONNECTS):
        await call(node.namespaces, "GET", "/", tls=context, name="mutual.org")
    context.load_cert_chain(*map(str, world.issue("client")))
    answer = await call(node.namespaces, "GET", "/", tls=context, name="mutual.org")
    assert answer.status == 200
