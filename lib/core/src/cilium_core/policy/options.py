"""The options that change what a policy means.

They are fixed when the engine is made: a changed option needs a new engine, which parses and
resolves everything again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from cilium_core.errors import InvalidError
from cilium_core.identities import Families
from cilium_core.labels import DEFAULT_CLUSTER

if TYPE_CHECKING:
    from collections.abc import Iterable


class EnforcementMode(Enum):
    """When endpoints are enforced (option `enable-policy`)."""

    DEFAULT = "default"
    """In the directions in which a rule selects the endpoint."""

    ALWAYS = "always"
    """Every endpoint, in both directions."""

    NEVER = "never"
    """No endpoint; rules have no effect."""


class HeaderRegex(Enum):
    """When the value of an HTTP header in `headers` is a regular expression (`header-regex`)."""

    AUTO = "auto"
    """When it is unmistakably written as one."""

    NEVER = "never"
    """Never: values are compared as they are."""

    ALWAYS = "always"
    """Whenever it compiles."""


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """Settings of the policy engine, with the users' option named beside each."""

    cluster: str = DEFAULT_CLUSTER
    """`cluster-name`: the cluster that peers belong to when they name none."""

    families: Families = field(default_factory=Families)
    """`enable-ipv4`, `enable-ipv6`: they decide which label the outside world carries."""

    enforcement: EnforcementMode = EnforcementMode.DEFAULT
    """`enable-policy`."""

    default_local_cluster: bool = True
    """`policy-default-local-cluster`: peers that name no cluster mean the own one."""

    non_default_deny: bool = True
    """`enable-non-default-deny-policies`: honour `enableDefaultDeny: false`."""

    allow_localhost: bool = True
    """`allow-localhost`: the node itself always reaches its pods, unless a rule denies it."""

    icmp_rules: bool = True
    """`enable-icmp-rules`: accept `icmps`."""

    extended_protocols: bool = False
    """`enable-extended-ip-protocols`: accept VRRP, IGMP and items without a port."""

    l7_proxy: bool = True
    """`enable-l7-proxy`: accept rules for HTTP, DNS, Kafka and TLS."""

    header_regex: HeaderRegex = HeaderRegex.AUTO
    """`header-regex`."""

    node_selector_labels: bool = False
    """`enable-node-selector-labels`: accept `fromNodes` and `toNodes`."""

    host_firewall: bool = False
    """`enable-host-firewall`: enforce policies for nodes; without it they have no effect."""

    ip_block_pods: bool = False
    """`network-policy-ip-block-pods`: the `ipBlock` of a NetworkPolicy means pods inside too."""

    lenient_fields: bool = False
    """Leave unknown fields out, with a warning, where they cannot restrict anything."""


PERMISSIVE: Final = PolicyOptions(
    extended_protocols=True, node_selector_labels=True, host_firewall=True
)
"""Options under which everything is accepted that some cluster could enforce.

For those who store objects and do not know how the cluster is set up."""

_SWITCHES: Final = {
    "enable-extended-ip-protocols": "extended_protocols",
    "enable-host-firewall": "host_firewall",
    "enable-icmp-rules": "icmp_rules",
    "enable-l7-proxy": "l7_proxy",
    "enable-node-selector-labels": "node_selector_labels",
    "enable-non-default-deny-policies": "non_default_deny",
    "network-policy-ip-block-pods": "ip_block_pods",
    "policy-default-local-cluster": "default_local_cluster",
}
_VALUES: Final = {"true": True, "false": False}


def with_settings(options: PolicyOptions, settings: Iterable[str]) -> PolicyOptions:
    """The options with some set as `name=value`, under the names that users know.

    Raises `InvalidError` for other names and values.
    """
    changes: dict[str, Any] = {}
    for text in settings:
        name, _, value = text.partition("=")
        name, value = name.strip(), value.strip().lower()
        if name == "cluster-name" and value:
            changes["cluster"] = value
        elif name == "header-regex" and value in {one.value for one in HeaderRegex}:
            changes["header_regex"] = HeaderRegex(value)
        elif name in _SWITCHES and value in _VALUES:
            changes[_SWITCHES[name]] = _VALUES[value]
        else:
            known = ", ".join((*_SWITCHES, "cluster-name", "header-regex"))
            raise InvalidError(f"{text[:80]!r} is not name=value of one of {known}")
    return replace(options, **changes)
