"""Expressions become cheaper comparisons only where that changes nothing."""

from __future__ import annotations

import pytest
import re2
from cilium_agent.proxies.envoy.matching import (
    Comparison,
    Form,
    is_header_name,
    of_value,
    one_of,
    server_name,
    simplify,
)
from cilium_core.policy.l7 import HeaderMatch
from hypothesis import given
from hypothesis import strategies as st


def accepts(comparison: Comparison, value: str) -> bool:
    """What Envoy's matcher of a comparison says."""
    form, text = comparison
    return {
        Form.EXACT: lambda: value == text,
        Form.PREFIX: lambda: value.startswith(text),
        Form.SUFFIX: lambda: value.endswith(text),
        Form.CONTAINS: lambda: text in value,
        Form.ANY: lambda: True,
        Form.REGEX: lambda: re2.fullmatch(text, value) is not None,
    }[form]()


@pytest.mark.parametrize(
    ("pattern", "form", "text"),
    [
        ("GET", Form.EXACT, "GET"),
        ("^GET$", Form.EXACT, "GET"),
        ("/api/.*", Form.PREFIX, "/api/"),
        ("/v1[.]0", Form.REGEX, "/v1[.]0"),
        (r"/v1\.0", Form.EXACT, "/v1.0"),
        (r".*\.example\.com", Form.SUFFIX, ".example.com"),
        (".*token=.*", Form.CONTAINS, "token="),
        (".*", Form.ANY, ""),
        ("/a|/b", Form.REGEX, "/a|/b"),
        ("/a.*|/b.*", Form.REGEX, "/a.*|/b.*"),
        (r"/a\.*", Form.REGEX, r"/a\.*"),
        (r"price\$", Form.EXACT, "price$"),
        ("(?i)/a", Form.REGEX, "(?i)/a"),
        (r"\d", Form.REGEX, r"\d"),
    ],
)
def test_a_pattern_becomes_the_cheapest_comparison(pattern: str, form: Form, text: str) -> None:
    assert simplify(pattern) == Comparison(form, text)


_PIECES = st.sampled_from([*"a/b.\\$^|()*+?", ".*", "\\."])
_VALUES = st.text(alphabet="ab/.$^\\|*", max_size=8)


@given(st.lists(_PIECES, min_size=1, max_size=6).map("".join), st.lists(_VALUES, max_size=5))
def test_a_comparison_accepts_what_the_pattern_matches_as_a_whole(
    pattern: str, values: list[str]
) -> None:
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error:
        return
    for value in [*values, pattern, pattern.replace("\\", ""), pattern.replace(".*", "ab")]:
        expected = compiled.fullmatch(value) is not None
        assert accepts(simplify(pattern), value) == expected


def test_a_literal_header_value_is_never_an_expression() -> None:
    assert of_value(HeaderMatch("x"), "a.*") == Comparison(Form.EXACT, "a.*")


def test_a_header_pattern_accepts_itself_and_what_it_matches() -> None:
    comparison = of_value(HeaderMatch("x", pattern=True), "Bearer (a|b)")
    assert accepts(comparison, "Bearer (a|b)")
    assert accepts(comparison, "Bearer a")
    assert not accepts(comparison, "Bearer c")


def test_a_header_pattern_that_is_no_expression_is_compared_literally() -> None:
    assert of_value(HeaderMatch("x", pattern=True), "(a") == Comparison(Form.EXACT, "(a")


@pytest.mark.parametrize(
    ("listed", "given_name", "accepted"),
    [
        ("Api.Example.com", "api.example.com", True),
        ("api.example.com.", "api.example.com", True),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("**.example.com", "a.b.example.com", True),
        ("**.example.com", "a.example.com", True),
        ("**.example.com", "example.com", False),
        ("**.example.com", "aexample.com", False),
        ("*.example.com", "a.exampleXcom", False),
    ],
)
def test_stars_in_server_names_stand_for_labels(
    listed: str, given_name: str, accepted: bool
) -> None:
    assert accepts(server_name(listed), given_name) is accepted


def test_one_of_several_names_is_enough() -> None:
    comparison = one_of([server_name("a.b"), server_name("*.c")])
    assert accepts(comparison, "a.b")
    assert accepts(comparison, "x.c")
    assert not accepts(comparison, "aXb")


@pytest.mark.parametrize("name", ["", "x:y", "a b", "ä", "x\n"])
def test_a_name_with_other_characters_is_no_header(name: str) -> None:
    assert not is_header_name(name)
