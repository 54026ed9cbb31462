"""Keeps the settings of whoever runs the tests out of them."""

import os

import pytest


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch, tmp_path):
    for name in os.environ:
        if name.startswith("HUBBLE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HUBBLE_CONFIG", str(tmp_path / "none.yaml"))
