"""From text or an object to a policy in normal form, or to an error that lists what is wrong.

`parse` takes the object of any policy kind; `parse_documents` takes YAML text. Whatever the input
is, the only exception is `PolicyError`. Nothing here has side effects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cilium_core.policy import kubernetes, legacy, translating
from cilium_core.policy.errors import (
    DocumentError,
    PolicyError,
    Problem,
    UnsupportedPolicyError,
)
from cilium_core.policy.models import NOT_SUPPORTED, CiliumPolicy, KubernetesPolicy
from cilium_core.policy.options import PolicyOptions
from cilium_core.policy.translating import Findings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

    from cilium_core.policy.rules import Policy

POLICY_KINDS: Final = (
    translating.KIND_NAMESPACED,
    translating.KIND_CLUSTERWIDE,
    kubernetes.KIND,
)

_ModelT = TypeVar("_ModelT", bound=BaseModel)

_MAX_NODES: Final = 100_000
_MAX_DEPTH: Final = 64
_HINTS: Final = {
    "auth": "unknown field; it was replaced by authentication",
    "action": "unknown field; put the item into ingressDeny or egressDeny instead",
}


class _Loader(yaml.SafeLoader):
    """Plain YAML; a key written twice is an error, since one of the two would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value[:80]!r} is written twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def parse(obj: object, options: PolicyOptions | None = None) -> Policy:
    """Read one policy object of any kind. Raises `PolicyError` with every problem found."""
    options = options or PolicyOptions()
    _check_size(obj)
    if not isinstance(obj, dict):
        raise PolicyError((Problem("", "a policy must be an object with kind and metadata"),))
    subject = _subject(obj)
    kind = obj.get("kind")
    findings = Findings()
    if kind == kubernetes.KIND:
        knp = _validate(KubernetesPolicy, obj, subject)
        return kubernetes.translate(knp, obj, options, findings)
    if kind not in POLICY_KINDS:
        message = f"must be one of {', '.join(POLICY_KINDS)}"
        raise PolicyError((Problem("kind", message),), subject)
    conversion = legacy.convert(obj)
    if conversion.problems:
        raise PolicyError(tuple(conversion.problems), subject)
    findings.warnings += conversion.warnings
    model = _validate(CiliumPolicy, conversion.obj, subject, conversion)
    policy = translating.translate(model, obj, options, findings)
    if findings.problems:
        raise _error(
            tuple(
                replace(problem, path=conversion.written_path(problem.path))
                for problem in findings.problems
            ),
            subject,
        )
    return policy


def load_documents(text: str) -> list[dict[str, Any]]:
    """The objects of a YAML text of one or more documents; empty documents are left out.

    Raises `DocumentError` when the text is not YAML or a document is not an object.
    """
    try:
        loaded = list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        path = f"line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or "not readable"
        raise DocumentError((Problem(path, f"not valid YAML: {reason}"),)) from error
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise DocumentError((Problem("", f"not valid YAML: {error}"),)) from error
    except RecursionError as error:
        raise DocumentError((Problem("", "nested too deeply"),)) from error
    documents = [document for document in loaded if document is not None]
    for index, document in enumerate(documents):
        _check_size(document)
        if not isinstance(document, dict):
            problem = Problem(f"document {index + 1}", "must be an object")
            raise DocumentError((problem,))
    return documents


def parse_documents(text: str, options: PolicyOptions | None = None) -> list[Policy]:
    """Read every policy of a YAML text; a `List` object stands for its items."""
    objects: list[object] = []
    for document in load_documents(text):
        items = document.get("items")
        objects += (
            items if document.get("kind") == "List" and isinstance(items, list) else [document]
        )
    return [parse(obj, options) for obj in objects]


def _check_size(obj: object) -> None:
    """Refuse objects that are cyclic, nested deeply, or huge once YAML aliases are written out."""
    pending: list[tuple[object, int]] = [(obj, 0)]
    nodes = 0
    while pending:
        value, depth = pending.pop()
        nodes += 1
        if isinstance(value, dict):
            pending += ((part, depth + 1) for part in value.values())
        elif isinstance(value, list | tuple | set):
            pending += ((part, depth + 1) for part in value)
        if nodes + len(pending) > _MAX_NODES or depth > _MAX_DEPTH:
            message = f"has more than {_MAX_NODES} values or {_MAX_DEPTH} levels; split the policy"
            raise PolicyError((Problem("", message),))


def _subject(obj: Mapping[object, object]) -> str:
    """What to call the object in an error, as far as it says."""
    metadata = obj.get("metadata")
    names = (
        [metadata.get(key) for key in ("namespace", "name")] if isinstance(metadata, dict) else []
    )
    name = "/".join(part[:253] for part in names if isinstance(part, str) and part)
    kind = obj.get("kind")
    return " ".join(part for part in (kind[:64] if isinstance(kind, str) else "", name) if part)


def _validate(
    model: type[_ModelT],
    obj: dict[str, Any],
    subject: str,
    conversion: legacy.Conversion | None = None,
) -> _ModelT:
    try:
        return model.model_validate(obj)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems = []
        for detail in details:
            problem = _problem(detail)
            if conversion is not None:
                problem = replace(problem, path=conversion.written_path(problem.path))
            problems.append(problem)
        raise _error(tuple(problems), subject) from error


def _problem(detail: ErrorDetails) -> Problem:
    """One validation error in the users' words."""
    path = ""
    for part in detail["loc"]:
        if part == "[key]":
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)[:120]
    kind = detail["type"]
    if kind == "extra_forbidden":
        return Problem(path, _HINTS.get(str(detail["loc"][-1]), "unknown field"))
    if kind == "missing":
        return Problem(path, "is required")
    message = detail["msg"].removeprefix("Value error, ")
    return Problem(path, message, unsupported=kind == NOT_SUPPORTED)


def _error(problems: tuple[Problem, ...], subject: str) -> PolicyError:
    if all(problem.unsupported for problem in problems):
        return UnsupportedPolicyError(problems, subject)
    return PolicyError(problems, subject)
