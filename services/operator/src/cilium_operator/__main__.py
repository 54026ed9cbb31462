"""`cilium-operator`: read the settings, run until told to stop."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.metadata import version

from cilium_core.errors import CiliumError
from cilium_core.settings import load_or_exit
from cilium_core.telemetry import get_logger, pushing, setup_logging

from cilium_operator.settings import OperatorSettings


def main() -> None:
    """Run the program; exit code 0 after SIGTERM or SIGINT, 1 when it cannot start."""
    release = version("cilium-operator")
    loaded = load_or_exit(
        OperatorSettings,
        program="cilium-operator",
        about="gives pod CIDRs to nodes and collects unused identities, once per cluster.",
        version=release,
        shared_directory=True,
    )
    settings = loaded.value
    setup_logging(settings, service="cilium-operator")
    log = get_logger()
    for warning in loaded.warnings:
        log.warning("setting ignored", reason=warning)
    log.info("starting", version=release, pid=os.getpid(), settings=loaded.effective())

    from cilium_operator.app import App

    async def run() -> None:
        app = App(settings, version=release)
        await pushing(app.run(), settings, service="cilium-operator")

    try:
        asyncio.run(run())
    except CiliumError as error:
        log.error("cannot run", error=str(error))
        sys.exit(1)
    log.info("stopped")


if __name__ == "__main__":
    main()
