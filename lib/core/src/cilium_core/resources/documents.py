"""YAML files to objects, remembering on which line each field stands.

Reads what `kubectl apply -f` reads: several documents in one file, and `kind: List`. Refuses what
would be read differently than meant: duplicate keys, anchors that blow up, documents that are no
objects. Errors name the source and the line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from cilium_core.errors import InvalidError
from cilium_core.resources.keys import identify

if TYPE_CHECKING:
    from collections.abc import Iterator

Path = tuple[str | int, ...]

_MOST_NODES = 200_000
_DEEPEST = 100
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DocumentError(InvalidError):
    """A document cannot be used; the text begins with `source:line:`."""


@dataclass(frozen=True, slots=True)
class Document:
    """An object as read, with where it was read."""

    object: dict[str, Any]
    source: str
    line: int
    _lines: dict[Path, int] = field(default_factory=dict, repr=False)
    _at: Path = ()

    def line_of(self, path: str) -> int:
        """Give the line of a field written as `spec.ingress[0].toPorts`.

        Where the path leads nowhere, the line of its deepest part that exists.
        """
        words: list[str | int] = [*self._at]
        best = self.line
        for part in path.replace("]", "").replace("[", ".").split("."):
            words.append(int(part) if part.isdecimal() else part)
            if (line := self._lines.get(tuple(words))) is None:
                break
            best = line
        return best

    def error(self, text: str) -> DocumentError:
        """Make an error out of `field.path: what is wrong`, adding source and line."""
        path = text.partition(":")[0]
        return DocumentError(f"{self.source}:{self.line_of(path)}: {text}")


def load_documents(text: str, source: str) -> list[Document]:
    """Read all objects of a YAML text; `source` names it in errors.

    Each object has a known kind, a name, and a namespace unless cluster-wide.
    Raises DocumentError.
    """
    found: list[Document] = []
    for item in read_documents(text, source):
        try:
            kind, namespace, _name = identify(item.object)
        except InvalidError as error:
            raise item.error(str(error)) from None
        if kind.namespaced:
            item.object["metadata"]["namespace"] = namespace
        found.append(item)
    return found


def read_documents(text: str, source: str) -> Iterator[Document]:
    """Read the objects of a YAML text one by one as they are written, of whatever kind.

    Raises DocumentError where the text is not YAML or a document is no object; what stands before
    has been given by then.
    """
    for document in _parse(text, source):
        yield from _expand(document)


def _parse(text: str, source: str) -> Iterator[Document]:
    loader = None
    try:
        _check_depth(text, source)
        loader = _Loader(text)
        while loader.check_node():
            node: Any = loader.get_node()
            reader = _Reader(source)
            value = reader.value(node, (), 0)
            line = node.start_mark.line + 1
            if value is None:
                continue
            if not isinstance(value, dict):
                raise DocumentError(
                    f"{source}:{line}: the document is no object but a "
                    f"{'list' if isinstance(value, list) else 'plain value'}"
                )
            yield Document(value, source, line, reader.lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise DocumentError(f"{source}:{line}: not valid YAML: {problem}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _check_depth(text: str, source: str) -> None:
    """Refuse deep nesting before nodes are composed, which recurses in C and would crash."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _DEEPEST:
                    line = event.start_mark.line + 1 if event.start_mark else 1
                    raise DocumentError(f"{source}:{line}: the document is too deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError:
        return  # composing gets no further than this either, and then says so


def _expand(document: Document) -> list[Document]:
    if document.object.get("kind") != "List":
        return [document]
    items = document.object.get("items")
    if not isinstance(items, list):
        raise document.error("items: a List must hold a list of objects")
    found = []
    for number, item in enumerate(items):
        at: Path = ("items", number)
        line = document._lines.get(at, document.line)
        if not isinstance(item, dict):
            raise DocumentError(f"{document.source}:{line}: items[{number}] is no object")
        found.append(Document(item, document.source, line, document._lines, at))
    return found


class _Reader:
    """Builds plain values from YAML nodes, noting the line of each path."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[Path, int] = {}
        self._scalars = yaml.constructor.SafeConstructor()
        self._count = 0

    def value(self, node: Any, path: Path, depth: int) -> Any:
        self._count += 1
        line = node.start_mark.line + 1
        if self._count > _MOST_NODES or depth > _DEEPEST:
            raise DocumentError(f"{self.source}:{line}: the document is too large or too deep")
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.value(child, (*path, at), depth + 1) for at, child in enumerate(node.value)
            ]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if node.tag == "tag:yaml.org,2002:timestamp":
            return node.value  # a date is text in JSON
        try:
            return self._scalars.construct_object(node)
        except yaml.constructor.ConstructorError as error:
            raise DocumentError(f"{self.source}:{line}: {error.problem}") from None
        except (ValueError, LookupError, ArithmeticError) as error:
            raise DocumentError(f"{self.source}:{line}: {error}") from None

    def _mapping(self, node: Any, path: Path, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise DocumentError(f"{self.source}:{line}: a key must be plain text")
            key = key_node.value
            if key in result:
                raise DocumentError(f"{self.source}:{line}: the key {key!r} stands here twice")
            self.lines[*path, key] = line
            result[key] = self.value(value_node, (*path, key), depth + 1)
        return result
