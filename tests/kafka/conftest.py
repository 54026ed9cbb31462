"""Tests of the Kafka proxy with real packets need root."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.needing import need, need_root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.kafka.network import Lab


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    need_root("making network namespaces")
    need("" if shutil.which("nft") else "nft is not installed")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lab(_able: None) -> AsyncIterator[Lab]:
    """The network with a broker, and the proxy in front of it."""
    from tests.kafka.network import running

    with tempfile.TemporaryDirectory(prefix="kafka-") as state_dir:
        async with running(Path(state_dir)) as made:
            yield made
