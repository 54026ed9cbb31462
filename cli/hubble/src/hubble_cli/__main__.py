"""`hubble`: observe what flows through a cluster.

Reads the command line, runs the command, and is the only place that turns errors into text on
standard error and an exit code: 0 on success and when the user ends it, 1 on every error.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING

from cilium_core import traces

from hubble_cli import arguments
from hubble_cli.arguments import Command, Flag, Section
from hubble_cli.commands import (
    asking,
    configuring,
    counting,
    explaining,
    observing,
    recording,
    telling,
)
from hubble_cli.errors import HubbleError
from hubble_cli.settings import GLOBAL, SERVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubble_cli.arguments import Parsed

_VERSION = Flag("version", "bool", "print the version", short="v", default=False, implied="true")


def _root(parsed: Parsed) -> None:
    if parsed.values.get("version"):
        sys.stdout.write(f"hubble {telling.own_version()}\n")
    else:
        asking.group(parsed)


ROOT = Command(
    "hubble",
    "Observe what flows through a cluster",
    _root,
    (Section("Global", GLOBAL.flags), Section("Version", (_VERSION,), shared=False), SERVER),
    (
        telling.COMPLETION,
        configuring.COMMAND,
        telling.HELP,
        asking.LIST,
        observing.COMMAND,
        recording.COMMAND,
        asking.REFLECT,
        counting.STATS,
        asking.STATUS,
        counting.TOP,
        telling.VERSION,
        asking.WATCH,
        explaining.COMMAND,
        telling.COMPLETE,
    ),
)


def run(words: Sequence[str]) -> None:
    """Run one command line. Raises HubbleError."""
    checker = None

    def collect(flag: Flag, value: str) -> None:
        """Check filters one by one, so that an error names the flag that it is about."""
        nonlocal checker
        from hubble_cli.filtering import FilterFlags

        checker = checker or FilterFlags()
        checker.add(flag.name, value)

    parsed = arguments.parse(ROOT, words, collect)
    if parsed.help or parsed.command.run is None:
        from hubble_cli.helping import render

        sys.stdout.write(render(parsed.path))
        return
    with traces.command("hubble", " ".join(command.name for command in parsed.path)):
        parsed.command.run(parsed)


def main() -> None:
    """Entry point."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names on the wire are any Unicode; the locale must not decide what can be shown.
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(encoding="utf-8", errors="replace")
    code = 0
    try:
        run(sys.argv[1:])
        sys.stdout.flush()
    except HubbleError as error:
        sys.stdout.flush()
        print(error, file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # The reader went away, as `| head` does: end as any program in a pipeline does.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    sys.exit(code)


if __name__ == "__main__":
    main()
