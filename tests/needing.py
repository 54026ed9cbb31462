"""What a test cannot do without: absent, it is a skip with its reason, and in CI a failure."""

from __future__ import annotations

import os

import pytest


def need(reason: str) -> None:
    """Go on only when there is no reason against it; `reason` is empty then."""
    if not reason:
        return
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def need_root(what: str) -> None:
    """Go on only as root, which `what` needs: "loading programs"."""
    need("" if os.geteuid() == 0 else f"{what} needs root")
