"""`cilium-dns-proxy`: parse, set up logging, run."""

from __future__ import annotations

from cilium_core.proxying.running import ProxySettings
from cilium_core.serving.programs import run_program

from dns_proxy.app import DnsProxy

_ABOUT = "Judges what pods ask DNS for, and tells the agent which addresses names have."


def main() -> None:
    """Entry point."""
    run_program(
        ProxySettings,
        lambda loaded: DnsProxy(loaded.value).run(),
        program=DnsProxy.program,
        about=_ABOUT,
    )


if __name__ == "__main__":
    main()
