"""What a proxy enforces where several rules meet, and when no proxy is asked at all."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_core.policy import PolicyEntry, PolicyOptions, look_up
from cilium_core.policy.l7 import DnsRule, HttpRule, L7Kind, Redirect
from cilium_core.policy.rules import Direction

from tests.unit.policy.worlds import TCP, UDP, World, ccnp, cnp, knp, outside, pod, reserved

WEB = {"matchLabels": {"app": "web"}}
CLIENT = {"matchLabels": {"app": "client"}}
ANYONE = {"matchLabels": {}}
GET, POST = {"method": "GET"}, {"method": "POST"}


def world(*objects: dict[str, Any], **options: Any) -> World:
    made = World(
        {
            "web": pod("x", {"app": "web"}, ports=[("http", TCP, 80)]),
            "client": pod("x", {"app": "client"}),
            "other": pod("x", {"app": "other"}),
            "host": reserved("host"),
            "192.0.2.1": outside("192.0.2.1"),
        },
        PolicyOptions(**options),
    )
    made.apply(*objects)
    return made


def port(*rules: dict[str, Any], kind: str = "http", number: str = "80", **more: Any):
    written: dict[str, Any] = {"ports": [{"port": number, "protocol": "TCP"}], **more}
    if rules:
        written["rules"] = {kind: list(rules)}
    return written


def dns(*names: str, protocol: str = "UDP") -> dict[str, Any]:
    ports = [{"port": "53", "protocol": protocol}]
    return {"ports": ports, "rules": {"dns": [{"matchName": name} for name in names]}}


def ingress(*items: dict[str, Any], name: str = "p", **more: Any) -> dict[str, Any]:
    return cnp({"endpointSelector": WEB, "ingress": list(items), **more}, name=name)


def egress(*items: dict[str, Any], name: str = "p", **more: Any) -> dict[str, Any]:
    return cnp({"endpointSelector": CLIENT, "egress": list(items), **more}, name=name)


def held(
    made: World, subject: str, peer: str, number: int = 80, protocol: int = TCP
) -> PolicyEntry | None:
    direction = Direction.INGRESS if subject == "web" else Direction.EGRESS
    identity = made.identity(made.parties[peer])
    found = look_up(made.maps[subject], direction, identity, protocol, number)
    return None if found is None or found[1].precedence & 0xFF == 0 else found[1]


def redirect(made: World, subject: str, peer: str, number: int = 80, protocol: int = TCP):
    entry = held(made, subject, peer, number, protocol)
    return None if entry is None else made.engine.redirects.get(entry.redirect)


FROM_CLIENT = {"fromEndpoints": [CLIENT]}


def test_rules_of_one_kind_are_joined_without_repetitions():
    one = ingress({**FROM_CLIENT, "toPorts": [port(GET, POST)]}, name="one")
    other = ingress({**FROM_CLIENT, "toPorts": [port(POST, {"path": "/"})]}, name="other")

    found = redirect(world(one, other), "web", "client")

    assert found is not None
    assert set(found.http) == {HttpRule(method="GET"), HttpRule(method="POST"), HttpRule(path="/")}
    assert not found.allow_all


def test_the_order_in_which_policies_came_does_not_change_a_redirect():
    one = ingress({**FROM_CLIENT, "toPorts": [port(GET)]}, name="one")
    other = ingress({**FROM_CLIENT, "toPorts": [port(POST)]}, name="other")

    found = [redirect(world(*order), "web", "client") for order in ((one, other), (other, one))]

    assert found[0] == found[1]


@pytest.mark.parametrize(
    "free",
    [
        {**FROM_CLIENT},
        {**FROM_CLIENT, "toPorts": [port()]},
        {**FROM_CLIENT, "toPorts": [port(number="0")]},
        {**FROM_CLIENT, "toPorts": [{"ports": [{"port": "http", "protocol": "TCP"}]}]},
        {**FROM_CLIENT, "toPorts": [{"ports": [{"port": "79", "endPort": 90}]}]},
        {"fromEntities": ["all"], "toPorts": [port()]},
        {"fromEntities": ["all"]},
        {**FROM_CLIENT, "toPorts": [port({})]},
        {**FROM_CLIENT, "toPorts": [port({}, GET)]},
    ],
    ids=["peer", "port", "every port", "name", "range", "anyone", "everything", "{}", "{} and GET"],
)
def test_a_rule_that_asks_nothing_of_requests_frees_its_peers_of_http_rules(free):
    made = world(
        ingress({"fromEndpoints": [{}], "toPorts": [port(GET)]}, name="http"),
        ingress(free, name="free"),
    )

    found = redirect(made, "web", "client")

    assert found == Redirect(True, L7Kind.HTTP, allow_all=True)


def test_a_peer_that_a_free_rule_does_not_cover_stays_bound():
    made = world(
        ingress({"fromEndpoints": [{}], "toPorts": [port(GET)]}, name="http"),
        ingress(FROM_CLIENT, name="free"),
    )

    found = redirect(made, "web", "other")

    assert found is not None
    assert found.http == (HttpRule(method="GET"),)


def test_rules_for_different_peers_are_all_asked_where_both_cover_the_peer():
    made = world(
        ingress({"toPorts": [port(GET)]}, name="anyone"),
        ingress({**FROM_CLIENT, "toPorts": [port(POST)]}, name="client"),
    )

    assert {
        peer: [rule.method for rule in redirect(made, "web", peer).http]
        for peer in ("client", "other", "192.0.2.1")
    } == {"client": ["GET", "POST"], "other": ["GET"], "192.0.2.1": ["GET"]}


def test_a_port_in_two_ranges_has_the_rules_of_both():
    def between(first: str, last: int, rule: dict[str, Any]) -> dict[str, Any]:
        ports = [{"port": first, "endPort": last, "protocol": "TCP"}]
        return {"ports": ports, "rules": {"http": [rule]}}

    made = world(
        ingress({"toPorts": [between("80", 95, GET)]}, name="low"),
        ingress({"toPorts": [between("88", 100, POST)]}, name="high"),
    )

    methods = {
        number: [rule.method for rule in redirect(made, "web", "client", number).http]
        for number in (80, 87, 88, 95, 96, 100)
    }

    assert methods == {
        80: ["GET"],
        87: ["GET"],
        88: ["GET", "POST"],
        95: ["GET", "POST"],
        96: ["POST"],
        100: ["POST"],
    }
    assert held(made, "web", "client", 101) is None


def test_a_port_that_anyone_may_use_is_free_inside_a_range_with_rules_for_one_peer():
    ports = [{"port": "79", "endPort": 90, "protocol": "TCP"}]
    http = {"ports": ports, "rules": {"http": [GET]}}
    made = world(
        ingress({**FROM_CLIENT, "toPorts": [http]}, name="range"),
        ingress({"toPorts": [port()]}, name="free"),
    )

    assert [redirect(made, "web", "client", number).allow_all for number in (79, 80, 81)] == [
        False,
        True,
        False,
    ]


def test_13_20_a_rule_that_only_shows_requests_still_turns_default_deny_on():
    made = world(ingress({**FROM_CLIENT, "toPorts": [port({})]}))

    assert redirect(made, "web", "client") == Redirect(True, L7Kind.HTTP, allow_all=True)
    assert held(made, "web", "other") is None


def test_without_default_deny_requests_are_reported_and_none_is_refused():
    item = {**FROM_CLIENT, "toPorts": [port(GET)]}
    made = world(ingress(item, enableDefaultDeny={"ingress": False}))

    assert redirect(made, "web", "client") == Redirect(True, L7Kind.HTTP, allow_all=True)
    assert redirect(made, "web", "other") is None
    assert held(made, "web", "other") is not None


def test_one_policy_with_default_deny_makes_the_others_rules_bind():
    item = {**FROM_CLIENT, "toPorts": [port(GET)]}
    made = world(
        ingress(item, enableDefaultDeny={"ingress": False}, name="open"),
        ingress({"fromEntities": ["health"]}, name="closing"),
    )

    assert redirect(made, "web", "client").http == (HttpRule(method="GET"),)


def test_rules_that_mend_headers_act_where_every_request_is_allowed():
    mend = {"headerMatches": [{"name": "X-Own", "value": "1", "mismatch": "ADD"}]}
    made = world(
        ingress({**FROM_CLIENT, "toPorts": [port({**mend, **GET}, POST)]}, name="mends"),
        ingress(FROM_CLIENT, name="free"),
    )

    found = redirect(made, "web", "client")

    assert found.allow_all
    assert [rule.method for rule in found.http] == ["GET"]


# ---- deny, the own host, precedences ----


def test_a_deny_comes_before_every_proxy():
    deny = {"endpointSelector": WEB, "ingressDeny": [{**FROM_CLIENT, "toPorts": [port()]}]}
    made = world(ingress({"toPorts": [port(GET)]}), ccnp(deny, name="shut"))

    entry = held(made, "web", "client")

    assert (entry.deny, entry.redirect) == (True, 0)
    assert redirect(made, "web", "other") is not None


@pytest.mark.parametrize(
    "item",
    [{"toPorts": [port(GET)]}, {"fromEntities": ["cluster"], "toPorts": [port(GET)]}],
    ids=["for anyone", "for the cluster"],
)
def test_the_own_host_passes_by_the_proxy(item):
    made = world(ingress(item))

    assert held(made, "web", "host").redirect == 0
    assert redirect(made, "web", "client" if "fromEntities" in item else "192.0.2.1") is not None


def test_the_own_host_meets_the_proxy_with_the_option_off():
    made = world(ingress({"toPorts": [port(GET)]}), allow_localhost=False)

    assert redirect(made, "web", "host") is not None


def test_a_proxy_comes_before_a_plain_allow_however_specific():
    made = world(
        ingress({"toPorts": [{"ports": [{"port": "80", "endPort": 95, "protocol": "TCP"}],
                              "rules": {"http": [GET]}}]}, name="wide"),
        ingress({"fromEndpoints": [{"matchLabels": {"app": "other"}}], "toPorts": [port()]},
                name="narrow"),
    )  # fmt: skip

    assert redirect(made, "web", "other").allow_all
    assert redirect(made, "web", "other", 81).http == (HttpRule(method="GET"),)


@pytest.mark.parametrize(
    ("item", "number", "low_byte"),
    [
        ({"toPorts": [port(GET)]}, 80, 154),
        ({"toPorts": [port({"topic": "t"}, kind="kafka", number="9092")]}, 9092, 149),
        ({"toPorts": [port(number="443", serverNames=["a.io"])]}, 443, 139),
        ({"toPorts": [port()]}, 80, 1),
    ],
    ids=["http", "kafka", "tls", "plain"],
)
def test_the_precedence_tells_the_kind_of_proxy(item, number, low_byte):
    entry = held(world(ingress(item)), "web", "client", number)

    assert entry.precedence == 0xFFFFFF00 | low_byte


def test_dns_ranks_last_among_proxies():
    entry = held(world(egress({"toPorts": [dns("a.io")]})), "client", "192.0.2.1", 53, UDP)

    assert entry.precedence == 0xFFFFFF00 | 134


def test_of_two_kinds_for_peers_in_common_the_stronger_one_binds_alone():
    made = world(
        ingress({**FROM_CLIENT, "toPorts": [port({"topic": "t"}, kind="kafka")]}, name="kafka"),
        ingress({"toPorts": [port(GET)]}, name="http"),
    )

    assert redirect(made, "web", "client").http == (HttpRule(method="GET"),)
    assert made.engine.conflicts() == {}


# ---- DNS ----


def test_13_19_a_rule_for_every_port_frees_http_and_leaves_dns_bound():
    free = {"toEntities": ["world"]}
    made = world(egress(free, {**free, "toPorts": [dns("a.io")]}, {**free, "toPorts": [port(GET)]}))

    assert redirect(made, "client", "192.0.2.1").allow_all
    assert redirect(made, "client", "192.0.2.1", 53, UDP).dns == (DnsRule("a.io"),)


@pytest.mark.parametrize(
    ("ports", "freed"),
    [
        ([{"port": "53", "protocol": "UDP"}], True),
        ([{"port": "53", "protocol": "ANY"}], True),
        ([{"port": "53", "endPort": 53, "protocol": "UDP"}], True),
        ([{"port": "53", "protocol": "TCP"}], False),
        ([{"port": "53", "endPort": 54, "protocol": "UDP"}], False),
        ([{"port": "0", "protocol": "UDP"}], False),
        ([{"port": "domain", "protocol": "UDP"}], True),
    ],
    ids=["udp", "any", "range of one", "tcp", "range", "every port", "name"],
)
def test_only_a_rule_for_exactly_the_port_frees_dns(ports, freed):
    to = {"toEntities": ["world"]}
    made = world(
        egress({**to, "toPorts": [dns("a.io")]}, name="dns"),
        egress({"toEntities": ["all"], "toPorts": [{"ports": ports}]}, name="free"),
    )
    made.put("dns", pod("x", {"app": "dns"}, ports=[("domain", UDP, 53)]))
    made.flush()

    found = redirect(made, "client", "192.0.2.1", 53, UDP)

    assert found.allow_all is freed


def test_a_network_policy_frees_dns_by_its_port():
    made = world(
        egress({"toEntities": ["world"], "toPorts": [dns("a.io")]}),
        knp("free", "x", podSelector=CLIENT, egress=[{"ports": [{"port": 53, "protocol": "UDP"}]}]),
    )

    assert redirect(made, "client", "192.0.2.1", 53, UDP).allow_all


def test_names_of_all_dns_rules_are_allowed():
    made = world(
        egress({"toEntities": ["world"], "toPorts": [dns("b.io")]}, name="one"),
        egress({"toPorts": [dns("a.io", protocol="ANY")]}, name="other"),
    )

    assert redirect(made, "client", "192.0.2.1", 53, UDP).dns == (DnsRule("a.io"), DnsRule("b.io"))
    assert redirect(made, "client", "192.0.2.1", 53).dns == (DnsRule("a.io"),)


# ---- TLS ----

CERT = {"secret": {"name": "cert"}}
HTTPS = {"number": "443", "terminatingTLS": CERT}


def test_server_names_are_joined():
    made = world(
        ingress({"toPorts": [port(number="443", serverNames=["b.io"])]}, name="one"),
        ingress({"toPorts": [port(number="443", serverNames=["a.io", "b.io"])]}, name="other"),
    )

    found = redirect(made, "web", "client", 443)

    assert (found.kind, found.server_names) == (L7Kind.TLS, {"a.io", "b.io"})
    assert not found.allow_all


def test_a_plain_allow_frees_of_server_names():
    made = world(
        ingress({"toPorts": [port(number="443", serverNames=["b.io"])]}, name="names"),
        ingress(FROM_CLIENT, name="free"),
    )

    found = redirect(made, "web", "client", 443)

    assert (found.server_names, found.allow_all) == (frozenset(), True)


def test_tls_alone_becomes_http_where_rules_ask_for_it():
    made = world(
        ingress({**FROM_CLIENT, "toPorts": [port(**HTTPS, serverNames=["a.io"])]}, name="tls"),
        ingress({**FROM_CLIENT, "toPorts": [port(GET, **HTTPS, serverNames=["a.io"])]}, name="get"),
    )

    found = redirect(made, "web", "client", 443)

    assert (found.kind, found.allow_all, found.server_names) == (L7Kind.HTTP, True, {"a.io"})
    assert found.terminating.secret.name == "cert"


def test_requests_of_one_server_name_are_not_allowed_under_another():
    made = world(
        ingress({**FROM_CLIENT, "toPorts": [port(GET, **HTTPS, serverNames=["a.io"])]}, name="one"),
        ingress({"toPorts": [port(POST, **HTTPS, serverNames=["b.io"])]}, name="other"),
    )

    found = redirect(made, "web", "client", 443)

    assert found.server_names == {"a.io", "b.io"}
    assert [(rule.method, rule.server_names) for rule in found.http] == [
        ("GET", ("a.io",)),
        ("POST", ("b.io",)),
    ]


def test_server_names_that_nobody_can_read_beside_http_open_nothing():
    made = world(
        ingress({**FROM_CLIENT, "toPorts": [port(GET)]}, name="http"),
        ingress({"toPorts": [port(serverNames=["a.io"])]}, name="names"),
    )

    found = redirect(made, "web", "client")

    assert (found.kind, found.http, found.server_names) == (
        L7Kind.HTTP,
        (HttpRule(method="GET"),),
        frozenset(),
    )


# ---- numbers ----


def test_equal_redirects_have_one_number_wherever_they_are():
    item = {"toPorts": [port(GET), port(GET, number="81")]}
    made = world(ingress(item, name="one"), cnp({"endpointSelector": CLIENT, "ingress": [item]}))

    numbers = {entry.redirect for entries in made.maps.values() for entry in entries.values()} - {0}

    assert len(numbers) == 1


def test_redirects_out_of_use_are_forgotten_at_the_second_sweep():
    obj = ingress({"toPorts": [port(GET)]})
    made = world(obj)
    (number,) = made.engine.redirects_in_use()
    made.delete(obj)

    known = []
    for _ in range(3):
        known.append(made.engine.redirects.get(number) is not None)
        made.engine.sweep_cookies()

    assert known == [True, True, False]


def test_a_number_does_not_depend_on_what_was_made_before():
    first, second = world(ingress({"toPorts": [port(POST)]})), world()
    first.apply(ingress({"toPorts": [port(GET)]}))
    second.apply(ingress({"toPorts": [port(GET)]}))

    assert first.engine.redirects_in_use() == second.engine.redirects_in_use()


def test_an_update_tells_every_redirect_that_the_endpoint_uses():
    made = world()
    made.engine.upsert_policy(ingress({"toPorts": [port(GET)]}, name="one"))
    (first,) = made.engine.flush()
    made.engine.upsert_policy(ingress({"toPorts": [port(POST, number="81")]}, name="other"))
    (second,) = made.engine.flush()
    made.engine.delete_policy("CiliumNetworkPolicy", "x", "one")
    (third,) = made.engine.flush()

    assert [len(update.redirects) for update in (first, second, third)] == [1, 2, 1]
    assert first.redirects < second.redirects
    assert third.redirects == made.engine.redirects_in_use()


def test_a_changed_rule_changes_the_number():
    made = world(ingress({"toPorts": [port(GET)]}))
    before = held(made, "web", "client").redirect
    made.apply(ingress({"toPorts": [port(POST)]}))

    assert held(made, "web", "client").redirect not in (0, before)
