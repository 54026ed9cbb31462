"""Checks files of objects without a cluster: the line and the field of everything wrong.

Policies of all kinds are checked, CIDR groups, and Cilium's other objects.

One wrong object, or even a file that stops being YAML half-way, hides nothing about the others.
Objects that are no policies are told as such, and what only sounds like a policy is an error, since
a misspelt kind would otherwise pass for checked.
Pure: takes texts, gives values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from cilium_core.objects import checking
from cilium_core.policy.errors import PolicyError, UnsupportedPolicyError
from cilium_core.resources.documents import Document, DocumentError, read_documents
from cilium_core.resources.keys import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cilium_core.policy.options import PolicyOptions

_NAMESPACED: Final = {kind.name for kind in KINDS if kind.namespaced} & checking.KINDS
_SOUNDS: Final = ("networkpolicy", "cidrgroup", "redirectpolicy")
"""What is in the names of kinds that nobody may take for checked when they were not."""


class Outcome(Enum):
    """What became of one object."""

    VALID = "valid"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    """Well formed, and refused all the same for a field that nothing enforces yet."""

    SKIPPED = "skipped"
    """Of a kind that is not checked."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to say about a field; `path` is empty for the object as a whole."""

    line: int
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True, slots=True)
class CheckedObject:
    """One object of a file with all that is to be said about it.

    `line` is its first one. `kind` and `name` (`namespace/name` where there is a namespace) are
    empty as far as the object does not say.
    """

    source: str
    line: int
    kind: str
    name: str
    outcome: Outcome
    errors: tuple[Remark, ...] = ()
    warnings: tuple[Remark, ...] = field(default=())

    @property
    def label(self) -> str:
        """What to call the object, such as `NetworkPolicy default/web`."""
        return " ".join(part for part in (self.kind, self.name) if part) or "object"


def check_texts(
    texts: Iterable[tuple[str, str]], options: PolicyOptions | None = None
) -> Iterator[CheckedObject]:
    """Check the objects of several texts, each given after the name to call it by."""
    first: dict[tuple[str, str], str] = {}
    for source, text in texts:
        documents = read_documents(text, source)
        while True:
            try:
                document = next(documents, None)
            except DocumentError as error:
                yield _unreadable(source, str(error))
                break
            if document is None:
                break
            yield _check(document, options, first)


def _unreadable(source: str, text: str) -> CheckedObject:
    """The rest of a file that cannot be read; the text begins with `source:line: `."""
    number, _, message = text.removeprefix(f"{source}:").partition(": ")
    line = int(number)
    return CheckedObject(source, line, "", "", Outcome.INVALID, (Remark(line, "", message),))


def _check(
    document: Document, options: PolicyOptions | None, first: dict[tuple[str, str], str]
) -> CheckedObject:
    kind, name = _names(document.object)
    here = (document.source, document.line, kind, name)
    if kind not in checking.KINDS:
        if kind and not any(word in kind.lower() for word in _SOUNDS):
            return CheckedObject(*here, Outcome.SKIPPED)
        known = ", ".join(sorted(checking.KINDS))
        wrong = Remark(document.line_of("kind"), "kind", f"must be one of {known}")
        return CheckedObject(*here, Outcome.INVALID, (wrong,))
    try:
        checked = checking.check(document.object, options)
    except PolicyError as error:
        unsupported = isinstance(error, UnsupportedPolicyError)
        errors = tuple(
            Remark(document.line_of(problem.path), problem.path, problem.message)
            for problem in error.problems
        )
        outcome = Outcome.UNSUPPORTED if unsupported else Outcome.INVALID
        return CheckedObject(*here, outcome, errors)
    warnings = [_warning(document, text) for text in checked.warnings]
    place = f"{document.source}:{document.line}"
    earlier = first.setdefault((kind, name), place)
    if earlier != place:
        line = document.line_of("metadata.name")
        message = f"the object at {earlier} has the same name; the later one replaces it"
        warnings.append(Remark(line, "metadata.name", message))
    return CheckedObject(*here, Outcome.VALID, warnings=tuple(warnings))


def _warning(document: Document, text: str) -> Remark:
    path, _, message = text.partition(": ")
    return Remark(document.line_of(path), path, message)


def _names(obj: dict[str, Any]) -> tuple[str, str]:
    """Kind and `namespace/name` as far as the object says."""
    kind, metadata = obj.get("kind"), obj.get("metadata")
    kind = kind[:64] if isinstance(kind, str) else ""
    if not isinstance(metadata, dict):
        return kind, ""
    namespace = metadata.get("namespace")
    if not namespace and kind in _NAMESPACED:
        namespace = "default"
    parts = (part[:253] for part in (namespace, metadata.get("name")) if isinstance(part, str))
    return kind, "/".join(part for part in parts if part)
