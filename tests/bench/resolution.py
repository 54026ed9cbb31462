"""The policy engine alone: a node with much policy, and what one more of anything costs.

10,000 identities, 1,000 policies (plain, HTTP, DNS, address prefixes, NetworkPolicy, a few audited
and tiered ones) and 200 endpoints. The map writers are not part of it; what reaches them is.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from cilium_core.labels import LabelSet
from cilium_core.policy import PolicyEngine, Subject

from tests.bench import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IDENTITIES: Final = 10_000
POLICIES: Final = 1_000
ENDPOINTS: Final = 200
SPACES: Final = 20
APPS: Final = 50
CHANGES: Final = 200
FIRST_IDENTITY: Final = 1000


def labels(number: int) -> LabelSet:
    """The labels of one of the identities."""
    space, app, version = number % SPACES, number // SPACES % APPS, number // SPACES // APPS
    return LabelSet.parse(
        [
            f"k8s:io.kubernetes.pod.namespace=space{space}",
            "k8s:io.cilium.k8s.policy.cluster=default",
            f"k8s:io.cilium.k8s.namespace.labels.team=team{space % 4}",
            f"k8s:app=app{app}",
            f"k8s:version=v{version}",
        ]
    )


def policy(number: int) -> dict[str, Any]:
    """One of the policies."""
    space, app = number % SPACES, number // SPACES % APPS
    peer = (app + 1 + number % 3) % APPS
    metadata: dict[str, Any] = {"name": f"policy{number}", "namespace": f"space{space}"}
    kind = number // SPACES % 10
    if kind == 0:
        peers = [
            {"podSelector": {"matchLabels": {"app": f"app{peer}"}}},
            {"namespaceSelector": {"matchLabels": {"team": f"team{number % 4}"}}},
        ]
        ports = [{"port": 80}, {"port": 9000, "endPort": 9010}]
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata,
            "spec": {
                "podSelector": {"matchLabels": {"app": f"app{app}"}},
                "ingress": [{"from": peers, "ports": ports}],
            },
        }
    selected = {"matchLabels": {"app": f"app{peer}"}}
    port: dict[str, Any] = {"ports": [{"port": str(8000 + number % 5), "protocol": "TCP"}]}
    rule: dict[str, Any] = {"endpointSelector": {"matchLabels": {"app": f"app{app}"}}}
    match kind:
        case 1 | 2:
            port["rules"] = {"http": [{"method": "GET", "path": f"/api/v{number % 7}/.*"}]}
            rule["ingress"] = [{"fromEndpoints": [selected], "toPorts": [port]}]
        case 3:
            dns = {"ports": [{"port": "53", "protocol": "ANY"}], "rules": {"dns": [_ANY_NAME]}}
            rule["egress"] = [{"toPorts": [dns]}, {"toEndpoints": [selected], "toPorts": [port]}]
        case 4:
            rule["egress"] = [{"toCIDR": [f"10.{number % 250}.0.0/16"], "toPorts": [port]}]
        case 5:
            rule["ingressDeny"] = [{"fromEndpoints": [selected], "toPorts": [port]}]
        case 6:
            everywhere = {"matchExpressions": [{"key": _SPACE, "operator": "Exists"}]}
            rule["ingress"] = [{"fromEndpoints": [everywhere], "toPorts": [port]}]
        case _:
            rule["ingress"] = [{"fromEndpoints": [selected], "toPorts": [port]}]
            rule["egress"] = [{"toEndpoints": [selected]}]
    if kind == 9:
        metadata["annotations"] = {"policy.cilium.io/audit-mode": "true"}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": metadata,
        "spec": rule,
    }


_SPACE: Final = "k8s:io.kubernetes.pod.namespace"
_ANY_NAME: Final = {"matchPattern": "*.example.org"}


def loaded() -> PolicyEngine:
    """An engine that knows everything and has resolved nothing."""
    engine = PolicyEngine()
    for number in range(IDENTITIES):
        engine.upsert_identity(FIRST_IDENTITY + number, labels(number))
    for number in range(POLICIES):
        engine.upsert_policy(policy(number))
    for number in range(ENDPOINTS):
        engine.upsert_endpoint(number, Subject(FIRST_IDENTITY + number, labels(number)))
    return engine


def rows() -> Iterator[report.Row]:
    """Takes about a minute."""
    engine = loaded()
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    updates = engine.flush()
    full_s = time.perf_counter() - started
    gc.enable()
    entries = sum(len(update.delta.add) for update in updates)
    del updates
    yield report.told("policy entries on the node", "entries", entries)
    yield report.absolute("full resolution", "s", full_s, "<=", 20)

    for name, change in (("identity", one_more_identity), ("policy", one_more_policy)):
        taken = _changes(engine, change)
        yield report.absolute(f"one more {name}, p50", "ms", median(taken), "<=", 50)
        yield report.told(f"one more {name}, worst of {CHANGES}", "ms", max(taken))
        yield report.compare(
            f"one more {name} against resolving anew",
            "ms",
            [median(taken)],
            "everything anew",
            [full_s * 1000],
            "<=",
            1,
        )
    yield report.absolute("memory for each entry", "B", _memory(), "<=", 1536)


def one_more_identity(engine: PolicyEngine, number: int) -> None:
    """Have the engine know one more identity."""
    engine.upsert_identity(FIRST_IDENTITY + IDENTITIES + number, labels(number))


def one_more_policy(engine: PolicyEngine, number: int) -> None:
    """Have the engine know one more policy."""
    obj = policy(number)
    obj["metadata"]["name"] += "-more"
    engine.upsert_policy(obj)


def _changes(engine: PolicyEngine, change: Callable[[PolicyEngine, int], None]) -> list[float]:
    """Milliseconds that a change takes until the map writers know, for each of many."""
    taken = []
    for number in range(CHANGES):
        started = time.perf_counter()
        change(engine, number)
        engine.flush()
        taken.append((time.perf_counter() - started) * 1000)
    return taken


def _memory() -> float:
    """Bytes that resolution holds for each entry, with what it says of each endpoint's map."""
    engine = loaded()
    gc.collect()
    tracemalloc.start()
    held = {update.endpoint: update.delta.add for update in engine.flush()}
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / sum(map(len, held.values()))
