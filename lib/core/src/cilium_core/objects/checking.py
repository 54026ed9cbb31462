"""Checks objects of every kind that is known, policies and all others.

One function for command lines and the operator: what an object becomes once its older forms are
rewritten, what there is to warn about, or every problem of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cilium_core.objects.converting import convert
from cilium_core.policy import groups, local_redirects
from cilium_core.policy.errors import PolicyError, Problem
from cilium_core.policy.local_redirects import LocalRedirectPolicy
from cilium_core.policy.parsing import POLICY_KINDS, check_model, parse, parse_cidr_group
from cilium_core.policy.rules import Policy

if TYPE_CHECKING:
    from pydantic import BaseModel

    from cilium_core.policy.options import PolicyOptions


@dataclass(frozen=True, slots=True)
class Checked:
    """An object that is right: what to store in its place, and warnings with their paths."""

    objects: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...] = ()
    policy: Policy | None = None


def models() -> Mapping[str, type[BaseModel]]:
    """The models of the kinds that are no policies; loaded when the first is asked for."""
    from cilium_core.objects import endpoints, nodes, pools, services

    return {
        "CiliumEndpoint": endpoints.EndpointObject,
        "CiliumEndpointSlice": endpoints.EndpointSliceObject,
        "CiliumExternalWorkload": nodes.WorkloadObject,
        "CiliumIdentity": nodes.IdentityObject,
        "CiliumLoadBalancerIPPool": pools.LoadBalancerPoolObject,
        "CiliumNode": nodes.NodeObject,
        "CiliumPodIPPool": pools.PodPoolObject,
        "EndpointSlice": services.SliceObject,
        "Service": services.ServiceObject,
    }


KINDS: Final = frozenset(
    (
        *POLICY_KINDS,
        groups.KIND,
        local_redirects.KIND,
        "CiliumEndpoint",
        "CiliumEndpointSlice",
        "CiliumExternalWorkload",
        "CiliumIdentity",
        "CiliumLoadBalancerIPPool",
        "CiliumNode",
        "CiliumPodIPPool",
        "EndpointSlice",
        "Service",
    )
)
"""Every kind that can be checked."""


def check(obj: Mapping[str, Any], options: PolicyOptions | None = None) -> Checked:
    """Check an object. Raises `PolicyError` with every problem found, or for an unknown kind.

    Policies are stored as they are written, and read anew by whoever enforces them; other objects
    are stored in their real form.
    """
    kind = obj.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        problem = Problem("kind", f"must be one of {', '.join(sorted(KINDS))}")
        raise PolicyError((problem,))
    if kind in POLICY_KINDS:
        policy = parse(obj, options)
        return Checked((obj,), policy.warnings, policy)
    if kind == groups.KIND:
        return Checked((obj,), parse_cidr_group(obj).warnings)
    converted = convert(obj)
    warnings = tuple(converted.warnings)
    if kind == local_redirects.KIND:
        model: type[BaseModel] = LocalRedirectPolicy
    else:
        model = models()[kind]
    for one in converted.objects:
        check_model(model, one)
    return Checked(tuple(converted.objects), warnings)
