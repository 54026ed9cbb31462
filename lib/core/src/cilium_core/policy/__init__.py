"""The policy engine: from policy objects and identities to the entries of policy maps.

    parse(obj) ──▶ Policy (rules in normal form) ──▶ Repository ─┐
    groups, services, addresses ─▶ (bound into rules about them) ┤
    identities ──▶ SelectorCache ────────────────────────────────┼─▶ resolved ──▶ map changes
    pods' ports ─▶ NamedPorts ───────────────────────────────────┘

`PolicyEngine` ties these together and is what an agent uses; the parts stand on their own for tools
that only validate or explain. All of it is pure computation: no I/O, no clock, no threads. Input
that is wrong in any way raises `PolicyError`, which lists every problem with the path of its field,
and never changes what is enforced.
"""

from cilium_core.policy.caching import CachedSelector, SelectorCache
from cilium_core.policy.cookies import Cookie, CookieTable
from cilium_core.policy.engines import BindingChange, EndpointUpdate, PolicyChange, PolicyEngine
from cilium_core.policy.entries import (
    EndpointPolicy,
    PolicyDelta,
    PolicyEntry,
    PolicyKey,
    look_up,
)
from cilium_core.policy.errors import (
    PolicyError,
    Problem,
    UnsupportedPolicyError,
)
from cilium_core.policy.groups import CidrGroup, CidrGroups
from cilium_core.policy.named_ports import NamedPorts
from cilium_core.policy.options import EnforcementMode, PolicyOptions
from cilium_core.policy.parsing import POLICY_KINDS, parse, parse_cidr_group
from cilium_core.policy.plans import Subject
from cilium_core.policy.ports import ContainerPort, Protocol
from cilium_core.policy.prefixes import PrefixChange, PrefixIdentities
from cilium_core.policy.repositories import Repository, RepositoryChange
from cilium_core.policy.rules import (
    Direction,
    Origin,
    Policy,
    PolicyRef,
    Rule,
    Verdict,
    precedence,
)

__all__ = [
    "POLICY_KINDS",
    "BindingChange",
    "CachedSelector",
    "CidrGroup",
    "CidrGroups",
    "ContainerPort",
    "Cookie",
    "CookieTable",
    "Direction",
    "EndpointPolicy",
    "EndpointUpdate",
    "EnforcementMode",
    "NamedPorts",
    "Origin",
    "Policy",
    "PolicyChange",
    "PolicyDelta",
    "PolicyEngine",
    "PolicyEntry",
    "PolicyError",
    "PolicyKey",
    "PolicyOptions",
    "PolicyRef",
    "PrefixChange",
    "PrefixIdentities",
    "Problem",
    "Protocol",
    "Repository",
    "RepositoryChange",
    "Rule",
    "SelectorCache",
    "Subject",
    "UnsupportedPolicyError",
    "Verdict",
    "look_up",
    "parse",
    "parse_cidr_group",
    "precedence",
]
