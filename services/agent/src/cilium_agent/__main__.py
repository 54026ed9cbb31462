"""`cilium-agent`: read the settings, run until told to stop."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.metadata import version

from cilium_core import traces
from cilium_core.errors import CiliumError
from cilium_core.settings import load_or_exit
from cilium_core.telemetry import get_logger, pushing, setup_logging

from cilium_agent.settings import AgentSettings


def main() -> None:
    """Run the program; exit code 0 after SIGTERM or SIGINT, 1 when it cannot start."""
    release = version("cilium-agent")
    loaded = load_or_exit(
        AgentSettings,
        program="cilium-agent",
        about="runs a node: eBPF programs and maps, pods' networks, policy.",
        version=release,
        shared_directory=True,
    )
    settings = loaded.value
    setup_logging(settings, service="cilium-agent", node=settings.node_name)
    log = get_logger()
    for warning in loaded.warnings:
        log.warning("setting ignored", reason=warning)
    log.info("starting", version=release, pid=os.getpid(), settings=loaded.effective())

    from cilium_agent.app import Agent
    from cilium_agent.datapath.errors import DatapathError

    async def run() -> None:
        node = settings.node_name
        async with traces.tracing(settings, service="cilium-agent", node=node):
            agent = Agent(settings, version=release)
            await pushing(agent.run(), settings, service="cilium-agent", node=node)

    try:
        asyncio.run(run())
    except (CiliumError, DatapathError, OSError) as error:
        log.error("cannot run", error=str(error))
        sys.exit(1)
    log.info("stopped")


if __name__ == "__main__":
    main()
