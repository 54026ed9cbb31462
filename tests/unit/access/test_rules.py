"""Rules of access: who gets which namespaces, and what is wrong with a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.access import Client, RulesError, parse_rules
from cilium_core.access.rules import read_rules
from cilium_core.errors import ForbiddenError

if TYPE_CHECKING:
    from pathlib import Path

RULES = {
    "clients": [
        {"names": ["a.example.org"], "namespaces": ["a"]},
        {"groups": ["team"], "namespaces": ["b", "c"]},
        {"names": ["*.relay.io"], "namespaces": ["*"]},
    ]
}


def namespaces(client: Client, **more: Any) -> set[str] | None:
    limits = parse_rules({**RULES, **more}).limits(client)
    return None if limits is None else set(limits.namespaces)


def test_a_client_gets_the_namespaces_of_all_rules_that_name_it() -> None:
    assert namespaces(Client(("a.example.org",))) == {"a"}
    assert namespaces(Client(("x",), ("team",))) == {"b", "c"}
    assert namespaces(Client(("x", "a.example.org"), ("team",))) == {"a", "b", "c"}
    assert namespaces(Client(("*.relay.io",), ("team",))) is None


def test_a_wildcard_in_a_name_is_no_pattern() -> None:
    assert namespaces(Client(("x.relay.io",))) == set()


def test_others_get_nothing_unless_it_is_said() -> None:
    assert namespaces(Client(("x",))) == set()
    assert namespaces(Client(("x",)), others=["public"]) == {"public"}
    assert namespaces(Client(("a.example.org",)), others=["public"]) == {"a"}


def test_a_certificate_says_names_and_groups() -> None:
    certificate = {
        "subject": ((("organizationName", "team"),), (("commonName", "a"),)),
        "subjectAltName": (("DNS", "a"), ("URI", "spiffe://x/a"), ("DNS", "b")),
    }
    assert Client.of_certificate(certificate) == Client(("a", "spiffe://x/a", "b"), ("team",))
    assert str(Client.of_certificate({})) == "a client without certificate"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "must have the keys clients, others"),
        ({"client": []}, "unknown key 'client'"),
        ({"clients": {}}, "clients: must be a list"),
        ({"clients": [{"namespaces": ["a"]}]}, r"clients\[0\]: names or groups must say"),
        ({"clients": [{"names": ["x"]}]}, "namespaces are missing"),
        ({"clients": [{"names": "x", "namespaces": []}]}, "names must be a list"),
        ({"clients": [{"names": ["x"], "namespaces": ["a*"]}]}, "'a\\*' is no name of a namespace"),
        ({"others": ["a,b"]}, "'a,b' is no name"),
        (
            {"clients": [{"names": ["x"], "namespaces": [f"n{i}" for i in range(257)]}]},
            "257 names, and 256 is the most",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(content: object, problem: str) -> None:
    with pytest.raises(RulesError, match=problem):
        parse_rules(content)


def test_more_namespaces_than_filters_can_carry_are_refused_with_the_remedy() -> None:
    rules = parse_rules(
        {"clients": [{"names": ["x"], "namespaces": [f"{n}{i}" for i in range(200)]} for n in "ab"]}
    )
    with pytest.raises(ForbiddenError, match=r'400 namespaces of several rules.*give "\*"'):
        rules.limits(Client(("x",)))


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match=r"rules\.yaml cannot be read"):
        read_rules(tmp_path / "rules.yaml")
    (tmp_path / "rules.yaml").write_text("a: [")
    with pytest.raises(RulesError, match=r"rules\.yaml are not YAML"):
        read_rules(tmp_path / "rules.yaml")
