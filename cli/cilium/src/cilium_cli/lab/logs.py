# SPDX-License-Identifier: Apache-2.0
"""Prints what the lab's processes wrote."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, BinaryIO

import click

from cilium_cli.errors import NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from cilium_cli.lab.layouts import Layout

_POLL_S = 0.1


def show(lab: Layout, name: str | None, *, follow: bool, tail: int | None) -> None:
    """Print one log, or all with their names in front; with `follow` go on until interrupted."""
    files = {path.stem: path for path in sorted(lab.logs.glob("*.log"))}
    if name is not None:
        files = _select(files, name)
    prefixed = len(files) > 1
    width = max((len(stem) for stem in files), default=0)
    readers: dict[str, BinaryIO] = {}
    try:
        for stem, path in files.items():
            readers[stem] = path.open("rb")
            lines = readers[stem].read().splitlines()
            shown = lines if tail is None else lines[max(len(lines) - tail, 0) :]
            _print(shown, f"{stem:<{width}}  " if prefixed else "")
        while follow:
            for stem, reader in readers.items():
                _print(reader.read().splitlines(), f"{stem:<{width}}  " if prefixed else "")
            time.sleep(_POLL_S)
    finally:
        for reader in readers.values():
            reader.close()


def _select(files: dict[str, Path], name: str) -> dict[str, Path]:
    flat = name.replace("/", "-")
    pod = f"pod-{name.replace('/', '.')}"
    found = {
        stem: path
        for stem, path in files.items()
        if stem in {flat, pod, f"pod-default.{name}"} or stem.startswith(f"{flat}-")
    }
    if not found:
        raise NotFoundError(f"there is no log of {name!r}", f"there are {', '.join(files)}")
    return found


def _print(lines: list[bytes], prefix: str) -> None:
    for line in lines:
        click.echo(f"{prefix}{line.decode(errors='replace')}")
