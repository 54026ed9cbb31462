# SPDX-License-Identifier: Apache-2.0
"""Reads YAML files into objects that still know where each field was written.

Errors name file and line: a user mends all of a file's problems in one go. YAML that would make a
program suffer (aliases that multiply, endless nesting) is refused before it is expanded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from cilium_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SUFFIXES = {".yaml", ".yml", ".json"}
_MAX_NODES = 100_000
_MAX_DEPTH = 64
_MAX_BYTES = 16 << 20


class Document(NamedTuple):
    """One object of a file."""

    object: dict[str, Any]
    file: str
    lines: dict[str, int]
    """Line by path of the field, such as `spec.ingress[0].toPorts`; "" is the object itself."""

    def where(self, path: str = "") -> str:
        """Return `file:line` of the field, or of the nearest one around it that was written."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return f"{self.file}:{self.lines.get(path, 1)}"


def read(names: Iterable[str], *, recursive: bool = False) -> list[Document]:
    """Read files, folders of YAML and JSON files, or `-` for stdin. Raises InputError."""
    return [document for name in names for document in _read_one(name, recursive=recursive)]


def _read_one(name: str, *, recursive: bool) -> Iterator[Document]:
    if name == "-":
        yield from parse(sys.stdin.read(), "stdin")
        return
    path = Path(name)
    if path.is_dir():
        found = path.rglob("*") if recursive else path.iterdir()
        files = sorted(file for file in found if file.suffix in _SUFFIXES)
        if not files:
            raise InputError(f"{name}: no YAML or JSON file in this folder")
    else:
        files = [path]
    for file in files:
        try:
            if file.stat().st_size > _MAX_BYTES:
                raise InputError(f"{file}: larger than {_MAX_BYTES >> 20} MiB; split it")
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 text: {error.reason}") from error
        yield from parse(text, str(file))


def parse(text: str, file: str) -> list[Document]:
    """Read the objects of one text; a `List` stands for its items."""
    found: list[Document] = []
    try:
        loader = yaml.SafeLoader(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                if node is None:
                    break
                lines: dict[str, int] = {}
                _index(node, file, lines)
                found += _split(loader.construct_document(node), file, lines)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise InputError(f"{file}{_line_of(error)}: not valid YAML: {_reason(error)}") from error
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise InputError(f"{file}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{file}: nested too deeply") from error
    return found


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


def _reason(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable"


def _index(root: yaml.Node, file: str, lines: dict[str, int]) -> None:
    """Note the line of every field; refuse duplicate keys and what is too large or deep."""
    pending: list[tuple[yaml.Node, str, int]] = [(root, "", 0)]
    count = 0
    while pending:
        node, path, depth = pending.pop()
        line = node.start_mark.line + 1
        lines.setdefault(path, line)
        count += 1
        if count > _MAX_NODES or depth > _MAX_DEPTH:
            raise InputError(
                f"{file}:{line}: more than {_MAX_NODES} values or {_MAX_DEPTH} levels", "split it"
            )
        if isinstance(node, yaml.SequenceNode):
            pending += ((item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value))
        elif isinstance(node, yaml.MappingNode):
            seen: set[tuple[str, str]] = set()
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else "?"
                at = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and (key.tag, name) in seen:
                    raise InputError(f"{file}:{at}: key {name[:80]!r} is written twice")
                seen.add((key.tag, name))
                child = f"{path}.{name}" if path else name
                lines.setdefault(child, at)
                pending.append((value, child, depth + 1))


def _split(value: Any, file: str, lines: dict[str, int]) -> Iterator[Document]:
    if value is None:
        return
    document = Document(value, file, lines)
    if not isinstance(value, dict):
        raise InputError(f"{document.where()}: expected an object, got {type(value).__name__}")
    if value.get("kind") != "List":
        yield document
        return
    items = value.get("items")
    if not isinstance(items, list):
        raise InputError(f"{document.where('items')}: items of a List must be a list")
    for number, item in enumerate(items):
        prefix = f"items[{number}]"
        own = {
            path.removeprefix(prefix).removeprefix("."): line
            for path, line in lines.items()
            if path == prefix or path.startswith((f"{prefix}.", f"{prefix}["))
        }
        yield from _split(item if item is not None else 0, file, own)
