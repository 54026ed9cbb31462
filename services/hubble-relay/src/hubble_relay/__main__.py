"""`hubble-relay serve`: parse, set up logging, run."""

from __future__ import annotations

import asyncio
import os
import sys

from cilium_core.errors import CiliumError
from cilium_core.settings import load_or_exit
from cilium_core.telemetry import get_logger, pushing, setup_logging

from hubble_relay.app import Relay, own_version
from hubble_relay.settings import PREFIX, RelaySettings, take_file

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
    loaded = load_or_exit(
        RelaySettings,
        program="hubble-relay",
        about=_ABOUT,
        version=own_version(),
        prefix=PREFIX,
        argv=words,
    )
    setup_logging(loaded.value, service="hubble-relay")
    log = get_logger()
    for warning in loaded.warnings:
        log.warning("setting ignored", reason=warning)
    try:
        asyncio.run(_run(loaded.value))
    except CiliumError as error:
        log.error("cannot run", error=str(error))
        sys.exit(1)


async def _run(settings: RelaySettings) -> None:
    relay = Relay(settings)
    try:
        await pushing(relay.run(), settings, service="hubble-relay")
    except BaseException:
        await relay.stop()
        raise


if __name__ == "__main__":
    main()
