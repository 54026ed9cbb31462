"""Gauges that are read off the agent when somebody scrapes its metrics."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cilium_core.identities import identity_type
from cilium_core.telemetry import REGISTRY, counter, gauge, get_logger

from cilium_agent.servicers.dumps import direction_text, reason_text

if TYPE_CHECKING:
    from cilium_agent.app import Agent

log = get_logger()

ENDPOINTS = gauge("cilium_endpoint_state", "Endpoints by state.", "endpoint_state")
ALL_ENDPOINTS = gauge("cilium_endpoint", "Endpoints of the node.")
PRESSURE = gauge("cilium_bpf_map_pressure", "Fill of the fullest map of its kind.", "map_name")
CAPACITY_OF_MAPS = gauge("cilium_bpf_map_capacity", "Entries that maps can hold.", "map_group")
POLICIES = gauge("cilium_policy", "Policies in force.")
REVISION = gauge("cilium_policy_max_revision", "Highest policy revision of the repository.")
ENFORCED = gauge(
    "cilium_policy_endpoint_enforcement_status", "Endpoints by enforcement.", "enforcement"
)
IDENTITIES = gauge("cilium_identity", "Identities known.", "type")
CAPACITY = gauge("cilium_ipam_capacity", "Addresses that pods can have.", "family")
ADDRESSES = gauge("cilium_ip_addresses", "Addresses in use.", "family")
FAILING = gauge("cilium_controllers_failing", "Controllers whose last run failed.")
RUNS = counter("cilium_controllers_runs_total", "Runs of controllers.", "status")
FORWARDED = counter("cilium_forward_count_total", "Packets forwarded.", "direction")
FORWARDED_BYTES = counter("cilium_forward_bytes_total", "Bytes forwarded.", "direction")
DROPPED = counter("cilium_drop_count_total", "Packets dropped.", "reason", "direction")
DROPPED_BYTES = counter("cilium_drop_bytes_total", "Bytes dropped.", "reason", "direction")

_FIRST_DROP = 130


def register(agent: Agent) -> None:
    """Refresh the gauges before each scrape."""
    REGISTRY.on_collect(lambda: _refresh(agent))


def _refresh(agent: Agent) -> None:
    _control_plane(agent)
    if agent.ready:
        _data_plane(agent)


def _control_plane(agent: Agent) -> None:
    engine, pool = agent.policies.engine, agent.addresses.pool
    endpoints = [e for e in agent.table if e.alive]
    states = Counter(e.state.value for e in endpoints)
    ALL_ENDPOINTS.set(len(endpoints))
    agent.proxies.refresh_metrics()
    agent.names.refresh_metrics()
    ENDPOINTS.replace({(state,): count for state, count in states.items()})
    enforced = Counter(
        {(True, True): "both", (True, False): "ingress", (False, True): "egress"}.get(
            (e.ingress_enforced, e.egress_enforced), "none"
        )
        for e in endpoints
    )
    ENFORCED.replace({(direction,): count for direction, count in enforced.items()})
    POLICIES.set(len(engine.repository))
    REVISION.set(engine.revision)
    kinds = Counter(identity_type(number).value for number in engine.selectors.identities)
    IDENTITIES.replace({(kind,): count for kind, count in kinds.items()})
    for version in (4, 6):
        CAPACITY.set(pool.capacity(version), f"ipv{version}")
        ADDRESSES.set(pool.used(version), f"ipv{version}")
    FAILING.set(len(agent.controllers.failing()))
    runs = [controller.status for controller in agent.controllers]
    failed = sum(status.failures for status in runs)
    RUNS.set(sum(status.runs for status in runs) - failed, "success")
    RUNS.set(failed, "failure")


def _data_plane(agent: Agent) -> None:
    settings = agent.settings
    PRESSURE.set(agent.upkeep.policy_pressure, "cilium_policy")
    CAPACITY_OF_MAPS.set(settings.bpf_policy_map_max, "policy")
    CAPACITY_OF_MAPS.set(settings.bpf_ct_global_tcp_max, "ct_tcp")
    CAPACITY_OF_MAPS.set(settings.bpf_ct_global_any_max, "ct_any")
    CAPACITY_OF_MAPS.set(settings.bpf_nat_global_max, "nat")
    packets: Counter[tuple[int, str]] = Counter()
    volume: Counter[tuple[int, str]] = Counter()
    for item in agent.upkeep.counters:
        key = (item.reason, direction_text(item.direction))
        packets[key] += item.packets
        volume[key] += item.bytes
    for (reason, direction), count in packets.items():
        if reason == 0:
            FORWARDED.set(count, direction)
            FORWARDED_BYTES.set(volume[reason, direction], direction)
        elif reason >= _FIRST_DROP:
            DROPPED.set(count, reason_text(reason), direction)
            DROPPED_BYTES.set(volume[reason, direction], reason_text(reason), direction)
