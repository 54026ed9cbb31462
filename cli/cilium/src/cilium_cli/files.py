# SPDX-License-Identifier: Apache-2.0
"""Reads the YAML and JSON files a user names: files, folders, `-` for standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_core.resources.documents import Document, DocumentError, load_documents

from cilium_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SUFFIXES = {".yaml", ".yml", ".json"}
_MAX_BYTES = 16 << 20


def read(names: Iterable[str], *, recursive: bool = False) -> list[Document]:
    """Return the objects of all files, each knowing its lines. Raises InputError naming places."""
    return [
        document
        for name in names
        for source, text in texts(name, recursive=recursive)
        for document in _load(text, source)
    ]


def texts(name: str, *, recursive: bool) -> Iterator[tuple[str, str]]:
    """Give the name and text of a file, of those in a folder, or of standard input for `-`.

    Raises InputError.
    """
    if name == "-":
        yield "stdin", _text("stdin", sys.stdin.buffer.read(_MAX_BYTES + 1))
        return
    path = Path(name)
    if path.is_dir():
        found = path.rglob("*") if recursive else path.iterdir()
        files = sorted(file for file in found if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise InputError(f"{name}: no YAML or JSON file in this folder")
    else:
        files = [path]
    for file in files:
        try:
            with file.open("rb") as opened:
                content = opened.read(_MAX_BYTES + 1)
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from error
        yield str(file), _text(str(file), content)


def _text(source: str, content: bytes) -> str:
    if len(content) > _MAX_BYTES:
        raise InputError(f"{source}: larger than {_MAX_BYTES >> 20} MiB", "split it")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}:{line}: not UTF-8 text ({error.reason})") from error


def _load(text: str, source: str) -> list[Document]:
    try:
        return load_documents(text, source)
    except DocumentError as error:
        raise InputError(str(error)) from error
