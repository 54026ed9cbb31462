"""`hubble-relay serve`: parse, set up logging, run."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cilium_core.errors import CiliumError
from cilium_core.serving.programs import run_program
from cilium_core.serving.sockets import raise_file_limit

from hubble_relay.app import Relay
from hubble_relay.settings import PREFIX, RelaySettings, take_file

if TYPE_CHECKING:
    from cilium_core.settings import Loaded

_ABOUT = "Fans the flows of all nodes into one stream. Usage: hubble-relay serve [flags]"


def main() -> None:
    """Entry point."""
    words = sys.argv[1:]
    if "serve" in words[:1]:
        words = words[1:]
    elif words and not words[0].startswith("-"):
        sys.exit(f"hubble-relay: unknown command {words[0]!r}; the command is: hubble-relay serve")
    try:
        words = take_file(words, os.environ)
    except CiliumError as error:
        sys.exit(f"hubble-relay: {error}")
    raise_file_limit()
    run_program(
        RelaySettings, _serve, program="hubble-relay", about=_ABOUT, prefix=PREFIX, argv=words
    )


async def _serve(loaded: Loaded[RelaySettings]) -> None:
    relay = Relay(loaded.value)
    try:
        await relay.run()
    except BaseException:
        await relay.stop()
        raise


if __name__ == "__main__":
    main()
