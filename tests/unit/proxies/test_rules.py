"""HTTP rules as conditions; what can never match is said to be so."""

from __future__ import annotations

import base64

import pytest
from cilium_agent.proxies.envoy.matching import Comparison, Form
from cilium_agent.proxies.envoy.rules import SERVER_NAME, Mending, read
from cilium_agent.proxies.secrets import Secrets
from cilium_core.policy.l7 import HeaderMatch, HttpRule, Mismatch, SecretRef

REF = SecretRef("default", "token")


def secrets(**items: str) -> Secrets:
    made = Secrets()
    if items:
        data = {name: base64.b64encode(text.encode()).decode() for name, text in items.items()}
        made.upsert({"metadata": {"namespace": "default", "name": "token"}, "data": data})
    return made


def test_the_fields_of_a_rule_are_all_compared() -> None:
    rule = HttpRule(path="/a.*", method="GET", host="h", headers=(HeaderMatch("x", "1"),))
    (condition,) = read([rule], secrets()).conditions
    assert condition.comparisons == (
        (":method", Comparison(Form.EXACT, "GET")),
        (":path", Comparison(Form.PREFIX, "/a")),
        (":authority", Comparison(Form.EXACT, "h")),
        ("x", Comparison(Form.EXACT, "1")),
    )


def test_equal_rules_are_compared_once() -> None:
    assert len(read([HttpRule(path="/a"), HttpRule(path="/a")], secrets()).conditions) == 1


def test_a_header_without_value_must_only_be_there() -> None:
    (condition,) = read([HttpRule(headers=(HeaderMatch("x"),))], secrets()).conditions
    assert condition.comparisons == (("x", Comparison(Form.ANY, "")),)


def test_the_value_comes_from_a_secret_with_one_item() -> None:
    match = HeaderMatch("x", "other", secret=REF)
    (condition,) = read([HttpRule(headers=(match,))], secrets(only="v\n")).conditions
    assert condition.comparisons == (("x", Comparison(Form.EXACT, "v")),)


def test_without_the_secret_the_value_counts() -> None:
    match = HeaderMatch("x", "other", secret=REF)
    (condition,) = read([HttpRule(headers=(match,))], secrets()).conditions
    assert condition.comparisons == (("x", Comparison(Form.EXACT, "other")),)


@pytest.mark.parametrize("items", [{}, {"a": "1", "b": "2"}])
def test_with_neither_secret_nor_value_a_rule_never_matches(items: dict[str, str]) -> None:
    reading = read([HttpRule(headers=(HeaderMatch("x", secret=REF),))], secrets(**items))
    assert reading.conditions == ()
    assert "secret default/token" in reading.problems[0]


@pytest.mark.parametrize(
    "rule", [HttpRule(path="("), HttpRule(host="(?=a)"), HttpRule(headers=(HeaderMatch("a: b"),))]
)
def test_what_cannot_be_read_never_matches(rule: HttpRule) -> None:
    reading = read([rule, HttpRule(path="/ok")], secrets())
    assert len(reading.conditions) == 1
    assert len(reading.problems) == 1


def test_a_header_with_a_mismatch_action_does_not_decide() -> None:
    match = HeaderMatch("x", "1", mismatch=Mismatch.REPLACE)
    (condition,) = read([HttpRule(headers=(match,))], secrets()).conditions
    assert condition.comparisons == ()
    exact = Comparison(Form.EXACT, "1")
    assert condition.mendings == (Mending("x", "1", exact, Mismatch.REPLACE),)


def test_server_names_of_a_rule_are_compared_like_a_header() -> None:
    (condition,) = read([HttpRule(server_names=("a.b",))], secrets()).conditions
    assert condition.comparisons == ((SERVER_NAME, Comparison(Form.EXACT, "a.b")),)
