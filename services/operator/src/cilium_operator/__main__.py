"""`cilium-operator`: read the settings, run until told to stop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cilium_core.serving.programs import own_version, run_program
from cilium_core.telemetry import get_logger

from cilium_operator.settings import OperatorSettings

if TYPE_CHECKING:
    from cilium_core.settings import Loaded

_NAME = "cilium-operator"


def main() -> None:
    """Run the program; exit code 0 after SIGTERM or SIGINT, 1 when it cannot start."""
    run_program(
        OperatorSettings,
        _serve,
        program=_NAME,
        about="gives pod CIDRs to nodes and addresses to services, once per cluster.",
        shared_directory=True,
    )


async def _serve(loaded: Loaded[OperatorSettings]) -> None:
    log = get_logger()
    release = own_version(_NAME)
    log.info("starting", version=release, pid=os.getpid(), settings=loaded.effective())

    from cilium_operator.app import App

    await App(loaded.value, version=release).run()
    log.info("stopped")


if __name__ == "__main__":
    main()
