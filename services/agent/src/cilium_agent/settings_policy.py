"""Settings about policy; key names and meanings are Cilium's where Cilium has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cilium_core.settings import Seconds, setting


@dataclass(frozen=True)
class PolicySettings:
    """What policies mean and how they are enforced."""

    enable_policy: Literal["default", "always", "never"] = setting(
        "default",
        "default enforces where a policy selects the pod, always everywhere, never nowhere.",
        group="Policy",
    )
    allow_localhost: Literal["auto", "always", "policy"] = setting(
        "auto",
        "Whether the node itself may always reach its pods; auto means always.",
        group="Policy",
    )
    policy_audit_mode: bool = setting(
        False, "Report what policy would deny and let it pass.", group="Policy"
    )
    policy_default_local_cluster: bool = setting(
        True, "Peers that name no cluster mean the own one.", group="Policy"
    )
    enable_non_default_deny_policies: bool = setting(
        True, "Honour enableDefaultDeny in policies.", group="Policy"
    )
    enable_icmp_rules: bool = setting(True, "Accept icmps in policies.", group="Policy")
    enable_extended_ip_protocols: bool = setting(
        False, "Accept VRRP, IGMP and items without a port in policies.", group="Policy"
    )
    enable_node_selector_labels: bool = setting(
        False,
        "Accept fromNodes and toNodes in policies; gives every node an identity of its own.",
        group="Policy",
    )
    policy_cidr_match_mode: Literal["", "nodes"] = setting(
        "",
        "What CIDR rules mean beside addresses outside the cluster: nothing, or nodes, by their "
        "own addresses.",
        group="Policy",
    )
    network_policy_ip_block_pods: bool = setting(
        False,
        "Have the ipBlock of a NetworkPolicy mean pods and nodes inside it, not only addresses "
        "outside the cluster.",
        group="Policy",
    )
    enable_host_firewall: bool = setting(
        False, "Enforce policies that select nodes on the node itself.", group="Policy"
    )
    header_regex: Literal["auto", "never", "always"] = setting(
        "auto",
        "When an HTTP header in a policy is a regular expression: auto when it is written as one, "
        "never, or always.",
        group="Policy",
    )
    static_cnp_path: Path | None = setting(
        None,
        "Folder of files with CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and "
        "NetworkPolicy objects that this node enforces beside those of the store.",
        group="Policy",
    )
    labels: str = setting(
        "",
        "Further expressions, separated by blanks, that decide which labels make an identity; "
        "a leading ! leaves labels out.",
        group="Policy",
    )
    identity_change_grace_period: Seconds = setting(
        5.0,
        "How long a running pod keeps its old identity after its labels changed, so that other "
        "nodes learn the new one first.",
        group="Policy",
    )
    bpf_policy_map_max: int = setting(
        16384, "Most policy entries of one endpoint.", group="Maps", low=256, high=65536
    )
    enable_endpoint_lockdown_on_policy_overflow: bool = setting(
        False,
        "Have an endpoint drop everything while its policy does not fit into its map; otherwise "
        "what fits and opens nothing is enforced.",
        group="Policy",
    )
