"""`cilium-kafka-proxy`: parse, set up logging, run."""

from __future__ import annotations

from cilium_core.proxying.running import ProxySettings
from cilium_core.serving.programs import run_program

from kafka_proxy.app import KafkaProxy

_ABOUT = "Judges what pods ask Kafka brokers for, request by request."


def main() -> None:
    """Entry point."""
    run_program(
        ProxySettings,
        lambda loaded: KafkaProxy(loaded.value).run(),
        program=KafkaProxy.program,
        about=_ABOUT,
    )


if __name__ == "__main__":
    main()
