"""Older spellings of Cilium policies, rewritten into the real schema before it is checked.

The forms are recognised by their shape and never overlap with what the real schema allows, so a
valid object is never touched. Each conversion leaves a warning for the user.

The one form that matters to security is a list item with `action: Deny`: read without it, the item
would *allow* what it was meant to block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cilium_core.policy.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOT_IN_DENY = ("toFQDNs", "authentication")


@dataclass(slots=True)
class Conversion:
    """The outcome of rewriting one object.

    `moved` maps the path of a list item as converted to its path as the user wrote it, for
    messages.
    """

    obj: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)

    def written_path(self, path: str) -> str:
        """The path of a field as the user wrote it."""
        for new, old in self.moved.items():
            if path == new or path.startswith((f"{new}.", f"{new}[")):
                return old + path[len(new) :]
        return path


def convert(obj: Mapping[str, Any]) -> Conversion:
    """Rewrite the older forms of a Cilium policy object; the object itself is not changed."""
    conversion = Conversion(dict(obj))
    if isinstance(spec := obj.get("spec"), dict):
        conversion.obj["spec"] = _convert_rule(spec, "spec", conversion)
    if isinstance(specs := obj.get("specs"), list):
        conversion.obj["specs"] = [
            _convert_rule(spec, f"specs[{index}]", conversion) if isinstance(spec, dict) else spec
            for index, spec in enumerate(specs)
        ]
    return conversion


def _convert_rule(rule: dict[str, Any], path: str, conversion: Conversion) -> dict[str, Any]:
    for direction in ("ingress", "egress"):
        items = rule.get(direction)
        if isinstance(items, list) and any(_has_action(item) for item in items):
            rule = _convert_direction(rule, direction, path, conversion)
    return rule


def _has_action(item: object) -> bool:
    return isinstance(item, dict) and "action" in item


def _convert_direction(
    rule: dict[str, Any], direction: str, path: str, conversion: Conversion
) -> dict[str, Any]:
    """Sort the items of one direction into the allow and the deny list."""
    deny_list = f"{direction}Deny"
    present = rule.get(deny_list)
    denies = list(present) if isinstance(present, list) else []
    allows: list[Any] = []
    only_legacy = not present
    for index, item in enumerate(rule[direction]):
        old_path = f"{path}.{direction}[{index}]"
        action = item.get("action") if _has_action(item) else "Allow"
        rest = (
            {key: value for key, value in item.items() if key != "action"}
            if _has_action(item)
            else item
        )
        if not isinstance(action, str) or action.lower() not in {"allow", "deny"}:
            conversion.problems.append(
                Problem(
                    f"{old_path}.action", "must be Allow or Deny, or better: use the *Deny lists"
                )
            )
        elif action.lower() == "allow":
            only_legacy = False
            conversion.moved[f"{path}.{direction}[{len(allows)}]"] = old_path
            allows.append(rest)
        else:
            conversion.moved[f"{path}.{deny_list}[{len(denies)}]"] = old_path
            conversion.warnings.append(
                f"{old_path}: `action: Deny` was read as an item of {deny_list}; write it there"
            )
            denies.append(_convert_deny_item(rest, old_path, conversion))
    result = {key: value for key, value in rule.items() if key != direction}
    if allows:
        result[direction] = allows
    if denies:
        result[deny_list] = denies
        if only_legacy:
            _open_default(result, direction, path, conversion)
    return result


def _convert_deny_item(item: dict[str, Any], path: str, conversion: Conversion) -> dict[str, Any]:
    """Check one item that becomes a deny item, and read its "port 0 of any protocol" as "all"."""
    ports = item.get("toPorts")
    for name in _NOT_IN_DENY:
        if name in item:
            conversion.problems.append(Problem(f"{path}.{name}", "cannot be part of a deny rule"))
    for index, port_rule in enumerate(ports if isinstance(ports, list) else []):
        if isinstance(port_rule, dict) and "rules" in port_rule:
            conversion.problems.append(
                Problem(f"{path}.toPorts[{index}].rules", "cannot be part of a deny rule")
            )
    match ports:
        case [{"ports": [{"port": "0" | 0 as port, **rest}], **others}] if (
            port is not False and not others and _is_any({**rest})
        ):
            conversion.warnings.append(
                f'{path}.toPorts: port "0" of protocol ANY was read as all traffic, ICMP included; '
                "leave toPorts out to say so"
            )
            return {key: value for key, value in item.items() if key != "toPorts"}
    return item


def _is_any(rest: dict[object, object]) -> bool:
    protocol = rest.get("protocol", "ANY")
    return set(rest) <= {"protocol"} and isinstance(protocol, str) and protocol.upper() == "ANY"


def _open_default(rule: dict[str, Any], direction: str, path: str, conversion: Conversion) -> None:
    """Keep a pure block list from turning into a default deny, as its author meant it."""
    setting = rule.get("enableDefaultDeny")
    if setting is None:
        setting = {}
    if isinstance(setting, dict) and setting.get(direction) is None:
        rule["enableDefaultDeny"] = {**setting, direction: False}
        conversion.warnings.append(
            f"{path}.{direction}: it only blocks, so everything else stays as it was; set "
            f"enableDefaultDeny.{direction} to say so"
        )
