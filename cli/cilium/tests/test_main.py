"""The command as a whole: help, completion, exit codes, and what starting it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from cilium_cli.__main__ import _COMMANDS, cli

HEAVY = {"grpc", "rich", "yaml", "numpy", "pyroute2", "pydantic", "google.protobuf"}


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from cilium_cli.__main__ import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CILIUM_LAB": "", "CILIUM_SOCKET": "", **environ},
        timeout=60,
        check=False,
    )


def test_help_lists_every_command_without_importing_any() -> None:
    program = (
        "import sys, json; sys.argv = ['cilium', '--help']\n"
        "from cilium_cli.__main__ import main\n"
        "code = main()\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )

    for name in _COMMANDS:
        assert f"  {name} " in done.stdout
    assert not HEAVY & set(json.loads(done.stderr))


def test_commands_of_the_lab_import_nothing_slow() -> None:
    program = (
        "import sys, json\n"
        "import cilium_cli.__main__, cilium_cli.commands.labs\n"
        "from cilium_cli.lab import etcd, objects, runtimes\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )

    assert not (HEAVY | {"asyncio", "secrets"}) & set(json.loads(done.stdout))


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_has_help(name: str) -> None:
    command = cli.get_command(cli.make_context("cilium", ["--help"], resilient_parsing=True), name)

    assert command is not None
    assert command.help
    assert _COMMANDS[name][1].endswith(".")


def test_completion_knows_commands_and_subcommands() -> None:
    def complete(words: str, position: str) -> list[str]:
        done = run(_CILIUM_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=position)
        return done.stdout.split()

    assert complete("cilium st", "1") == ["plain,status"]
    assert complete("cilium lab route ", "3") == ["plain,add", "plain,delete", "plain,list"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(shell: str) -> None:
    assert "_CILIUM_COMPLETE" in run("completion", shell).stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["status", "--socket", "/nonexistent"], 2, "/nonexistent"),
        (["status", "-o", "xml"], 2, "xml"),
        (["nosuch"], 2, "nosuch"),
        (["status", "--lab", "nosuch"], 3, "nosuch"),
        (["endpoint", "get", "x y", "--socket", "/nonexistent"], 1, "x y"),
        (["apply", "--etcd", "127.0.0.1:1", "-f", "/nonexistent"], 1, "/nonexistent"),
    ],
)
def test_errors_go_to_stderr_and_set_the_exit_code(
    arguments: list[str], exit_code: int, words: str
) -> None:
    done = run(*arguments)

    assert done.returncode == exit_code
    assert words in done.stderr
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_checks_files_without_a_cluster() -> None:
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
    program = "import sys; from cilium_cli.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "apply", "--dry-run", "--etcd", "x:1", "-f", "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "namespace shop is valid\n")


def test_versions_are_told_as_json() -> None:
    assert json.loads(run("version", "--client", "-o", "json").stdout).keys() == {"client"}
