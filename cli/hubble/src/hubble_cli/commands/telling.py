"""`hubble version`, `help` and `completion`: what needs neither settings nor a server."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from hubble_cli.arguments import Command
from hubble_cli.commands.asking import group
from hubble_cli.errors import UsageError

if TYPE_CHECKING:
    from hubble_cli.arguments import Parsed


def own_version() -> str:
    """The version of this package."""
    try:
        return version("hubble-cli")
    except PackageNotFoundError:
        return "unknown"


def show_version(_: Parsed) -> None:
    """Print version and platform."""
    from hubble_cli.connecting import API_VERSION

    api = ".".join(map(str, API_VERSION))
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    python = f"{platform.python_implementation()} {platform.python_version()}"
    sys.stdout.write(
        f"hubble {own_version()} (Hubble API {api}) on {python},"
        f" {platform.system().lower()}/{machine}\n"
    )


def show_help(parsed: Parsed) -> None:
    """Explain a command."""
    from hubble_cli.helping import render

    path = parsed.path[:1]
    for word in parsed.operands:
        found = path[-1].find(word)
        if found is None:
            raise UsageError(f'unknown command "{word}" for "{" ".join(c.name for c in path)}"')
        path = (*path, found)
    sys.stdout.write(render(path))


def completion(parsed: Parsed) -> None:
    """Print the completion script of a shell."""
    from hubble_cli.completing import SCRIPTS

    sys.stdout.write(SCRIPTS[parsed.command.name])


def complete(parsed: Parsed) -> None:
    """Print what may stand in place of the last operand; the scripts call it."""
    from hubble_cli.completing import candidates

    sys.stdout.write("".join(f"{word}\n" for word in candidates(parsed.path[0], parsed.operands)))


VERSION = Command("version", "Display the version of this program", show_version)
HELP = Command("help", "Help about a command", show_help, operands=(0, 3), usage="[COMMAND]...")
COMPLETION = Command(
    "completion",
    "Print a shell's completion script",
    group,
    commands=tuple(
        Command(shell, f"Print the completion script of {shell}", completion)
        for shell in ("bash", "fish", "zsh")
    ),
    text='For this shell: eval "$(hubble completion bash)"\n',
)
COMPLETE = Command(
    "__complete", "Complete the last word", complete, operands=(0, 1 << 16), hidden=True
)
