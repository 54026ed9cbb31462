# SPDX-License-Identifier: Apache-2.0
r"""JSONPath templates as kubectl has them: text with paths in braces. Pure.

    {.name}                  a field; {$.name} and {name} are the same
    {.backends[0].address}   an element; negative numbers count from the end, [a:b] is a slice
    {.backends[*].address}   all elements, or all values; blanks between what is found
    {['a key']}              a field whose name is no word
    {..address}              fields of this name at any depth
    {[?(@.state=="active")]} the elements for which this holds; ==, !=, <, <=, > and >=
    {range [*]}{.name}{"\n"}{end}   the text between for each element

Of a list, `{.name}` is that of its elements, so that lists need no `[*]`.
"""

from __future__ import annotations

import json
import operator
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BRACED = re.compile(r"""\{((?:"(?:\\.|[^"\\])*"|'[^']*'|[^{}"'])*)\}""")
_STEP = re.compile(
    r"""(?P<deep>\.\.)(?P<deep_name>[\w-]+)
      | \.?\[\s*(?P<quoted>'[^']*'|"[^"]*")\s*\]
      | \.?\[\s*(?P<all>\*)\s*\]
      | \.?\[\s*(?P<slice>-?\d*:-?\d*)\s*\]
      | \.?\[\s*(?P<index>-?\d+)\s*\]
      | \.?\[\s*\?\(\s*@(?P<test>[^=!<>\s]*)\s*(?P<op>==|!=|<=|>=|<|>)\s*(?P<value>[^)]+?)\s*\)\s*\]
      | \.?(?P<every>\*)
      | \.?(?P<name>[\w-]+)
      | (?P<self>\.)$""",
    re.VERBOSE,
)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Step = tuple[str, Any]


class TemplateError(ValueError):
    """A template cannot be read."""


class Part(NamedTuple):
    """A piece of a template: a text, a path, or a range with what is in it."""

    text: str = ""
    path: tuple[Step, ...] | None = None
    body: tuple[Part, ...] | None = None


def parse(template: str) -> tuple[Part, ...]:
    """Read a template. Raises TemplateError."""
    stack: list[tuple[tuple[Step, ...], list[Part]]] = [((), [])]
    at = 0
    for found in _BRACED.finditer(template):
        if found.start() > at:
            stack[-1][1].append(_plain(template[at : found.start()]))
        at = found.end()
        inner = found[1].strip()
        if inner.startswith('"'):
            stack[-1][1].append(Part(_text(inner)))
        elif inner == "end":
            if len(stack) == 1:
                raise TemplateError("{end} has no {range} before it")
            path, body = stack.pop()
            stack[-1][1].append(Part(path=path, body=tuple(body)))
        elif inner.startswith("range "):
            stack.append((_path(inner.removeprefix("range ").strip()), []))
        else:
            stack[-1][1].append(Part(path=_path(inner)))
    if at < len(template):
        stack[-1][1].append(_plain(template[at:]))
    if len(stack) > 1:
        raise TemplateError("{range} has no {end} after it")
    return tuple(stack[0][1])


def evaluate(parts: tuple[Part, ...], document: Any) -> str:
    """Fill in a template."""
    made = []
    for part in parts:
        if part.body is not None:
            for item in _find(part.path or (), document):
                each = item if isinstance(item, list) else [item]
                made += [evaluate(part.body, one) for one in each]
        elif part.path is not None:
            made.append(" ".join(_shown(value) for value in _find(part.path, document)))
        else:
            made.append(part.text)
    return "".join(made)


def _plain(text: str) -> Part:
    if "{" in text or "}" in text:
        raise TemplateError(f"{text!r} has a brace without its other one")
    return Part(text)


def _text(quoted: str) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError as error:
        raise TemplateError(f"{quoted} is no text: {error}") from error


def _path(text: str) -> tuple[Step, ...]:
    rest = text.removeprefix("$")
    if not rest and text != "$":
        raise TemplateError("a path is missing between the braces")
    steps: list[Step] = []
    while rest and rest != ".":
        found = _STEP.match(rest)
        if found is None or not found.end():
            raise TemplateError(f"{text!r} is no path from {rest!r} on")
        steps += _step(found)
        rest = rest[found.end() :]
    return tuple(steps)


def _step(found: re.Match[str]) -> Iterator[Step]:
    if found["deep_name"]:
        yield "deep", found["deep_name"]
    elif found["quoted"]:
        yield "field", found["quoted"][1:-1]
    elif found["all"] or found["every"]:
        yield "every", None
    elif found["slice"]:
        first, last = (int(end) if end else None for end in found["slice"].split(":"))
        yield "slice", slice(first, last)
    elif found["index"]:
        yield "index", int(found["index"])
    elif found["op"]:
        value = found["value"]
        try:
            wanted = value[1:-1] if value[0] in "'\"" else json.loads(value)
        except ValueError as error:
            raise TemplateError(f"{value!r} is neither a text in quotes nor a number") from error
        yield "test", (_path(found["test"] or "$"), _OPERATORS[found["op"]], wanted)
    elif found["name"]:
        yield "field", found["name"]


def _find(path: tuple[Step, ...], document: Any) -> list[Any]:
    held = [document]
    for kind, what in path:
        held = [found for value in held for found in _follow(kind, what, value)]
    return held


def _follow(kind: str, what: Any, value: Any) -> list[Any]:
    match kind, value:
        case "field", dict():
            return [value[what]] if what in value else []
        case "field", list():
            return [found for item in value for found in _follow(kind, what, item)]
        case "every", dict():
            return list(value.values())
        case "every", list():
            return value
        case "index", list():
            return [value[what]] if -len(value) <= what < len(value) else []
        case "slice", list():
            return list(value[what])
        case "test", list():
            return [item for item in value if _holds(what, item)]
        case "deep", dict() | list():
            inner = value.values() if isinstance(value, dict) else value
            own = [value[what]] if isinstance(value, dict) and what in value else []
            return own + [found for item in inner for found in _follow(kind, what, item)]
    return []


def _holds(what: tuple[tuple[Step, ...], Callable[[Any, Any], bool], Any], item: Any) -> bool:
    path, compare, wanted = what
    try:
        return any(compare(found, wanted) for found in _find(path, item))
    except TypeError:
        return False


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
