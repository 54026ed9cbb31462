"""The file that says which clients may see which namespaces.

    clients:
      - names: [team-a.example.org]     # common name, DNS name, URI or address of a certificate
        groups: [team-a]                # or organization of its subject
        namespaces: [shop, shop-test]
      - names: ["*.hubble-relay.cilium.io"]
        namespaces: ["*"]               # all
    others: []                          # namespaces of everybody else; none when left out

A client gets the namespaces of all rules that name it. Names are compared as they are: `*` is a
letter like any other in them, and a wildcard in `namespaces` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cilium_core.access.limits import MOST_NAMESPACES, Limits
from cilium_core.errors import ForbiddenError, InvalidError

if TYPE_CHECKING:
    from pathlib import Path

_ALL: Final = "*"
_RULE_KEYS = frozenset({"names", "groups", "namespaces"})


class RulesError(InvalidError):
    """A file of rules that cannot be used."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who a certificate says that a client is."""

    names: tuple[str, ...]
    """Common name and alternative names, at least one for a certificate of any use."""
    groups: tuple[str, ...] = ()

    @classmethod
    def of_certificate(cls, certificate: Mapping[str, Any]) -> Client:
        """From what `ssl.SSLSocket.getpeercert` gives; empty for no certificate."""
        subject = [pair for part in certificate.get("subject", ()) for pair in part]
        names = [value for key, value in subject if key == "commonName"]
        names += [value for _, value in certificate.get("subjectAltName", ())]
        groups = [value for key, value in subject if key == "organizationName"]
        return cls(tuple(dict.fromkeys(names)), tuple(groups))

    def __str__(self) -> str:
        return f"client {self.names[0]}" if self.names else "a client without certificate"


@dataclass(frozen=True, slots=True)
class Rule:
    """Namespaces of whoever has one of the names or groups."""

    names: frozenset[str]
    groups: frozenset[str]
    namespaces: frozenset[str]

    def names_client(self, client: Client) -> bool:
        """Whether the rule is about a client."""
        return not self.names.isdisjoint(client.names) or not self.groups.isdisjoint(client.groups)


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a file."""

    rules: tuple[Rule, ...]
    others: frozenset[str] = frozenset()

    def limits(self, client: Client) -> Limits | None:
        """What a client may see, None for everything. Raises ForbiddenError for too much."""
        given = [rule.namespaces for rule in self.rules if rule.names_client(client)]
        namespaces = frozenset().union(*given) if given else self.others
        if _ALL in namespaces:
            return None
        if len(namespaces) > MOST_NAMESPACES:
            raise ForbiddenError(
                f"{client} gets {len(namespaces)} namespaces of several rules, and "
                f'{MOST_NAMESPACES} is the most; give "*" for all'
            )
        return Limits(namespaces, str(client))


def read_rules(path: Path) -> Rules:
    """The rules of a file. Raises RulesError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"rules of access {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RulesError(f"rules of access {path} are not YAML: {error}") from error
    try:
        return parse_rules(content)
    except RulesError as error:
        raise RulesError(f"rules of access {path}: {error}") from error


def parse_rules(content: object) -> Rules:
    """Rules from what YAML or JSON gave. Raises RulesError."""
    top = _mapping(content, "the file", frozenset({"clients", "others"}))
    clients = top.get("clients")
    clients = [] if clients is None else clients
    if not isinstance(clients, list):
        raise RulesError("clients: must be a list of rules")
    rules = []
    for number, each in enumerate(clients):
        where = f"clients[{number}]"
        rule = _mapping(each, where, _RULE_KEYS)
        names, groups = (_texts(rule, key, where) for key in ("names", "groups"))
        if not names and not groups:
            raise RulesError(f"{where}: names or groups must say who it is about")
        if "namespaces" not in rule:
            raise RulesError(f'{where}: namespaces are missing; give names, or "*" for all')
        rules.append(Rule(names, groups, _namespaces(rule, "namespaces", where)))
    return Rules(tuple(rules), _namespaces(top, "others", "the file"))


def _mapping(value: object, where: str, keys: frozenset[str]) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RulesError(f"{where}: must have the keys {', '.join(sorted(keys))}")
    for key in value:
        if key not in keys:
            raise RulesError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(keys))}")
    return value


def _texts(rule: Mapping[str, Any], key: str, where: str) -> frozenset[str]:
    values = rule.get(key)
    values = [] if values is None else values
    if not isinstance(values, list) or not all(isinstance(one, str) and one for one in values):
        raise RulesError(f"{where}: {key} must be a list of names")
    return frozenset(values)


def _namespaces(rule: Mapping[str, Any], key: str, where: str) -> frozenset[str]:
    values = _texts(rule, key, where)
    if len(values) > MOST_NAMESPACES and _ALL not in values:
        raise RulesError(
            f"{where}: {key}: {len(values)} names, and {MOST_NAMESPACES} is the most; "
            'give "*" for all'
        )
    for value in values:
        if value != _ALL and (not value.replace("-", "").isalnum() or len(value) > 63):
            raise RulesError(
                f'{where}: {key}: {value!r} is no name of a namespace; patterns other than "*" '
                "are not known"
            )
    return values
