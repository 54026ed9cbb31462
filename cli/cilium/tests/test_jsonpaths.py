"""JSONPath templates of `-o jsonpath=…`."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_cli.jsonpaths import TemplateError, evaluate, parse

DOCUMENT: list[dict[str, Any]] = [
    {
        "name": "cart",
        "frontend": {"ip": "10.96.4.20", "port": 80},
        "backends": [{"ip": "10.0.1.15", "state": "active"}, {"ip": "10.0.1.16", "state": "gone"}],
        "routable": True,
        "a key": None,
    },
    {"name": "web", "frontend": {"ip": "10.96.4.21", "port": 443}, "backends": []},
]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{[0].name}", "cart"),
        ("{$[0].name}", "cart"),
        ("{[-1].frontend.port}", "443"),
        ("{[*].name}", "cart web"),
        ("{.name}", "cart web"),
        ("{[0].backends[*].ip}", "10.0.1.15 10.0.1.16"),
        ("{[0:1].name}", "cart"),
        ("{[5].name}", ""),
        ("{[0].routable} {[0]['a key']}.", "true ."),
        ("{..port}", "80 443"),
        ('{[?(@.name=="web")].frontend.ip}', "10.96.4.21"),
        ("{[?(@.frontend.port<100)].name}", "cart"),
        ('{[0].backends[?(@.state!="active")].ip}', "10.0.1.16"),
        ('{range [*]}{.name}={.frontend.ip}{"\\n"}{end}', "cart=10.96.4.20\nweb=10.96.4.21\n"),
        ("{range .backends}{.state};{end}", "active;gone;"),
        ("{[1].frontend}", '{"ip": "10.96.4.21", "port": 443}'),
        ("plain text", "plain text"),
    ],
)
def test_a_template_finds(template: str, text: str) -> None:
    assert evaluate(parse(template), DOCUMENT) == text


@pytest.mark.parametrize(
    "template", ["{.a", "}", "{}", "{end}", "{range .a}", "{.a[}", '{"a}', "{[?(@.a==b)]}"]
)
def test_a_template_that_cannot_be_read_is_refused(template: str) -> None:
    with pytest.raises(TemplateError):
        parse(template)
