"""Tests of the DNS proxy with real packets need root."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.needing import need_root

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    need_root("making network namespaces")
    with tempfile.TemporaryDirectory(prefix="tD-") as path:
        yield Path(path)
