"""The names of `cilium_core.policy`, which hands them on; nothing else imports this module."""

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
