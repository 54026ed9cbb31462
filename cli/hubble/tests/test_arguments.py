"""The grammar of the command line, help and completion."""

import subprocess
import sys

import pytest
from hubble_cli.__main__ import ROOT, run
from hubble_cli.arguments import parse
from hubble_cli.completing import candidates
from hubble_cli.errors import UsageError

_IMPORTS = """
import sys
from hubble_cli.__main__ import run
run(["version"])
print(sorted({"grpc", "rich", "yaml", "pydantic", "asyncio"} & set(sys.modules)))
"""


def parsed(*words):
    return parse(ROOT, words, lambda flag, value: None)


def test_flags_may_stand_before_and_after_commands():
    line = parsed("--server", "a:1", "observe", "-f", "flows", "--tls", "--debug=false")

    assert [command.name for command in line.path] == ["hubble", "observe", "flows"]
    assert line.values == {"server": "a:1", "follow": True, "tls": True, "debug": False}


def test_a_flags_value_is_not_taken_for_a_command():
    line = parsed("--server", "status", "list", "--tls-server-name", "nodes", "node", "-o", "wide")

    assert [command.name for command in line.path] == ["hubble", "list", "nodes"]
    assert line.values["output"] == "wide"


def test_lists_split_at_commas_and_add_up():
    line = parsed(
        "observe", "--field-mask", 'time,"a,b"', "--field-mask=uuid", "--allowlist", "{},{}"
    )

    assert line.values["field-mask"] == ["time", "a,b", "uuid"]
    assert line.values["allowlist"] == ["{},{}"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing"], 'unknown command "nothing" for "hubble"'),
        (["observe", "nothing"], 'unknown command "nothing" for "hubble observe"'),
        (["list", "nothing"], 'unknown command "nothing" for "hubble list"'),
        (["status", "-f"], "unknown shorthand flag: 'f' in -f"),
        (["observe", "--server"], "flag needs an argument: --server"),
        (["observe", "-fn"], "flag needs an argument: 'n' in -fn"),
        (["observe", "--=x"], "bad flag syntax: --=x"),
    ],
)
def test_what_is_wrong_is_told(words, text):
    with pytest.raises(UsageError) as raised:
        run(words)

    assert str(raised.value) == text


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["observe", "-h"],
        ["help", "observe", "flows"],
        ["list"],
        ["config"],
        [],
        ["help", "config", "set"],
        ["observe", "agent-events", "--help"],
    ],
)
def test_help_is_printed(words, capsys):
    run(words)

    printed = capsys.readouterr().out
    assert "Usage:\n  hubble" in printed
    assert max(map(len, printed.splitlines())) <= 140


def test_help_says_that_port_forwarding_is_absent(capsys):
    run(["observe", "--help"])

    assert "--port-forward) is not part of this program" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (["st"], ["stats", "status"]),
        (["list", ""], ["namespaces", "nodes"]),
        (["observe", "--verd"], ["--verdict"]),
        (["observe", "--verdict", "D"], ["DROPPED"]),
        (["observe", "--color=n"], ["--color=never"]),
        (["observe", "-t", "trace:to-e"], ["trace:to-endpoint"]),
        (["observe", "-o", ""], ["compact", "dict", "json", "jsonpb", "table", "wide"]),
    ],
)
def test_completion_knows_commands_flags_and_values(words, some):
    assert candidates(ROOT, words) == some


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_this_program(shell, capsys):
    run(["completion", shell])

    assert "hubble __complete" in capsys.readouterr().out


def test_a_process_tells_errors_on_standard_error_and_ends_with_1():
    done = subprocess.run(
        [sys.executable, "-m", "hubble_cli", "observe", "--bogus"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (1, "", "unknown flag: --bogus\n")


def test_neither_grpc_nor_rich_is_imported_without_need():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _IMPORTS,
        ],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines()[-1] == "[]"
