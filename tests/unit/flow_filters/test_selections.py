"""FlowFilters, compared with what Hubble's own filter code selects from the same flows."""

import json
from pathlib import Path

import pytest
from cilium_core.flow_filters import FilterError, compile_filters
from cilium_core.label_selectors import SelectorError, parse_selector
from cilium_core.request_paths import request_path
from flow import flow_pb2
from google.protobuf import json_format
from observer import observer_pb2

HERE = Path(__file__).parent
FLOWS = [
    json_format.Parse(line, observer_pb2.GetFlowsResponse()).flow
    for line in (HERE / "flows.jsonl").read_text("utf-8").splitlines()
]
ROWS = [json.loads(line) for line in (HERE / "expected.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: json.dumps(row["filter"]))
def test_a_filter_selects_what_it_selects_everywhere(row):
    wanted = json_format.ParseDict(row["filter"], flow_pb2.FlowFilter())

    if "error" in row:
        with pytest.raises(FilterError) as raised:
            compile_filters([wanted])
        assert str(raised.value).startswith(row["error"])
        return
    allowed = compile_filters([wanted])
    denied = compile_filters([], [wanted])
    assert [int(flow.Summary) for flow in FLOWS if allowed(flow)] == row["flows"]
    refused = [int(flow.Summary) for flow in FLOWS if not denied(flow)]
    assert refused == row["flows"]


def test_one_entry_of_the_whitelist_and_none_of_the_blacklist_must_hold():
    dropped = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])
    audited = flow_pb2.FlowFilter(verdict=[flow_pb2.AUDIT])
    tcp = flow_pb2.FlowFilter(protocol=["tcp"])
    passes = compile_filters([dropped, audited], [tcp])

    for flow in FLOWS:
        expected = flow.verdict in (flow_pb2.DROPPED, flow_pb2.AUDIT) and not flow.l4.HasField(
            "TCP"
        )
        assert passes(flow) == expected


def test_no_filters_pass_everything():
    assert all(map(compile_filters([]), FLOWS))


def cel(*texts):
    wanted = flow_pb2.FlowFilter()
    wanted.experimental.cel_expression.extend(texts)
    return wanted


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("_flow.verdict == Verdict.DROPPED", flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])),
        ("has(_flow.l4.TCP)", flow_pb2.FlowFilter(protocol=["tcp"])),
        (
            "_flow.l4.TCP.destination_port == 80u || _flow.l4.UDP.destination_port == 80u",
            flow_pb2.FlowFilter(destination_port=["80"], protocol=["tcp", "udp"]),
        ),
    ],
)
def test_expressions_select_what_the_same_fields_do(text, same):
    by_expression, by_fields = compile_filters([cel(text)]), compile_filters([same])

    assert [by_expression(flow) for flow in FLOWS] == [by_fields(flow) for flow in FLOWS]


def test_one_of_several_expressions_must_hold():
    passes = compile_filters([cel("false", "_flow.verdict == Verdict.AUDIT")])

    assert [passes(one) for one in FLOWS] == [one.verdict == flow_pb2.AUDIT for one in FLOWS]


@pytest.mark.parametrize("failing", ["1 / 0 == 1", "_flow.source.labels[99] == 'a'"])
def test_an_expression_that_fails_is_the_last_one_asked(failing):
    before, after = compile_filters([cel(failing, "true")]), compile_filters([cel("true", failing)])

    assert not any(map(before, FLOWS))
    assert all(map(after, FLOWS))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("_flow.nothing == 1", "undefined field 'nothing'"),
        ("_flow.IP.source", "expected the expression to be a bool, and it is a string"),
        ("_flow.IP.source == ", "Syntax error"),
        ("true || " * 600 + "true", "4804 characters, and 4096 is the most"),
    ],
)
def test_what_is_no_expression_about_flows_is_an_error(text, says):
    with pytest.raises(FilterError, match=r"^error compiling CEL expression: ") as raised:
        compile_filters([cel(text)])
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "text", ["a in", "a notin (b", "a in (b c)", "a b", "a<x", "()", "a,,b", "!"]
)
def test_what_is_no_selector_is_an_error(text):
    with pytest.raises(SelectorError):
        parse_selector(text)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://h/a%2Fb?c", "/a/b"), ("/a?b=%zz", "/a"), ("//x/y", "//x/y"), ("/a#b", "/a#b"),
        ("http://h", ""), ("mailto:a@b", ""), ("*", "*"), ("http://u:p@h:8/p", "/p"),
        ("http://[fe80::1%25e]:1/z", "/z"), ("ftp://a:b:80/d", "/d"), ("http:///p", "/p"),
        ("relative", None), ("", None), ("/a%zz", None), ("://x", None), ("http://a b/c", None),
        ("http://[1.2.3.4]/q", None), ("http://a:b:c/d", None), ("http://h:x/p", None),
        ("http://%41/p", None), ("/\tp", None), ("http://[fe80::1%e]/z", None), ("1a:/b", None),
    ],
)  # fmt: skip
def test_the_path_of_a_request_is_what_servers_take_for_it(url, path):
    assert request_path(url) == path


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"a\C", r"invalid escape sequence: `\C`"),
        ("(" * 1100 + ")" * 1100, "expression nests too deeply: `(((("),
    ],
)
def test_what_hubble_takes_for_no_regular_expression_is_refused(pattern, says):
    with pytest.raises(FilterError) as raised:
        compile_filters([flow_pb2.FlowFilter(dns_query=[pattern])])
    assert f"error parsing regexp: {says}" in str(raised.value)


@pytest.mark.parametrize("pattern", [r"a\\C", r"\QC\C\E", "()" * 1100])
def test_what_only_looks_foreign_in_a_regular_expression_is_taken(pattern):
    compile_filters([flow_pb2.FlowFilter(dns_query=[pattern])])


@pytest.mark.parametrize(
    ("wanted", "method", "holds"),
    [("get", "GeT", True), ("\u1e9e", "\u00df", True), ("SS", "\u00df", False), ("", "", False)],
)
def test_methods_are_compared_letter_by_letter_without_case(wanted, method, holds):
    flow = flow_pb2.Flow()
    flow.l7.http.method = method

    assert compile_filters([flow_pb2.FlowFilter(http_method=[wanted])])(flow) == holds
