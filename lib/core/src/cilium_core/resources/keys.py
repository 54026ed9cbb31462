"""The kinds of objects we know, and the key of each object in etcd.

Imported by short-lived programs: standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cilium_core.errors import InvalidError

PREFIX = "cilium/resources/v1/"
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object. `group` is empty for Kubernetes' core group."""

    name: str
    group: str
    version: str
    plural: str
    aliases: tuple[str, ...] = ()
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """Give `group/version`, or the version alone for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def prefix(self) -> str:
        """Give the prefix below which the objects lie in etcd."""
        return f"{PREFIX}{self.group or 'core'}/{self.plural}/"

    def key(self, namespace: str, name: str) -> str:
        """Give the key of an object; the namespace of a cluster-wide kind is ignored."""
        return f"{self.prefix}{namespace if self.namespaced else '-'}/{name}"

    def from_key(self, key: str) -> tuple[str, str]:
        """Give namespace (empty for a cluster-wide kind) and name of a key."""
        namespace, _slash, name = key.removeprefix(self.prefix).partition("/")
        return (namespace if self.namespaced else ""), name


_CILIUM = "cilium.io"
_TIERS = "policy.networking.k8s.io"

KINDS: tuple[Kind, ...] = (
    Kind("Pod", "", "v1", "pods", ("pod", "po")),
    Kind("Namespace", "", "v1", "namespaces", ("namespace", "ns"), namespaced=False),
    Kind("Node", "", "v1", "nodes", ("node", "no"), namespaced=False),
    Kind("Service", "", "v1", "services", ("service", "svc")),
    Kind("EndpointSlice", "discovery.k8s.io", "v1", "endpointslices", ("endpointslice", "eps")),
    Kind("ServiceAccount", "", "v1", "serviceaccounts", ("serviceaccount", "sa")),
    Kind("Secret", "", "v1", "secrets", ("secret",)),
    Kind("Event", "", "v1", "events", ("event", "ev")),
    Kind(
        "NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies", ("networkpolicy", "netpol")
    ),
    Kind(
        "CiliumNetworkPolicy",
        _CILIUM,
        "v2",
        "ciliumnetworkpolicies",
        ("ciliumnetworkpolicy", "cnp", "ciliumnp"),
    ),
    Kind(
        "CiliumClusterwideNetworkPolicy",
        _CILIUM,
        "v2",
        "ciliumclusterwidenetworkpolicies",
        ("ciliumclusterwidenetworkpolicy", "ccnp"),
        namespaced=False,
    ),
    Kind(
        "CiliumCIDRGroup",
        _CILIUM,
        "v2",
        "ciliumcidrgroups",
        ("ciliumcidrgroup", "ccg"),
        namespaced=False,
    ),
    Kind(
        "CiliumLocalRedirectPolicy",
        _CILIUM,
        "v2",
        "ciliumlocalredirectpolicies",
        ("ciliumlocalredirectpolicy", "clrp"),
    ),
    Kind(
        "AdminNetworkPolicy",
        _TIERS,
        "v1alpha1",
        "adminnetworkpolicies",
        ("adminnetworkpolicy", "anp"),
        namespaced=False,
    ),
    Kind(
        "BaselineAdminNetworkPolicy",
        _TIERS,
        "v1alpha1",
        "baselineadminnetworkpolicies",
        ("baselineadminnetworkpolicy", "banp"),
        namespaced=False,
    ),
    # Its own short name, cnp, has always meant CiliumNetworkPolicy here.
    Kind(
        "ClusterNetworkPolicy",
        _TIERS,
        "v1alpha2",
        "clusternetworkpolicies",
        ("clusternetworkpolicy",),
        namespaced=False,
    ),
    Kind(
        "CiliumEndpoint",
        _CILIUM,
        "v2",
        "ciliumendpoints",
        ("ciliumendpoint", "cep", "ciliumep"),
    ),
    Kind(
        "CiliumEndpointSlice",
        _CILIUM,
        "v2alpha1",
        "ciliumendpointslices",
        ("ciliumendpointslice", "ces"),
        namespaced=False,
    ),
    Kind(
        "CiliumIdentity",
        _CILIUM,
        "v2",
        "ciliumidentities",
        ("ciliumidentity", "ciliumid"),
        namespaced=False,
    ),
    Kind(
        "CiliumNode",
        _CILIUM,
        "v2",
        "ciliumnodes",
        ("ciliumnode", "cn", "ciliumn"),
        namespaced=False,
    ),
    Kind(
        "CiliumPodIPPool",
        _CILIUM,
        "v2alpha1",
        "ciliumpodippools",
        ("ciliumpodippool", "cpip"),
        namespaced=False,
    ),
    Kind(
        "CiliumLoadBalancerIPPool",
        _CILIUM,
        "v2",
        "ciliumloadbalancerippools",
        ("ciliumloadbalancerippool", "ippools", "ippool", "lbippool", "lbippools"),
        namespaced=False,
    ),
    Kind(
        "CiliumExternalWorkload",
        _CILIUM,
        "v2",
        "ciliumexternalworkloads",
        ("ciliumexternalworkload", "cew"),
        namespaced=False,
    ),
)

_BY_WORD: dict[str, Kind] = {
    word.lower(): kind for kind in KINDS for word in (kind.name, kind.plural, *kind.aliases)
}


def kind_of(word: str) -> Kind:
    """Find a kind by its name, plural or alias, in any case. Raises InvalidError."""
    kind = _BY_WORD.get(word.lower())
    if kind is None:
        known = ", ".join(kind.name for kind in KINDS)
        raise InvalidError(f"the kind {word!r} is not known; known are {known}")
    return kind


def kind_of_object(item: dict[str, Any]) -> Kind:
    """Find the kind of an object by its `kind` and `apiVersion`. Raises InvalidError."""
    word, api_version = item.get("kind"), item.get("apiVersion")
    if not isinstance(word, str) or not word:
        raise InvalidError("kind: missing; write for example `kind: CiliumNetworkPolicy`")
    kind = _BY_WORD.get(word.lower())
    if kind is None or kind.name != word:
        hint = f"; did you mean {kind.name}?" if kind else ""
        raise InvalidError(f"kind: {word!r} is not known{hint}")
    if not isinstance(api_version, str) or api_version.partition("/")[0] != (
        kind.group or api_version
    ):
        raise InvalidError(
            f"apiVersion: {kind.name} needs {kind.api_version!r}, got {api_version!r}"
        )
    return kind


def identify(item: dict[str, Any]) -> tuple[Kind, str, str]:
    """Give kind, namespace (empty when cluster-wide, `default` when left out) and name.

    Raises InvalidError that begins with the path of the wrong field.
    """
    kind = kind_of_object(item)
    metadata = item.get("metadata")
    if not isinstance(metadata, dict):
        raise InvalidError("metadata: missing; it must hold at least a name")
    name = metadata.get("name")
    if not isinstance(name, str) or len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        raise InvalidError(
            f"metadata.name: {name!r} is not a name; use lower-case letters, digits, "
            "dashes and dots"
        )
    if not kind.namespaced:
        if metadata.get("namespace"):
            raise InvalidError(
                f"metadata.namespace: {kind.name} is cluster-wide; remove the namespace"
            )
        return kind, "", name
    namespace = metadata.get("namespace") or "default"
    if not isinstance(namespace, str) or len(namespace) > 63 or not _LABEL.fullmatch(namespace):
        raise InvalidError(f"metadata.namespace: {namespace!r} is not the name of a namespace")
    return kind, namespace, name


def key_of(item: dict[str, Any]) -> str:
    """Give the etcd key of an object. Raises InvalidError."""
    kind, namespace, name = identify(item)
    return kind.key(namespace, name)
