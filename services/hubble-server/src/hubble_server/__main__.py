"""Entry point: read the settings, set the logs up, run until told to stop."""

from __future__ import annotations

from cilium_core.serving.programs import run_program
from cilium_core.serving.sockets import raise_file_limit

from hubble_server.app import App
from hubble_server.settings import ServerSettings

_ABOUT = "turns the kernel's events of this node into flows and serves them to Hubble's clients."


def main() -> None:
    """Run hubble-server."""
    raise_file_limit()
    run_program(
        ServerSettings,
        lambda loaded: App(loaded.value).run(),
        program="hubble-server",
        about=_ABOUT,
        shared_directory=True,
    )


if __name__ == "__main__":
    main()
