"""The definitions: names, scope, versions and columns of each kind, beside its schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr, WithJsonSchema

from cilium_core.crds.schemas import Schema, schema_of
from cilium_core.objects import endpoints, nodes, pools
from cilium_core.policy.groups import CidrGroupSpec
from cilium_core.policy.local_redirects import LocalRedirectSpec
from cilium_core.policy.models import CiliumRule
from cilium_core.policy.models_values import Model

GROUP: Final = "cilium.io"
SCHEMA_VERSION: Final = "1.33.0"
_VERSION_LABEL: Final = "io.cilium.k8s.crd.schema.version"

Time = Annotated[StrictStr, WithJsonSchema({"type": "string", "format": "date-time"})]


class Condition(Model):
    """One thing that is known about an object."""

    type: StrictStr
    status: Literal["True", "False", "Unknown"]
    last_transition_time: Time | None = None
    observed_generation: (
        Annotated[StrictInt, WithJsonSchema({"type": "integer", "format": "int64"})] | None
    ) = None
    reason: StrictStr | None = None
    message: StrictStr | None = None


Conditions = Annotated[
    list[Condition],
    Field(
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        }
    ),
]


class DerivativePolicy(Model):
    """The state of a policy that was made out of another one."""

    annotations: dict[StrictStr, StrictStr] | None = None
    enforcing: StrictBool | None = None
    error: StrictStr | None = None
    last_updated: Time | None = None
    local_policy_revision: StrictInt | None = None
    ok: StrictBool | None = None


class PolicyStatus(Model):
    """What became of a policy."""

    conditions: Conditions | None = None
    derivative_policies: dict[StrictStr, DerivativePolicy] | None = None


class PoolStatus(Model):
    """What became of a pool."""

    conditions: Conditions | None = None


class RedirectStatus(Model):
    """What became of a local redirect."""

    ok: StrictBool | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the tables that clients print; priority 1 is for wide ones."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0
    description: str = ""

    def to_yaml(self) -> dict[str, Any]:
        """The column as a definition has it."""
        found: dict[str, Any] = {"name": self.name, "type": self.type, "jsonPath": self.path}
        if self.description:
            found["description"] = self.description
        if self.priority:
            found["priority"] = self.priority
        return found


_AGE: Final = Column("Age", ".metadata.creationTimestamp", "date")
_VALID: Final = Column("Valid", '.status.conditions[?(@.type=="Valid")].status')
_POLICY: Final = ("cilium", "ciliumpolicy")


@dataclass(frozen=True, slots=True)
class Definition:
    """One kind.

    `parts` are the fields at the top of an object, with the type of each. `older` are versions that
    are served and not stored, each with whether it is deprecated.
    """

    kind: str
    plural: str
    short: tuple[str, ...]
    version: str
    parts: dict[str, Any]
    required: tuple[str, ...] = ()
    namespaced: bool = False
    categories: tuple[str, ...] = ("cilium",)
    columns: tuple[Column, ...] = ()
    subresource: bool = False
    older: tuple[str, ...] = ()
    description: str = ""
    any_of: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The name of the definition object."""
        return f"{self.plural}.{GROUP}"

    def schema(self) -> Schema:
        """The schema of an object."""
        properties: Schema = {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            **{name: schema_of(part) for name, part in self.parts.items()},
        }
        found: Schema = {"type": "object", "required": ["metadata", *self.required]}
        if self.description:
            found = {"description": self.description, **found}
        if self.any_of:
            found["anyOf"] = [{"required": [name]} for name in self.any_of]
        return {**found, "properties": properties}

    def to_yaml(self) -> dict[str, Any]:
        """The definition object."""
        names: dict[str, Any] = {
            "categories": list(self.categories),
            "kind": self.kind,
            "listKind": f"{self.kind}List",
            "plural": self.plural,
            "shortNames": list(self.short),
            "singular": self.kind.lower(),
        }
        versions = [self._version(self.version, stored=True)]
        versions += [self._version(version, stored=False) for version in self.older]
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name, "labels": {_VERSION_LABEL: SCHEMA_VERSION}},
            "spec": {
                "group": GROUP,
                "names": names,
                "scope": "Namespaced" if self.namespaced else "Cluster",
                "versions": versions,
            },
        }

    def _version(self, name: str, *, stored: bool) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": name,
            "served": True,
            "storage": stored,
            "schema": {"openAPIV3Schema": self.schema()},
        }
        if not stored:
            found["deprecated"] = True
        if self.columns:
            found["additionalPrinterColumns"] = [column.to_yaml() for column in self.columns]
        if self.subresource:
            found["subresources"] = {"status": {}}
        return found


def _address(kind: str) -> str:
    return f'.spec.addresses[?(@.type=="{kind}")].ip'


def _condition(kind: str, part: str) -> str:
    return f'.status.conditions[?(@.type=="cilium.io/{kind}")].{part}'


_RULES: Final[dict[str, Any]] = {
    "spec": CiliumRule,
    "specs": list[CiliumRule],
    "status": PolicyStatus,
}

DEFINITIONS: Final = (
    Definition(
        "CiliumNetworkPolicy",
        "ciliumnetworkpolicies",
        ("cnp", "ciliumnp"),
        "v2",
        _RULES,
        namespaced=True,
        categories=_POLICY,
        columns=(_AGE, _VALID),
        subresource=True,
        description="Rules about the traffic of pods in one namespace.",
        any_of=("spec", "specs"),
    ),
    Definition(
        "CiliumClusterwideNetworkPolicy",
        "ciliumclusterwidenetworkpolicies",
        ("ccnp",),
        "v2",
        _RULES,
        categories=_POLICY,
        columns=(_VALID,),
        subresource=True,
        description="Rules about the traffic of pods in all namespaces, or of nodes.",
        any_of=("spec", "specs"),
    ),
    Definition(
        "CiliumCIDRGroup",
        "ciliumcidrgroups",
        ("ccg",),
        "v2",
        {"spec": CidrGroupSpec},
        ("spec",),
        older=("v2alpha1",),
        description="Address prefixes that policies refer to by one name, or by labels.",
    ),
    Definition(
        "CiliumLocalRedirectPolicy",
        "ciliumlocalredirectpolicies",
        ("clrp",),
        "v2",
        {"spec": LocalRedirectSpec, "status": RedirectStatus},
        namespaced=True,
        categories=_POLICY,
        columns=(_AGE,),
        description="Sends traffic for an address or a service to pods of the same node.",
    ),
    Definition(
        "CiliumEndpoint",
        "ciliumendpoints",
        ("cep", "ciliumep"),
        "v2",
        {"status": endpoints.EndpointStatusModel},
        namespaced=True,
        columns=(
            Column("Security Identity", ".status.identity.id", "integer"),
            Column("Ingress Enforcement", ".status.policy.ingress.state", priority=1),
            Column("Egress Enforcement", ".status.policy.egress.state", priority=1),
            Column("Endpoint State", ".status.state"),
            Column("IPv4", ".status.networking.addressing[0].ipv4"),
            Column("IPv6", ".status.networking.addressing[0].ipv6"),
        ),
        description="The state of the network of one pod.",
    ),
    Definition(
        "CiliumEndpointSlice",
        "ciliumendpointslices",
        ("ces",),
        "v2alpha1",
        {"namespace": str, "endpoints": list[endpoints.CoreEndpoint]},
        ("endpoints",),
        description="Several endpoints of one namespace.",
    ),
    Definition(
        "CiliumIdentity",
        "ciliumidentities",
        ("ciliumid",),
        "v2",
        {"security-labels": dict[str, str]},
        ("security-labels",),
        columns=(
            Column("Namespace", r".metadata.labels.io\.kubernetes\.pod\.namespace"),
            _AGE,
        ),
        subresource=True,
        description="The labels that an identity's number, which is the name, stands for.",
    ),
    Definition(
        "CiliumNode",
        "ciliumnodes",
        ("cn", "ciliumn"),
        "v2",
        {"spec": nodes.NodeSpec, "status": nodes.NodeStatusModel},
        ("spec",),
        columns=(
            Column("CiliumInternalIP", _address("CiliumInternalIP")),
            Column("InternalIP", _address("InternalIP")),
            _AGE,
        ),
        subresource=True,
        description="A node that an agent runs on.",
    ),
    Definition(
        "CiliumPodIPPool",
        "ciliumpodippools",
        ("cpip",),
        "v2alpha1",
        {"spec": pools.PodPoolSpec},
        ("spec",),
        description="Prefixes that pods get their addresses from.",
    ),
    Definition(
        "CiliumLoadBalancerIPPool",
        "ciliumloadbalancerippools",
        ("ippools", "ippool", "lbippool", "lbippools"),
        "v2",
        {"spec": pools.LoadBalancerPoolSpec, "status": PoolStatus},
        ("spec",),
        columns=(
            Column("Disabled", ".spec.disabled", "boolean"),
            Column("Conflicting", _condition("PoolConflict", "status")),
            Column("IPs Available", _condition("IPsAvailable", "message")),
            _AGE,
        ),
        subresource=True,
        older=("v2alpha1",),
        description="Addresses that services get from outside the cluster.",
    ),
    Definition(
        "CiliumExternalWorkload",
        "ciliumexternalworkloads",
        ("cew",),
        "v2",
        {"spec": nodes.WorkloadSpec, "status": nodes.WorkloadStatus},
        columns=(Column("Cilium ID", ".status.id", "integer"), Column("IP", ".status.ip")),
        subresource=True,
        description="A machine outside the cluster that takes part in it (older clusters only).",
    ),
)
