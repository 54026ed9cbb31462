"""A history read without a server, by the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hubble_cli.__main__ import run
from hubble_cli.errors import HubbleError
from hubble_server.history.statelog import StateLimits, StateLog

from tests.unit.hubble.loads import snapshot, traffic
from tests.unit.hubble.test_history import Kept

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A history of a complete part and a journal, whose server is still there."""
    made = Kept(tmp_path / "past")
    made.feed(traffic(300, 4))
    made.complete()
    made.feed(traffic(200, 4, 2))
    made.history.step()
    return made


def observe(kept: Kept, capfd: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    run(["observe", "--input-dir", str(kept.path), "-o", "json", *flags])
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_everything_is_printed_in_order(kept: Kept, capfd: pytest.CaptureFixture[str]) -> None:
    flows = kept.flows()
    found = observe(kept, capfd)
    assert [one["flow"]["uuid"] for one in found] == [flow.uuid for flow in flows]
    assert found[0]["flow"]["source"]["pod_name"] == flows[0].source.pod_name
    last = observe(kept, capfd, "--last", "7")
    assert last == found[-7:]
    assert observe(kept, capfd, "--first", "7") == found[:7]
    since = found[350]["time"]
    assert observe(kept, capfd, "--since", since) == found[350:]


def test_filters_hold_and_flows_are_counted(kept: Kept, capfd: pytest.CaptureFixture[str]) -> None:
    dropped = [flow.uuid for flow in kept.flows() if flow.verdict == 2]
    found = observe(kept, capfd, "--verdict", "DROPPED")
    assert [one["flow"]["uuid"] for one in found] == dropped
    assert dropped
    counts = observe(kept, capfd, "--verdict", "DROPPED", "--aggregate-by", "verdict")
    assert str(len(dropped)) in json.dumps(counts)


def test_a_directory_that_is_not_there_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HubbleError, match="cannot read the history in"):
        run(["observe", "--input-dir", str(tmp_path / "none")])
    assert "none: no such file or directory" in capfd.readouterr().err


def test_what_held_at_a_moment_is_told_without_a_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = StateLog(tmp_path, StateLimits())
    log.replace(snapshot(2))
    log.step()
    log.stop()
    run(["observe", "--input-dir", str(tmp_path), "--at", "0s", "-o", "json", "-n", "ns1"])
    (node,) = json.loads(capfd.readouterr().out)["nodes"]
    assert node["node"] == "node1"
    assert [one["pod_name"] for one in node["endpoints"]] == ["pod-1"]
    with pytest.raises(HubbleError, match="nothing is kept of that moment; it begins at"):
        run(["observe", "--input-dir", str(tmp_path), "--at", "1h"])
