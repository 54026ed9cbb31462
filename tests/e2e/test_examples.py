"""The numbered examples and the demo do what their texts say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.running import Lab

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DEMO_S = 60.0
LATE = 2.0
"""Factor for machines that run other things besides the test."""


@pytest.fixture(scope="module")
def lab(start_lab: Callable[[int], Lab]) -> Lab:
    return start_lab(3)


@pytest.mark.parametrize("example", sorted(path.parent.name for path in EXAMPLES.glob("*/run")))
def test_examples_end_well_and_clean_up(lab: Lab, example: str) -> None:
    done = subprocess.run(
        [str(EXAMPLES / example / "run")],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"CILIUM_LAB": lab.name},
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert lab.json("lab", "pod", "list") == []
    assert lab.json("get", "cnp")["items"] == []
    assert lab.json("get", "ccnp")["items"] == []


def test_every_example_is_listed(lab: Lab) -> None:
    text = (EXAMPLES / "README.md").read_text()

    for path in EXAMPLES.glob("[0-9]*"):
        assert f"[{path.name}]({path.name})" in text


def test_the_demo_shows_what_the_policies_say() -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py")],
        capture_output=True,
        text=True,
        timeout=110,
        env={key: value for key, value in os.environ.items() if key not in {"KEEP", "CILIUM_LAB"}},
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < DEMO_S * LATE
    assert "DROPPED" in done.stdout
    assert "unix:///run/cilium-lab/demo/relay.sock" in done.stdout
    assert not Path("/run/cilium-lab/demo").exists()
