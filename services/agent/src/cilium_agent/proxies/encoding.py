"""Redirects as JSON values, for the file that remembers which port enforces what.

The form follows the dataclasses field by field, so a new field needs no code here. Sets are sorted:
equal redirects have equal texts, in every process.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from cilium_core.errors import InvalidError
from cilium_core.policy.l7 import HttpRule, KafkaRule, Redirect

_KEY_HEX_DIGITS = 16


def encode(value: Any) -> Any:
    """A value as JSON knows it; fields at their defaults are left out."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: (getattr(value, field.name), field.default) for field in fields(value)}
        return {name: encode(now) for name, (now, default) in named.items() if now != default}
    if isinstance(value, frozenset):
        return sorted((encode(item) for item in value), key=json.dumps)
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


def decode(document: Any) -> Redirect:
    """The redirect that `encode` made a document of. Raises `InvalidError`."""
    try:
        return typing.cast("Redirect", _decode(Redirect, document))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InvalidError(f"not a redirect: {error}") from error


@lru_cache(maxsize=4096)
def key(redirect: Redirect) -> str:
    """A name for a redirect made of its content: 16 hexadecimal digits."""
    text = json.dumps(encode(redirect), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=_KEY_HEX_DIGITS // 2).hexdigest()


def describe(redirect: Redirect) -> str:
    """One line for people, such as `ingress http: GET /api/v1/.*; POST /x`."""
    head = f"{'ingress' if redirect.ingress else 'egress'} {redirect.kind.value}"
    if redirect.allow_all:
        return f"{head}: everything"
    parts = rules(redirect)
    if redirect.server_names:
        parts.append("server names " + ", ".join(sorted(redirect.server_names)))
    return f"{head}: {'; '.join(parts) or 'nothing'}"


def rules(redirect: Redirect) -> list[str]:
    """What is allowed, one line each, such as `GET /api/v1/.*`."""
    return [
        *(_http(rule) for rule in redirect.http),
        *(rule.name or rule.pattern for rule in redirect.dns),
        *(_kafka(rule) for rule in redirect.kafka),
    ]


def _http(rule: HttpRule) -> str:
    words = [rule.method, rule.path]
    if rule.host:
        words.append(f"host {rule.host}")
    words += [f"header {match.name}" for match in rule.headers]
    return " ".join(word for word in words if word) or "every request"


def _kafka(rule: KafkaRule) -> str:
    words = []
    if rule.api_keys:
        words.append("keys " + ",".join(map(str, sorted(rule.api_keys))))
    if rule.api_version is not None:
        words.append(f"version {rule.api_version}")
    if rule.client_id:
        words.append(f"client {rule.client_id}")
    if rule.topic:
        words.append(f"topic {rule.topic}")
    return " ".join(words) or "every request"


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(kind: Any, document: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if document is None:
            return None
        (kind,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
        return _decode(kind, document)
    if origin in (tuple, frozenset):
        if not isinstance(document, list):
            raise TypeError(f"expected a list, got {document!r}")
        return origin(_decode(typing.get_args(kind)[0], item) for item in document)
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple
        hints = _hints(kind)
        return kind(
            *(_decode(one, item) for one, item in zip(hints.values(), document, strict=True))
        )
    if is_dataclass(kind):
        make: Any = kind
        hints = _hints(make)
        return make(**{name: _decode(hints[name], item) for name, item in document.items()})
    if issubclass(kind, Enum):
        return kind(document)
    if type(document) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {document!r}")
    return document
