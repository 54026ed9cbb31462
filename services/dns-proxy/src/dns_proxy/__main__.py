"""`cilium-dns-proxy`: parse, set up logging, run."""

from __future__ import annotations

import asyncio
import sys

from cilium_core.errors import CiliumError
from cilium_core.settings import load_or_exit
from cilium_core.telemetry import get_logger, pushing, setup_logging

from dns_proxy.app import DnsProxy, own_version
from dns_proxy.settings import DnsProxySettings

_ABOUT = "Judges what pods ask DNS for, and tells the agent which addresses names have."


def main() -> None:
    """Entry point."""
    loaded = load_or_exit(
        DnsProxySettings, program="cilium-dns-proxy", about=_ABOUT, version=own_version()
    )
    setup_logging(loaded.value, service="cilium-dns-proxy")
    log = get_logger()
    for warning in loaded.warnings:
        log.warning("setting ignored", reason=warning)
    try:
        asyncio.run(_run(loaded.value))
    except CiliumError as error:
        log.error("cannot run", error=str(error))
        sys.exit(1)


async def _run(settings: DnsProxySettings) -> None:
    await pushing(DnsProxy(settings).run(), settings, service="cilium-dns-proxy")


if __name__ == "__main__":
    main()
