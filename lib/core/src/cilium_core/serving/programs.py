"""What every `__main__` of a service does: read the settings, set the logs up, run to the end."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from cilium_core import traces
from cilium_core.errors import CiliumError
from cilium_core.settings import NodeSettings, TelemetrySettings, load_or_exit
from cilium_core.telemetry import get_logger, pushing, setup_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from cilium_core.settings import Loaded

Settings = TypeVar("Settings", bound=TelemetrySettings)


def own_version(package: str) -> str:
    """The version of an installed package. Costs 30 ms: call it when serving has begun."""
    from importlib.metadata import version

    return version(package)


def run_program(
    model: type[Settings],
    work: Callable[[Loaded[Settings]], Coroutine[Any, Any, None]],
    *,
    program: str,
    about: str,
    prefix: str = "CILIUM_",
    shared_directory: bool = False,
    argv: Sequence[str] | None = None,
) -> None:
    """Do a service's `work`, which is called within the event loop, and return when it is done.

    `program` is also the name of the package and of the service in logs and metrics; the other
    arguments are those of `load_or_exit`. Exit code 1, with one line in the log, for a CiliumError.
    """
    loaded = load_or_exit(
        model,
        program=program,
        about=about,
        version=lambda: own_version(program),
        prefix=prefix,
        shared_directory=shared_directory,
        argv=argv,
    )
    settings = loaded.value
    node = settings.node_name if isinstance(settings, NodeSettings) else ""
    setup_logging(settings, service=program, node=node)
    log = get_logger()
    for warning in loaded.warnings:
        log.warning("setting ignored", reason=warning)

    async def run() -> None:
        async with traces.tracing(settings, service=program, node=node):
            await pushing(work(loaded), settings, service=program, node=node)

    try:
        asyncio.run(run())
    except CiliumError as error:
        log.error("cannot run", error=str(error))
        sys.exit(1)
