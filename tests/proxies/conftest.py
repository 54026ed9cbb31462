"""One Envoy a module; skipped where namespaces cannot be made, but for CI."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.needing import need, need_root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.proxies.networks import Node


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    need_root("making network namespaces")
    need("" if shutil.which("nft") else "nft is not installed")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory, _able: None) -> AsyncIterator[Node]:
    """The network, with an Envoy; an HTTP server listens on port 80 of the server."""
    from tests.proxies.networks import running
    from tests.proxies.origins import serving

    state_dir: Path = tmp_path_factory.mktemp("state")
    async with running(state_dir) as made, serving(made.namespaces, 80):
        yield made
