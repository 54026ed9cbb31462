"""From an object to a policy in normal form, or to an error that lists what is wrong.

Objects come from YAML files or the key-value store, which check nothing of a policy. Whatever the
object is, the only exception is `PolicyError`. Nothing here has side effects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from cilium_core.policy import (
    groups,
    kubernetes,
    legacy,
    lenience,
    patterns,
    tiers,
    translating,
)
from cilium_core.policy.errors import (
    PolicyError,
    Problem,
    UnsupportedPolicyError,
)
from cilium_core.policy.findings import Findings
from cilium_core.policy.models import CiliumPolicy
from cilium_core.policy.models_kubernetes import KubernetesPolicy
from cilium_core.policy.options import PolicyOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic_core import ErrorDetails

    from cilium_core.policy.groups import CidrGroup
    from cilium_core.policy.rules import Policy

POLICY_KINDS: Final = (
    translating.KIND_NAMESPACED,
    translating.KIND_CLUSTERWIDE,
    kubernetes.KIND,
    *tiers.KINDS,
)

_LEGACY_KINDS: Final = (translating.KIND_NAMESPACED, translating.KIND_CLUSTERWIDE)
_MODELS: Final[Mapping[str, type[BaseModel]]] = {
    **dict.fromkeys(_LEGACY_KINDS, CiliumPolicy),
    kubernetes.KIND: KubernetesPolicy,
    **tiers.MODELS,
}

_ModelT = TypeVar("_ModelT", bound=BaseModel)

_MAX_NODES: Final = 100_000
_MAX_DEPTH: Final = 64
_MOST_PEERS: Final = 200_000
_MOST_PAIRS: Final = 1_000_000
"""Ports are counted in prefixes: a range is up to 30."""

_HINTS: Final = {
    "auth": "unknown field; it was replaced by authentication",
    "action": "unknown field; put the item into ingressDeny or egressDeny instead",
}


def parse(obj: object, options: PolicyOptions | None = None) -> Policy:
    """Read one policy object of any kind. Raises `PolicyError` with every problem found."""
    obj, subject = _object(obj)
    try:
        with patterns.limited():
            policy = _parse(obj, subject, options or PolicyOptions())
    except patterns.ExpressionsTooLargeError:
        message = "its regular expressions are too large together; shorten them or split the policy"
        raise PolicyError((Problem("", message),), subject) from None
    _check_extent(policy, subject)
    return policy


def _parse(obj: dict[str, Any], subject: str, options: PolicyOptions) -> Policy:
    kind = obj.get("kind")
    findings = Findings()
    if not isinstance(kind, str) or kind not in POLICY_KINDS:
        message = f"must be one of {', '.join(POLICY_KINDS)}"
        raise PolicyError((Problem("kind", message),), subject)
    conversion = legacy.convert(obj) if kind in _LEGACY_KINDS else legacy.Conversion(obj)
    if conversion.problems:
        raise PolicyError(tuple(conversion.problems), subject)
    findings.warnings += conversion.warnings
    if options.lenient_fields:
        _leave_out(_MODELS[kind], conversion, findings)
    model = _validate(_MODELS[kind], conversion.obj, subject, conversion)
    policy = _translate(model, obj, options, findings)
    if findings.problems:
        problems = (
            replace(problem, path=conversion.written_path(problem.path))
            for problem in findings.problems
        )
        raise _error(tuple(problems), subject)
    if conversion.moved:
        rules = (replace(rule, path=conversion.written_path(rule.path)) for rule in policy.rules)
        policy = replace(policy, rules=tuple(rules))
    return policy


def _check_extent(policy: Policy, subject: str) -> None:
    """Refuse what would take long to resolve on every node, whoever it selects."""
    peers = sum(len(rule.peers or ()) for rule in policy.rules)
    if peers > _MOST_PEERS:
        message = f"its port lists have {peers} peers, all told; more than {_MOST_PEERS} may not be"
        raise PolicyError((Problem("", f"{message}: split the policy"),), subject)
    pairs = sum(max(1, len(rule.peers or ())) * len(rule.prefixes) for rule in policy.rules)
    if pairs > _MOST_PAIRS:
        message = f"it names {pairs} pairs of peers and ports; more than {_MOST_PAIRS} may not be"
        raise PolicyError((Problem("", f"{message}: split the policy"),), subject)


def _translate(
    model: BaseModel, obj: dict[str, Any], options: PolicyOptions, findings: Findings
) -> Policy:
    if isinstance(model, CiliumPolicy):
        return translating.translate(model, obj, options, findings)
    if isinstance(model, KubernetesPolicy):
        return kubernetes.translate(model, obj, options, findings)
    assert isinstance(model, tiers.TierModel)  # noqa: S101 - all kinds there are
    return tiers.translate(model, obj, options, findings)


def _leave_out(model: type[BaseModel], conversion: legacy.Conversion, findings: Findings) -> None:
    """Take unknown fields out that cannot restrict anything, if nothing else is wrong."""
    try:
        model.model_validate(conversion.obj)
    except ValidationError as error:
        places = lenience.droppable(error.errors(include_url=False, include_input=False))
        for place in places or ():
            findings.warn(_path(place), "unknown field; it was left out")
        conversion.obj = lenience.without(conversion.obj, places or ())


def parse_cidr_group(obj: object) -> CidrGroup:
    """Read one CiliumCIDRGroup. Raises `PolicyError` with every problem found."""
    checked, subject = _object(obj)
    return groups.translate(_validate(groups.CidrGroupObject, checked, subject))


def check_model(model: type[_ModelT], obj: object) -> _ModelT:
    """Read an object of another kind by its model. Raises `PolicyError` with every problem."""
    checked, subject = _object(obj)
    return _validate(model, checked, subject)


def _object(obj: object) -> tuple[dict[str, Any], str]:
    """The object, if it is one of a decent size, and what to call it in an error."""
    _check_size(obj)
    if not isinstance(obj, dict):
        raise PolicyError((Problem("", "must be an object with kind and metadata"),))
    return obj, _subject(obj)


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
    path = _path(detail["loc"])
    kind = detail["type"]
    if kind == "extra_forbidden":
        return Problem(path, _HINTS.get(str(detail["loc"][-1]), "unknown field"))
    if kind == "missing":
        return Problem(path, "is required")
    message = detail["msg"].removeprefix("Value error, ")
    return Problem(path, message)


def _path(place: Sequence[str | int]) -> str:
    path = ""
    for part in place:
        if part == "[key]":
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)[:120]
    return path


def _error(problems: tuple[Problem, ...], subject: str) -> PolicyError:
    if all(problem.unsupported for problem in problems):
        return UnsupportedPolicyError(problems, subject)
    return PolicyError(problems, subject)
