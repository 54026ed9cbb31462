"""`cilium-kafka-proxy`: parse, set up logging, run."""

from __future__ import annotations

import asyncio
import sys

from cilium_core.errors import CiliumError
from cilium_core.settings import load_or_exit
from cilium_core.telemetry import get_logger, pushing, setup_logging

from kafka_proxy.app import VERSION, KafkaProxy
from kafka_proxy.settings import KafkaProxySettings

_ABOUT = "Judges what pods ask Kafka brokers for, request by request."


def main() -> None:
    """Entry point."""
    loaded = load_or_exit(
        KafkaProxySettings, program="cilium-kafka-proxy", about=_ABOUT, version=VERSION
    )
    setup_logging(loaded.value, service="cilium-kafka-proxy")
    log = get_logger()
    for warning in loaded.warnings:
        log.warning("setting ignored", reason=warning)
    try:
        asyncio.run(_run(loaded.value))
    except CiliumError as error:
        log.error("cannot run", error=str(error))
        sys.exit(1)


async def _run(settings: KafkaProxySettings) -> None:
    await pushing(KafkaProxy(settings).run(), settings, service="cilium-kafka-proxy")


if __name__ == "__main__":
    main()
