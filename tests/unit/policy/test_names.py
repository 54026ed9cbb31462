"""DNS names and patterns mean what they are documented to mean."""

from __future__ import annotations

import time

import pytest
from cilium_core.labels import Label, LabelSet
from cilium_core.policy import PolicyError, parse
from cilium_core.policy.fqdn import compile_name, names_match, normal_name, selectors_of
from cilium_core.policy.selectors import FqdnSelector
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.worlds import cnp

MATCHES = [
    ("*", "a.b.c.", True),
    ("*", ".", True),
    ("**", "cilium.io", True),
    ("*.", "cilium.io", True),
    ("***.", ".", True),
    ("*.cilium.io", "www.cilium.io", True),
    ("*.cilium.io", "cilium.io", False),
    ("*.cilium.io", "a.b.cilium.io", False),
    ("**.cilium.io", "www.cilium.io", True),
    ("**.cilium.io", "a.b.c.cilium.io", True),
    ("**.cilium.io", "cilium.io", False),
    ("***.cilium.io", "a.b.cilium.io", True),
    ("*cilium.io", "cilium.io", True),
    ("*cilium.io", "xcilium.io", True),
    ("*cilium.io", "www.cilium.io", False),
    ("sub*.x.io", "sub.x.io", True),
    ("sub*.x.io", "sub-9_a.x.io", True),
    ("sub*.x.io", "sub.a.x.io", False),
    ("a*b.io", "ab.io", True),
    ("a*b.io", "a.b.io", False),
    ("a**b.io", "axxb.io", True),
    ("WWW.*.io", "www.CILIUM.io.", True),
    ("a.b", "a.b.", True),
    ("a.b", "axb", False),
    ("a.b", "a.b.c", False),
    ("*.io", "a/b.io", False),
    ("**.io", "a/b.io", False),
]


@pytest.mark.parametrize(("pattern", "name", "expected"), MATCHES)
def test_a_pattern_means_these_names(pattern, name, expected):
    assert names_match(pattern, name) is expected
    assert names_match(f"{pattern}." if not pattern.endswith(".") else pattern, name) is expected


def test_a_name_is_compared_without_case_and_with_its_final_dot():
    name = compile_name(name="My-Service.Example.COM")

    assert name.exact == "my-service.example.com."
    assert name.matches("my-service.example.com")
    assert name.matches("MY-SERVICE.EXAMPLE.COM.")
    assert not name.matches("example.com")


def test_only_ascii_letters_have_a_case():
    kelvin = "\N{KELVIN SIGN}"

    assert normal_name(f"{kelvin}.io") == f"{kelvin}.io."
    assert not compile_name(name="k.io").matches(f"{kelvin}.io")
    assert not names_match("k*.io", f"{kelvin}.io")


def test_many_stars_take_no_longer_than_few():
    started = time.monotonic()

    assert not names_match("*a" * 60 + "b.io", "a" * 230 + ".io")

    assert time.monotonic() - started < 1


labels = st.text(alphabet="ab-_1", min_size=1, max_size=4)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
pieces = st.lists(st.sampled_from(["a", "b", "*", "1"]), min_size=1, max_size=4).map("".join)
patterns = st.lists(pieces, min_size=1, max_size=4).map(".".join)


def by_hand(pattern: str, name: str) -> bool:
    """The documented meaning, label by label, without any expression."""
    if set(pattern) <= {"*"}:
        return True
    wanted, found = pattern.split("."), name.split(".")
    if len(wanted[0]) > 1 and set(wanted[0]) == {"*"} and len(wanted) > 1:
        rest = len(wanted) - 1
        return len(found) > rest and all(map(glob, wanted[1:], found[-rest:]))
    return len(wanted) == len(found) and all(map(glob, wanted, found))


def glob(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return glob(pattern[1:], text) or (bool(text) and glob(pattern, text[1:]))
    return bool(text) and text[0] == pattern[0] and glob(pattern[1:], text[1:])


@given(patterns, names)
def test_patterns_agree_with_a_reading_by_hand(pattern, name):
    assert names_match(pattern, name) == by_hand(pattern, name)


def test_a_selector_selects_what_carries_its_text_as_written():
    selector = FqdnSelector(name="API.github.com")

    assert selector.label == Label("fqdn", "API.github.com")
    assert selector.matches(LabelSet.parse(["fqdn:API.github.com", "reserved:world-ipv4"]))
    assert not selector.matches(LabelSet.parse(["fqdn:api.github.com", "reserved:world-ipv4"]))
    assert selector.matches_name("api.GitHub.com.")


def test_the_selectors_of_policies_are_found():
    names = [{"matchName": "a.io"}, {"matchPattern": "*.a.io"}]
    policy = parse(
        cnp(endpointSelector={}, egress=[{"toFQDNs": names}, {"toCIDR": ["10.0.0.0/8"]}])
    )

    assert list(selectors_of([policy])) == [
        FqdnSelector(name="a.io"),
        FqdnSelector(pattern="*.a.io"),
    ]


@pytest.mark.parametrize("word", ["matchName", "matchPattern"])
@pytest.mark.parametrize("name", ["world-ipv4", "world", "host", "kube-apiserver"])
def test_no_name_may_take_a_reserved_label_away_from_an_address(word, name):
    with pytest.raises(PolicyError, match="reserved label"):
        parse(cnp(endpointSelector={}, egress=[{"toFQDNs": [{word: name}]}]))

    parse(cnp(endpointSelector={}, egress=[{"toFQDNs": [{word: f"{name}."}]}]))
