"""HTTP rules, enforced by a real Envoy on real connections."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

import pytest
from cilium_core.policy.l7 import HeaderMatch, HttpRule, L7Kind, Mismatch, Redirect, SecretRef
from flow import flow_pb2

from tests.namespaces import CLIENT, NODE, SERVER, connected
from tests.proxies.origins import DISCONNECTS, call, read_answer, say
from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from tests.proxies.networks import Node

pytestmark = pytest.mark.asyncio(loop_scope="module")

REF = SecretRef("default", "token")


def rules(*http: HttpRule, ingress: bool = True, **more: bool) -> Redirect:
    return Redirect(ingress=ingress, kind=L7Kind.HTTP, http=http, **more)


async def enforce(node: Node, *http: HttpRule, ingress: bool = True, **more: bool) -> None:
    await node.enforce({80: rules(*http, ingress=ingress, **more)})


@pytest.mark.parametrize("family", [4, 6])
async def test_ingress_speaks_under_the_nodes_address(node: Node, family: int) -> None:
    await enforce(node, HttpRule(path="/a"))
    answer = await call(node.namespaces, "GET", "/a", family=family)
    assert (answer.status, answer.seen["client"]) == (200, NODE[family])


@pytest.mark.parametrize("family", [4, 6])
async def test_egress_speaks_under_the_clients_address(node: Node, family: int) -> None:
    await enforce(node, HttpRule(path="/a"), ingress=False)
    answer = await call(node.namespaces, "GET", "/a", family=family)
    assert (answer.status, answer.seen["client"]) == (200, CLIENT[family])


async def test_what_no_rule_allows_is_answered_with_403(node: Node) -> None:
    await enforce(node, HttpRule(path="/a"))
    answer = await call(node.namespaces, "GET", "/b")
    assert (answer.status, answer.body) == (403, b"Access denied\r\n")
    assert answer.headers["content-type"] == "text/plain"


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("GET", "/public", "web", 200),
        ("GET", "/public/x", "web", 403),
        ("GET", "/public?a=1", "web", 403),
        ("GET", "/api/v1/public/x?a=/../b", "web", 200),
        ("POST", "/public", "web", 403),
        ("PROPFIND", "/public", "web", 403),
        ("GETX", "/public", "web", 400),
        ("get", "/public", "web", 400),
        ("GET", "/hosted", "api.example.com", 200),
        ("GET", "/hosted", "api.example.com:80", 403),
        ("GET", "/hosted", "API.example.com", 403),
        ("GET", "/hosted", "evil.com", 403),
        ("PUT", "/id/42", "web", 200),
        ("PUT", "/id/x", "web", 403),
        ("PUT", "/id/42/", "web", 403),
    ],
)
async def test_rules_match_whole_values(
    node: Node, method: str, path: str, host: str, status: int
) -> None:
    await enforce(
        node,
        HttpRule(path="/public", method="GET"),
        HttpRule(path="/api/v1/public.*", method="GET"),
        HttpRule(path="/hosted", host=r"api\.example\.com"),
        HttpRule(path="/id/[0-9]+", method="PUT"),
    )
    answer = await call(node.namespaces, method, path, host=host)
    assert answer.status == status


@pytest.mark.parametrize(
    "path",
    [
        "/public/../secret",
        "/public/%2e%2e/secret",
        "/public/%2E./secret",
        "/public/..%2fsecret",
        "/public/..%2Fsecret",
        "/public/..%5csecret",
        "/public/..\\secret",
        "/public//../secret",
        "/public/./../secret",
        "//secret",
        "/secret#/public/",
        "/public/..;/secret",
        "/public/..;x=y/secret",
        "/public/.;/../secret",
        "/public/a/..;/..;/secret",
        "/public/..%3b/secret",
        "/public/%2e%2e%3Bx/secret",
        "/public/..%c0%afsecret",
        "/public/%C0%AE%c0%ae/secret",
        "/public/..%00/secret",
        "http://web/secret",
        "/secret?/public/",
        "/SECRET/../public/../secret",
        "*",
        "",
    ],
)
async def test_no_spelling_of_a_path_gets_past_its_rule(node: Node, path: str) -> None:
    await enforce(node, HttpRule(path="/public/.*"))
    try:
        answer = await call(node.namespaces, "GET", path)
    except DISCONNECTS:
        return
    if answer.status == 200:  # what the server got is what was judged
        got = answer.seen["request"].split()[1]
        assert got.startswith("/public/")
        assert ".." not in got
    else:
        assert answer.status in (307, 400, 403)


async def test_a_path_is_judged_and_sent_in_the_same_form(node: Node) -> None:
    await enforce(node, HttpRule(path="/a/b"))
    answer = await call(node.namespaces, "GET", "/x/..//a/./b")
    assert answer.seen["request"] == "GET /a/b HTTP/1.1"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /secret HTTP/1.1\r\nhost: web\r\n\r\nGET /ok HTTP/1.1\r\nhost: web\r\n\r\n",
        b"GET /ok\r\n\r\n",
        b"CONNECT web:80 HTTP/1.1\r\nhost: web:80\r\n\r\n",
        b"GET /secret HTTP/1.0\r\n\r\n",
        b"GET /secret HTTP/1.1\r\n\r\n",
        (
            b"GET /ok HTTP/1.1\r\nhost: web\r\nhost: evil\r\ncontent-length: 5\r\n"
            b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /secret HTTP/1.1\r\n\r\n"
        ),
        b"\x16\x03\x01\x00\x05hello\r\n\r\n",
        b"\x00" * 100 + b"\r\n\r\n",
        b"GET /ok HTTP/9.9\r\nhost: web\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_request_reach_nobody(node: Node, request_bytes: bytes) -> None:
    await enforce(node, HttpRule(path="/ok", host="allowed"))
    try:
        answer = await say(node.namespaces, request_bytes)
    except DISCONNECTS:
        return
    assert answer.status in (400, 403, 426, 505)


async def test_a_second_request_of_a_connection_is_judged_for_itself(node: Node) -> None:
    await enforce(node, HttpRule(path="/ok"))
    sock = await connected(node.namespaces.client, SERVER[4], 80)
    reader, writer = await asyncio.open_connection(sock=sock)
    statuses = []
    for path in ("/ok", "/secret", "/ok"):
        writer.write(f"GET {path} HTTP/1.1\r\nhost: web\r\n\r\n".encode())
        statuses.append((await read_answer(reader)).status)
    writer.close()
    assert statuses == [200, 403, 200]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("X-Token: 42",), 200),
        (("x-token: 42",), 200),
        (("x-token: 4",), 403),
        (("x-token: 42", "x-token: 43"), 403),
        (("x-token: .*",), 403),
        ((), 403),
    ],
)
async def test_a_header_has_its_literal_value(
    node: Node, headers: tuple[str, ...], status: int
) -> None:
    await enforce(node, HttpRule(headers=(HeaderMatch("x-token", "42"),)))
    assert (await call(node.namespaces, "GET", "/", *headers)).status == status


async def test_a_header_may_be_asked_for_without_value(node: Node) -> None:
    await enforce(node, HttpRule(headers=(HeaderMatch("x-token"),)))
    assert (await call(node.namespaces, "GET", "/", "x-token: any")).status == 200
    assert (await call(node.namespaces, "GET", "/")).status == 403


async def test_a_header_pattern_matches_the_whole_value(node: Node) -> None:
    match = HeaderMatch("authorization", "Bearer [a-z]+", pattern=True)
    await enforce(node, HttpRule(headers=(match,)))
    assert (await call(node.namespaces, "GET", "/", "authorization: Bearer abc")).status == 200
    assert (await call(node.namespaces, "GET", "/", "authorization: Bearer a1")).status == 403


@pytest.mark.parametrize(
    ("action", "given", "got"),
    [
        (Mismatch.LOG, ["b"], ["b"]),
        (Mismatch.ADD, [], ["a%1"]),
        (Mismatch.ADD, ["b"], ["b", "a%1"]),
        (Mismatch.ADD, ["a%1"], ["a%1"]),
        (Mismatch.REPLACE, ["b"], ["a%1"]),
        (Mismatch.REPLACE, [], ["a%1"]),
        (Mismatch.DELETE, ["b"], []),
        (Mismatch.DELETE, ["a%1"], ["a%1"]),
        (Mismatch.DELETE, [], []),
    ],
)
async def test_a_header_that_differs_is_mended(
    node: Node, action: Mismatch, given: list[str], got: list[str]
) -> None:
    await enforce(node, HttpRule(path="/m", headers=(HeaderMatch("x", "a%1", mismatch=action),)))
    answer = await call(node.namespaces, "GET", "/m", *(f"x: {value}" for value in given))
    assert answer.status == 200
    assert [value for name, value in answer.seen["headers"] if name == "x"] == got


async def test_every_rule_that_allows_a_request_mends_it(node: Node) -> None:
    await enforce(
        node,
        HttpRule(path="/a.*", headers=(HeaderMatch("x", "1", mismatch=Mismatch.ADD),)),
        HttpRule(path="/ab.*", headers=(HeaderMatch("y", "2", mismatch=Mismatch.ADD),)),
        HttpRule(path="/b.*", headers=(HeaderMatch("z", "3", mismatch=Mismatch.ADD),)),
    )
    answer = await call(node.namespaces, "GET", "/abc")
    added = {name: value for name, value in answer.seen["headers"] if name in "xyz"}
    assert added == {"x": "1", "y": "2"}


async def test_headers_are_mended_where_everything_is_allowed(node: Node) -> None:
    match = HeaderMatch("x", "1", mismatch=Mismatch.REPLACE)
    await enforce(node, HttpRule(path="/a", headers=(match,)), allow_all=True)
    answer = await call(node.namespaces, "GET", "/a", "x: 2")
    assert ["x", "1"] in answer.seen["headers"]
    assert (await call(node.namespaces, "GET", "/other")).status == 200


async def test_a_header_value_follows_its_secret(node: Node) -> None:
    def secret(value: str) -> dict[str, object]:
        data = {"value": base64.b64encode(value.encode()).decode()}
        return {"metadata": {"namespace": "default", "name": "token"}, "data": data}

    async def status(value: str) -> int:
        return (await call(node.namespaces, "GET", "/", f"x: {value}")).status

    node.secrets.upsert(secret("one"))
    await enforce(node, HttpRule(headers=(HeaderMatch("x", secret=REF),)))
    assert (await status("one"), await status("two")) == (200, 403)
    node.secrets.upsert(secret("two"))

    async def rotated() -> bool:
        return (await status("one"), await status("two")) == (403, 200)

    await eventually(rotated)
    node.secrets.delete("default", "token")

    async def refused() -> bool:
        return await status("two") == 403

    await eventually(refused)
    assert any("secret default/token" in line for line in node.proxies.status().problems)


async def test_where_everything_is_allowed_nothing_is_changed(node: Node) -> None:
    await enforce(node, allow_all=True)
    answer = await call(node.namespaces, "GET", "/a//b/%2e/..;/c", "x-envoy-a: b", "User-Agent: u")
    assert answer.seen["request"] == "GET /a//b/%2e/..;/c HTTP/1.1"
    assert ["user-agent", "u"] in answer.seen["headers"]


async def test_no_rules_allow_nothing(node: Node) -> None:
    await enforce(node)
    assert (await call(node.namespaces, "GET", "/")).status == 403


async def test_headers_that_steer_envoy_are_taken_from_nobody(node: Node) -> None:
    await enforce(node, HttpRule(path="/a"))
    answer = await call(
        node.namespaces, "GET", "/a", "x-envoy-retry-on: 5xx", "x-forwarded-for: 1.2.3.4"
    )
    assert ["x-forwarded-for", "1.2.3.4"] in answer.seen["headers"]
    assert not any(name.startswith("x-envoy") for name, _ in answer.seen["headers"])


async def test_a_websocket_is_passed_on(node: Node) -> None:
    await enforce(node, HttpRule(path="/ws"))
    sock = await connected(node.namespaces.client, SERVER[4], 80)
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(
        b"GET /ws HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: eHl6\r\n\r\n"
    )
    async with asyncio.timeout(5):
        assert (await read_answer(reader)).status == 101
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
    writer.close()


async def test_a_server_that_is_not_there_is_an_error_of_the_server(node: Node) -> None:
    redirect = rules(HttpRule(path="/a"))
    await node.enforce({81: redirect})
    assert (await call(node.namespaces, "GET", "/a", port=81)).status == 503


async def test_auditing_refuses_nothing_and_reports_what_it_would(node: Node) -> None:
    node.seen.records.clear()
    await enforce(node, HttpRule(path="/ok"), audit=True)
    answer = await call(node.namespaces, "GET", "/a/..;/../audited-path")
    assert answer.seen["request"] == "GET /a/..;/../audited-path HTTP/1.1"
    request = await eventually(
        lambda: next((r for r in node.seen.records if "/audited-path" in r.l7.http.url), None)
    )
    assert request.verdict == flow_pb2.AUDIT


@pytest.mark.parametrize("ingress", [True, False])
async def test_requests_and_responses_are_reported(node: Node, ingress: bool) -> None:
    node.seen.records.clear()
    await enforce(node, HttpRule(path="/seen.*"), ingress=ingress)
    await call(node.namespaces, "GET", "/seen?q=1", "User-Agent: tester")
    await call(node.namespaces, "GET", "/unseen")
    await eventually(lambda: len(node.seen.records) >= 4)
    passed, answered, refused, answer = node.seen.records
    assert (passed.verdict, passed.l7.http.url) == (flow_pb2.FORWARDED, "http://web/seen?q=1")
    assert (passed.ingress, passed.server_port) == (ingress, 80)
    assert ("user-agent", "tester") in [(h.key, h.value) for h in passed.l7.http.headers]
    assert (answered.l7.type, answered.l7.http.code) == (flow_pb2.RESPONSE, 200)
    assert answered.l7.latency_ns > 0
    assert (refused.verdict, refused.l7.type) == (flow_pb2.DROPPED, flow_pb2.REQUEST)
    assert (answer.verdict, answer.l7.http.code) == (flow_pb2.FORWARDED, 403)
