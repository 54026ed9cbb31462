"""Every output format, compared with what Hubble's public client printed for the same input."""

import json
import re
from pathlib import Path

import pytest
from hubble_cli.__main__ import run

DATA = Path(__file__).parent / "data"
INPUT = str(DATA / "flows.jsonl")
OUTPUTS = {
    "compact": [],
    "compact-names": ["--print-node-name", "--print-policy-names"],
    "compact-numeric": ["--numeric"],
    "compact-colour": ["--color=always"],
    "compact-debug": ["-D"],
    "dict": ["-o", "dict"],
    "dict-names": ["-o", "dict", "--print-node-name", "--print-policy-names"],
    "dict-colour": ["-o", "dict", "--color=always"],
    "table": ["-o", "table"],
    "table-names": ["-o", "table", "--print-node-name", "--print-policy-names"],
    "json": ["-o", "json"],
}


def recorded(name):
    """What the public client printed, line ends and all."""
    return (DATA / name).read_bytes().decode()


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_is_byte_for_byte_that_of_the_public_client(name, capsysbinary):
    run(["observe", "--input-file", INPUT, *OUTPUTS[name]])

    printed = capsysbinary.readouterr()
    assert printed.out.decode() == recorded(f"{name}.out")
    assert printed.err.decode() == recorded(f"{name}.err")


WIDE = {
    "compact": (
        "Jan 15 10:20:00.000: 10.0.0.1 (unknown) <> 10.0.0.2 (unknown) Policy denied DROPPED (s)"
        " [3 packets, 1500 bytes; bpf_lxc.c:7]\n"
    ),
    "dict": (
        "  TIMESTAMP: Jan 15 10:20:00.000\n"
        "     SOURCE: 10.0.0.1\n"
        "DESTINATION: 10.0.0.2\n"
        "       TYPE: Policy denied\n"
        "    VERDICT: DROPPED\n"
        "    SUMMARY: s\n"
        "    PACKETS: 3\n"
        "      BYTES: 1500\n"
        " DROPPED AT: bpf_lxc.c:7\n"
    ),
    "wide": (
        "TIMESTAMP             SOURCE     DESTINATION   TYPE            VERDICT   SUMMARY   PACKETS"
        "   BYTES   DROPPED AT\n"
        "Jan 15 10:20:00.000   10.0.0.1   10.0.0.2      Policy denied   DROPPED   s         3      "
        "   1500    bpf_lxc.c:7\n"
    ),
}


@pytest.mark.parametrize("output", WIDE)
def test_wide_outputs_have_packets_bytes_and_where_it_was_dropped(output, tmp_path, capsysbinary):
    counts = {
        "@type": "type.googleapis.com/google.protobuf.StringValue",
        "value": '{"bytes":1500,"packets":3}',
    }
    flow = {
        "time": "2026-01-15T10:20:00Z",
        "verdict": "DROPPED",
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2"},
        "event_type": {"type": 1, "sub_type": 133},
        "file": {"name": "bpf_lxc.c", "line": 7},
        "extensions": counts,
        "Summary": "s",
    }
    lines = tmp_path / "flows.jsonl"
    lines.write_text(json.dumps({"flow": flow, "time": flow["time"]}) + "\n")

    run(["observe", "--input-file", str(lines), "-o", output, "--wide"])

    assert capsysbinary.readouterr().out.decode() == WIDE[output]


@pytest.mark.parametrize("name", ["jsonpb", "JSON"])
def test_other_names_of_json_print_the_same(name, capsysbinary):
    run(["observe", "--input-file", INPUT, "-o", name])

    assert capsysbinary.readouterr().out.decode() == recorded("json.out")


def test_what_json_prints_can_be_read_and_printed_again(tmp_path, capsysbinary):
    run(["observe", "--input-file", INPUT, "-o", "json"])
    first = capsysbinary.readouterr().out
    again = tmp_path / "again.jsonl"
    again.write_bytes(first)

    run(["observe", "--input-file", str(again), "-o", "json"])

    assert capsysbinary.readouterr().out == first


def test_legacy_json_is_the_bare_flow(monkeypatch, capsysbinary):
    monkeypatch.setenv("HUBBLE_COMPAT", "other,legacy-json-output")

    run(["observe", "--input-file", INPUT, "-o", "json", "--first", "1"])

    assert set(json.loads(capsysbinary.readouterr().out)) >= {"time", "verdict", "IP"}


def test_silence_drops_node_states(capsysbinary):
    run(["observe", "--input-file", INPUT, "-s", "-D"])

    assert capsysbinary.readouterr().err == b""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("StampMilli", "Jan 15 10:20:00.123"),
        ("YearMonthDay", "2026-01-15"),
        ("YearMonthDayHour", "2026-01-15T10Z"),
        ("YearMonthDayHourMinute", "2026-01-15T10:20Z"),
        ("RFC3339", "2026-01-15T10:20:00Z"),
        ("rfc3339milli", "2026-01-15T10:20:00.123Z"),
        ("RFC3339Micro", "2026-01-15T10:20:00.123456Z"),
        ("RFC3339Nano", "2026-01-15T10:20:00.123456789Z"),
        ("RFC1123Z", "Thu, 15 Jan 2026 10:20:00 +0000"),
        ("no such format", "Jan 15 10:20:00.123"),
    ],
)
def test_time_formats(name, shown, capsysbinary):
    run(["observe", "--input-file", INPUT, "--first", "1", "--time-format", name])

    assert capsysbinary.readouterr().out.decode().startswith(f"{shown}: bakery/oven-5d8-xk2:40000 ")


def test_nothing_in_data_reaches_the_terminal_as_a_control_sequence(capsysbinary):
    for options in OUTPUTS.values():
        if "--color=always" not in options:
            run(["observe", "--input-file", INPUT, *options])

    printed = capsysbinary.readouterr()
    assert not re.search(rb"[\x1b\r]", printed.out + printed.err)


def test_an_audited_verdict_names_the_policies_that_would_deny(tmp_path, capsysbinary):
    flow = {
        "time": "2026-01-15T10:20:36.123Z",
        "verdict": "AUDIT",
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2", "ipVersion": "IPv4"},
        "event_type": {"type": 5},
        "traffic_direction": "INGRESS",
        "policy_match_type": 1,
        "is_reply": False,
        "ingress_denied_by": [{"name": "no-db", "kind": "CiliumNetworkPolicy"}],
    }
    lines = tmp_path / "flows.jsonl"
    lines.write_text(json.dumps({"flow": flow}) + "\n")

    run(["observe", "--input-file", str(lines), "--print-policy-names"])

    shown = capsysbinary.readouterr().out.decode()
    assert "policy-verdict:L3-Only INGRESS AUDITED BY no-db (CiliumNetworkPolicy) ()" in shown
