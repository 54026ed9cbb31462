"""What policies say about HTTP, DNS, Kafka and TLS, and what of it is refused."""

from __future__ import annotations

import pytest
from cilium_core.policy import PolicyError, PolicyOptions, parse
from cilium_core.policy.l7 import (
    DnsRule,
    HeaderMatch,
    HttpRule,
    KafkaRule,
    L7Kind,
    L7Match,
    Mismatch,
    SecretRef,
    TlsContext,
)
from cilium_core.policy.options import HeaderRegex
from cilium_core.policy.ports import PortRange, Protocol

from tests.unit.policy.worlds import ccnp, cnp

HTTP = {"port": "80", "protocol": "TCP"}
DNS = {"port": "53", "protocol": "ANY"}


def item(*ports, **fields):
    return {"toPorts": [{"ports": list(ports), **fields}]}


def ingress(*ports, **fields):
    return cnp(endpointSelector={}, ingress=[item(*ports, **fields)])


def egress(*ports, **fields):
    return cnp(endpointSelector={}, egress=[item(*ports, **fields)])


def rule(obj, **options):
    (found,) = parse(obj, PolicyOptions(**options)).rules
    return found


def headers(*texts, **options):
    obj = ingress(HTTP, rules={"http": [{"headers": list(texts)}]})
    return rule(obj, **options).l7.http[0].headers


def problems(obj, **options):
    with pytest.raises(PolicyError) as caught:
        parse(obj, PolicyOptions(**options))
    return {
        problem.path.removeprefix("spec."): problem.message for problem in caught.value.problems
    }


def test_http_rules_are_a_union_of_what_each_demands():
    found = rule(
        ingress(
            HTTP,
            rules={
                "http": [
                    {"method": "GET", "path": "/public/.*"},
                    {"host": "api[.]local", "headers": ["X-Token: 42", "X-Seen"]},
                ]
            },
        )
    )

    assert found.l7 == L7Match(
        L7Kind.HTTP,
        http=(
            HttpRule("/public/.*", "GET"),
            HttpRule(
                host="api[.]local",
                headers=(HeaderMatch("x-token", "42"), HeaderMatch("x-seen")),
            ),
        ),
    )
    assert found.ports == (PortRange(Protocol.TCP, 80, 80),)


@pytest.mark.parametrize("rules", [None, {"http": []}, {"dns": []}, {"kafka": []}])
def test_no_rules_are_no_restriction(rules):
    assert rule(egress(HTTP, rules=rules)).l7 is None


@pytest.mark.parametrize(
    ("rules", "kind"), [({"http": [{}]}, L7Kind.HTTP), ({"kafka": [{}]}, L7Kind.KAFKA)]
)
def test_an_empty_rule_shows_every_request_and_refuses_none(rules, kind):
    assert rule(ingress(HTTP, rules=rules)).l7 == L7Match(kind)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("X-A: b", HeaderMatch("x-a", "b")),
        ("X-A b c", HeaderMatch("x-a", "b c")),
        ("X-A:: b", HeaderMatch("x-a", "b")),
        ("X-A:  b", HeaderMatch("x-a", " b")),
        ("X-A: ", HeaderMatch("x-a", "")),
        ("X-A", HeaderMatch("x-a")),
        ("X-A:b", HeaderMatch("x-a:b")),
    ],
)
def test_a_header_is_split_at_its_first_blank(text, match):
    assert headers(text) == (match,)


def test_13_11_a_header_without_a_blank_is_warned_about():
    (warning,) = parse(ingress(HTTP, rules={"http": [{"headers": ["X-A:b"]}]})).warnings

    assert warning.startswith(
        "spec.ingress[0].toPorts[0].rules.http[0].headers[0]: matches nothing"
    )


PATTERNS = ["Bearer [a-z0-9]+", "Bearer (a|b)*", ".+", "[a-f]{2}", r"\d", r"a\w", "^x$"]
PLAIN = ["text/html", "*/*", "curl/8.1 (linux)", "a.b.c", "1+1", "a]", "^x", "[a", "x(y)", ")+"]


@pytest.mark.parametrize("value", PATTERNS)
def test_a_value_that_is_unmistakably_an_expression_is_one(value):
    assert headers(f"Authorization: {value}") == (
        HeaderMatch("authorization", value, pattern=True),
    )
    policy = parse(ingress(HTTP, rules={"http": [{"headers": [f"A: {value}"]}]}))
    assert "read as a regular expression" in policy.warnings[0]


@pytest.mark.parametrize("value", PLAIN)
def test_a_plain_value_stays_literal(value):
    assert headers(f"A: {value}") == (HeaderMatch("a", value),)


def test_an_option_says_when_values_are_expressions():
    assert not headers("A: [a]+", header_regex=HeaderRegex.NEVER)[0].pattern
    assert headers("A: x", header_regex=HeaderRegex.ALWAYS)[0].pattern
    assert not headers("A: [a", header_regex=HeaderRegex.ALWAYS)[0].pattern


def test_header_matches_may_read_secrets_and_mend_requests():
    match = {
        "name": "X-Token",
        "value": "x",
        "secret": {"name": "token", "namespace": "vault"},
        "mismatch": "REPLACE",
    }
    found = rule(ingress(HTTP, rules={"http": [{"headerMatches": [match, {"name": "B"}]}]})).l7

    assert found.http[0].headers == (
        HeaderMatch("x-token", "x", secret=SecretRef("vault", "token"), mismatch=Mismatch.REPLACE),
        HeaderMatch("b"),
    )


@pytest.mark.parametrize(("make", "namespace"), [(cnp, "x"), (ccnp, "default")])
def test_a_secret_lies_beside_the_policy_unless_it_says_where(make, namespace):
    obj = make(
        endpointSelector={},
        egress=[item(HTTP, originatingTLS={"secret": {"name": "s"}, "trustedCA": "ca.pem"})],
    )

    assert rule(obj).l7 == L7Match(
        L7Kind.TLS,
        originating=TlsContext(SecretRef(namespace, "s"), trusted_ca="ca.pem"),
    )


def test_dns_rules_bind_tcp_and_udp():
    names = [
        {"matchName": "a.io"},
        {"matchPattern": "*.A.io"},
        {"matchName": "b", "matchPattern": "c*"},
    ]
    found = rule(egress(DNS, rules={"dns": names}))

    assert found.l7 == L7Match(
        L7Kind.DNS,
        dns=(DnsRule("a.io"), DnsRule(pattern="*.A.io"), DnsRule("b"), DnsRule(pattern="c*")),
    )
    assert found.ports == (PortRange(Protocol.TCP, 53, 53), PortRange(Protocol.UDP, 53, 53))


KAFKA = {
    "producer": ({"role": "produce"}, KafkaRule(frozenset((0, 3, 18)))),
    "consumer": (
        {"role": "Consume", "topic": "t-1"},
        KafkaRule(frozenset((1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 18)), topic="t-1"),
    ),
    "one request": (
        {"apiKey": "ListGroups", "apiVersion": "0", "clientID": "me"},
        KafkaRule(frozenset((16,)), 0, "me"),
    ),
    "the last of the names": ({"apiKey": "alterconfigs"}, KafkaRule(frozenset((33,)))),
    "topic only": ({"topic": "t"}, KafkaRule(topic="t")),
}


@pytest.mark.parametrize(("written", "meant"), KAFKA.values(), ids=KAFKA.keys())
def test_a_kafka_rule_names_requests_versions_clients_and_topics(written, meant):
    assert rule(ingress(HTTP, rules={"kafka": [written]})).l7.kafka == (meant,)


def test_server_names_need_tls_over_tcp_and_nothing_else():
    found = rule(egress({"port": "443"}, serverNames=["A.io", "*.b.io"]))

    assert found.l7 == L7Match(L7Kind.TLS, server_names=frozenset(("a.io", "*.b.io")))
    assert found.ports == (PortRange(Protocol.TCP, 443, 443),)


def test_rules_inside_tls_keep_the_names_and_the_contexts():
    secret = {"secret": {"name": "s"}}
    found = rule(
        egress(
            {"port": "443", "protocol": "TCP"},
            rules={"http": [{"method": "GET"}]},
            serverNames=["a.io"],
            terminatingTLS=secret,
            originatingTLS=secret,
        )
    )

    context = TlsContext(SecretRef("x", "s"))
    assert found.l7 == L7Match(
        L7Kind.HTTP,
        http=(HttpRule(method="GET"),),
        server_names=frozenset(("a.io",)),
        terminating=context,
        originating=context,
    )


AT = "ingress[0].toPorts[0]"
OUT = "egress[0].toPorts[0]"
TCP443 = {"port": "443", "protocol": "TCP"}
REFUSED = {
    "dns on ingress": (ingress(DNS, rules={"dns": [{"matchName": "a"}]}), f"{AT}.rules.dns"),
    "dns without a port": (egress(rules={"dns": [{"matchName": "a"}]}), f"{OUT}.rules.dns"),
    "dns on a range": (
        egress({"port": "53", "endPort": 54}, rules={"dns": [{"matchName": "a"}]}),
        f"{OUT}.ports[0].endPort",
    ),
    "dns over SCTP": (
        egress({"port": "53", "protocol": "SCTP"}, rules={"dns": [{"matchName": "a"}]}),
        f"{OUT}.ports[0].protocol",
    ),
    "dns on every port": (
        egress({"port": "0"}, rules={"dns": [{"matchName": "a"}]}),
        f"{OUT}.ports[0].port",
    ),
    "dns without a name": (egress(DNS, rules={"dns": [{}]}), f"{OUT}.rules.dns[0]"),
    "bad dns name": (
        egress(DNS, rules={"dns": [{"matchName": "a b"}]}),
        f"{OUT}.rules.dns[0].matchName",
    ),
    "star in a name": (
        egress(DNS, rules={"dns": [{"matchName": "*.a"}]}),
        f"{OUT}.rules.dns[0].matchName",
    ),
    "long pattern": (
        egress(DNS, rules={"dns": [{"matchPattern": "a" * 256}]}),
        f"{OUT}.rules.dns[0].matchPattern",
    ),
    "http without a protocol": (
        ingress({"port": "80"}, rules={"http": [{}]}),
        f"{AT}.ports[0].protocol",
    ),
    "http over UDP": (
        ingress({"port": "80", "protocol": "UDP"}, rules={"http": [{}]}),
        f"{AT}.ports[0].protocol",
    ),
    "http on every port": (
        ingress({"port": "0", "protocol": "TCP"}, rules={"http": [{}]}),
        f"{AT}.ports[0].port",
    ),
    "two kinds": (ingress(HTTP, rules={"http": [{}], "dns": []}), f"{AT}.rules"),
    "no kind": (ingress(HTTP, rules={}), f"{AT}.rules"),
    "l7 without a parser": (ingress(HTTP, rules={"l7": [{"a": "b"}]}), f"{AT}.rules"),
    "l7 with an empty key": (
        ingress(HTTP, rules={"l7proto": "x", "l7": [{"": "b"}]}),
        f"{AT}.rules",
    ),
    "path that is no expression": (
        ingress(HTTP, rules={"http": [{"path": "/(a"}]}),
        f"{AT}.rules.http[0].path",
    ),
    "look-ahead": (
        ingress(HTTP, rules={"http": [{"method": "(?=G)GET"}]}),
        f"{AT}.rules.http[0].method",
    ),
    "host that no proxy can match": (
        ingress(HTTP, rules={"http": [{"host": "[a"}]}),
        f"{AT}.rules.http[0].host",
    ),
    "header without a name": (
        ingress(HTTP, rules={"http": [{"headers": [": a"]}]}),
        f"{AT}.rules.http[0].headers[0]",
    ),
    "header match without a name": (
        ingress(HTTP, rules={"http": [{"headerMatches": [{"value": "a"}]}]}),
        f"{AT}.rules.http[0].headerMatches[0].name",
    ),
    "unknown mismatch": (
        ingress(HTTP, rules={"http": [{"headerMatches": [{"name": "a", "mismatch": "DROP"}]}]}),
        f"{AT}.rules.http[0].headerMatches[0].mismatch",
    ),
    "secret without a name": (
        ingress(HTTP, rules={"http": [{"headerMatches": [{"name": "a", "secret": {}}]}]}),
        f"{AT}.rules.http[0].headerMatches[0].secret.name",
    ),
    "role and key": (
        ingress(HTTP, rules={"kafka": [{"role": "produce", "apiKey": "fetch"}]}),
        f"{AT}.rules.kafka[0]",
    ),
    "unknown role": (
        ingress(HTTP, rules={"kafka": [{"role": "own"}]}),
        f"{AT}.rules.kafka[0].role",
    ),
    "unknown key": (
        ingress(HTTP, rules={"kafka": [{"apiKey": "own"}]}),
        f"{AT}.rules.kafka[0].apiKey",
    ),
    "version out of range": (
        ingress(HTTP, rules={"kafka": [{"apiVersion": "32768"}]}),
        f"{AT}.rules.kafka[0].apiVersion",
    ),
    "topic with a blank": (
        ingress(HTTP, rules={"kafka": [{"topic": "a b"}]}),
        f"{AT}.rules.kafka[0].topic",
    ),
    "server names beside rules without the keys": (
        ingress(TCP443, rules={"http": [{}]}, serverNames=["a"]),
        AT,
    ),
    "empty server name": (ingress(TCP443, serverNames=[""]), f"{AT}.serverNames[0]"),
    "no server name": (ingress(TCP443, serverNames=[]), f"{AT}.serverNames"),
    "server names over UDP": (
        ingress({"port": "443", "protocol": "UDP"}, serverNames=["a"]),
        f"{AT}.ports[0].protocol",
    ),
    "TLS without a secret": (ingress(TCP443, terminatingTLS={}), f"{AT}.terminatingTLS.secret"),
    "listener on ingress": (
        ingress(HTTP, listener={"envoyConfig": {"name": "a"}, "name": "b"}),
        f"{AT}.listener",
    ),
    "listener beside rules": (
        egress(HTTP, listener={"envoyConfig": {"name": "a"}, "name": "b"}, rules={"http": [{}]}),
        OUT,
    ),
    "listener priority": (
        egress(HTTP, listener={"envoyConfig": {"name": "a"}, "name": "b", "priority": 101}),
        f"{OUT}.listener.priority",
    ),
    "both ways to name": (
        cnp(endpointSelector={}, egress=[{"toFQDNs": [{"matchName": "a", "matchPattern": "b"}]}]),
        "egress[0].toFQDNs[0]",
    ),
    "no way to name": (
        cnp(endpointSelector={}, egress=[{"toFQDNs": [{}]}]),
        "egress[0].toFQDNs[0]",
    ),
    "names on ingress": (
        cnp(endpointSelector={}, ingress=[{"fromFQDNs": [{"matchName": "a"}]}]),
        "ingress[0].fromFQDNs",
    ),
    "names in a deny rule": (
        cnp(endpointSelector={}, egressDeny=[{"toFQDNs": [{"matchName": "a"}]}]),
        "egressDeny[0].toFQDNs",
    ),
    "authentication in a deny rule": (
        cnp(endpointSelector={}, ingressDeny=[{"authentication": {"mode": "required"}}]),
        "ingressDeny[0].authentication",
    ),
    "HTTP from the host's peers": (
        ccnp({"nodeSelector": {}, "ingress": [item(HTTP, rules={"http": [{}]})]}),
        AT,
    ),
    "HTTP of the host": (
        ccnp({"nodeSelector": {}, "egress": [item(HTTP, rules={"http": [{}]})]}),
        OUT,
    ),
}


@pytest.mark.parametrize(("obj", "path"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused_with_the_path_of_the_field(obj, path):
    assert path in problems(obj)


def test_dns_rules_of_the_host_are_accepted():
    obj = ccnp({"nodeSelector": {}, "egress": [item(DNS, rules={"dns": [{"matchName": "a"}]})]})

    assert rule(obj, host_firewall=True).l7.kind is L7Kind.DNS


def test_without_the_proxies_their_rules_are_refused():
    found = problems(ingress(HTTP, rules={"http": [{}]}), l7_proxy=False)

    assert found == {AT: "needs the option enable-l7-proxy"}


def test_authentication_that_asks_for_nothing_is_accepted():
    policy = parse(cnp(endpointSelector={}, ingress=[{"authentication": {"mode": "disabled"}}]))

    assert len(policy.rules) == 1
