"""One lab a module; skipped where a lab cannot run, but for CI, where that is a failure."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.e2e.running import Lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root."""
    if os.geteuid() == 0 or os.environ.get("CI"):
        return
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="needs root: a lab loads eBPF programs"))


@pytest.fixture(scope="module")
def start_lab() -> Iterator[Callable[..., Lab]]:
    """Bring labs up, named after this process, and take them down; settings as KEY=VALUE."""
    started: list[Lab] = []

    def start(nodes: int, *settings: str) -> Lab:
        lab = Lab(f"e{os.getpid()}x{len(started)}")
        started.append(lab)
        options = [word for setting in settings for word in ("--config", setting)]
        lab.cilium("lab", "up", "--name", lab.name, "--nodes", str(nodes), "--quiet", *options)
        return lab

    yield start
    for lab in started:
        lab.cilium("lab", "down", "--name", lab.name)


@pytest.fixture(scope="module")
def lab(start_lab: Callable[..., Lab]) -> Lab:
    """Two nodes, which is enough for everything that is not about their number."""
    return start_lab(2)
