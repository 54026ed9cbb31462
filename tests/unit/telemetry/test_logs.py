from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Literal

import pytest
from cilium_core.settings import TelemetrySettings
from cilium_core.telemetry import get_logger, setup_logging

from tests.unit.logs import logs_restored

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with logs_restored():
        yield


def written(form: Literal["json", "console"]) -> io.StringIO:
    stream = io.StringIO()
    settings = TelemetrySettings(log_level="info", log_format=form)
    setup_logging(settings, service="cilium-operator", node="n1", stream=stream)
    return stream


def test_json_lines_carry_service_node_and_keys() -> None:
    stream = written("json")
    get_logger(job="gc").info("identity deleted", identity=7)
    get_logger().debug("not written")
    line = json.loads(stream.getvalue())
    assert line.pop("time")
    assert line == {
        "event": "identity deleted",
        "identity": 7,
        "job": "gc",
        "level": "info",
        "node": "n1",
        "service": "cilium-operator",
    }


def test_records_of_standard_logging_take_the_same_form() -> None:
    stream = written("json")
    logging.getLogger("grpc").warning("odd %s", "frame")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["logger"], line["level"]) == ("odd frame", "grpc", "warning")


def test_the_console_form_is_for_people() -> None:
    stream = written("console")
    get_logger().warning("peer is slow", peer="n2")
    assert "peer is slow" in stream.getvalue()
    assert "peer=n2" in stream.getvalue()
