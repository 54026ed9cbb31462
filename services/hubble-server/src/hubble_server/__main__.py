"""Entry point: read the settings, set the logs up, run until told to stop."""

from __future__ import annotations

import asyncio
import sys

from cilium_core.errors import CiliumError
from cilium_core.settings import load_or_exit
from cilium_core.telemetry import get_logger, pushing, setup_logging

from hubble_server.app import App
from hubble_server.facts import VERSION
from hubble_server.settings import ServerSettings

_ABOUT = "turns the kernel's events of this node into flows and serves them to Hubble's clients."


def main() -> None:
    """Run hubble-server."""
    loaded = load_or_exit(
        ServerSettings,
        program="hubble-server",
        about=_ABOUT,
        version=VERSION,
        shared_directory=True,
    )
    settings = loaded.value
    setup_logging(settings, service="hubble-server", node=settings.node_name)
    log = get_logger()
    for warning in loaded.warnings:
        log.warning("setting ignored", reason=warning)
    try:
        asyncio.run(_serve(settings))
    except CiliumError as error:
        log.error("cannot serve", reason=str(error))
        sys.exit(1)


async def _serve(settings: ServerSettings) -> None:
    app = App(settings)
    await pushing(app.run(), settings, service="hubble-server", node=settings.node_name)


if __name__ == "__main__":
    main()
