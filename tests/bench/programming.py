"""Services into the kernel: all at once, and one that changed. Ours, iptables, nftables.

Ours is what the agent does with services that it has worked out: ids given, backends and
frontends written, in a data plane of its own. The others are given finished text.
"""

from __future__ import annotations

import ipaddress
import subprocess
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from cilium_core.policy.ports import Protocol
from cilium_core.services.models import (
    Backend,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
    ServiceName,
)

from tests.bench import balancers, report
from tests.bench.peers import PORT
from tests.bpf.conftest import CACHE
from tests.bpf.harness import Plane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHANGES: Final = 10
BACKENDS: Final = ipaddress.IPv4Address("10.88.0.2")
"""The first; no two services share one, as a rule."""


def rows(count: int) -> Iterator[report.Row]:
    """So many services, then one of them with other backends; needs root."""
    table = [
        _with_own_backends(service, at) for at, service in enumerate(balancers.services(count, ""))
    ]
    mine, one = _ours(table)
    for name, kind in (("iptables", balancers.Iptables), ("nftables", balancers.Nftables)):
        with _namespace(f"bench-programming-{name}") as namespace:
            rival = kind(namespace)
            whole = rival.program(table)
            theirs = [rival.change(changed, at) for changed, at in _changes(table)]
        label = f"{count:,} services programmed"
        yield report.compare(label, "s", [mine], name, [whole], "<=", 1.0)
        label = f"one of {count:,} services changed"
        peer = [value * 1000 for value in theirs]
        yield report.compare(label, "ms", [v * 1000 for v in one], name, peer, "<=", 1.0)


def _with_own_backends(service: balancers.Service, at: int) -> balancers.Service:
    count = len(service.backends)
    backends = [(str(BACKENDS + at * count + number), PORT) for number in range(count)]
    return service._replace(backends=tuple(backends))


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def _changes(
    table: Sequence[balancers.Service],
) -> Iterator[tuple[list[balancers.Service], int]]:
    """Tables in which one more service has lost a backend, and which."""
    changed = list(table)
    for number in range(CHANGES):
        at = number * len(table) // CHANGES
        changed[at] = changed[at]._replace(backends=changed[at].backends[:1])
        yield changed, at


def _ours(table: Sequence[balancers.Service]) -> tuple[float, list[float]]:
    """Seconds for all, and for each change."""
    sizes = {"cilium_lb4_services_v2": 65536}
    plane = Plane(CACHE, sizes=sizes)
    try:
        frontends = [frontend(service) for service in table]
        whole = _timed(lambda: plane.services.apply(frontends, ()))
        one = []
        for changed, at in _changes(table):
            update = frontend(changed[at])
            one.append(_timed(partial(plane.services.apply, [update], ())))
        return whole, one
    finally:
        plane.close()


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def frontend(service: balancers.Service) -> Frontend:
    """What the agent makes of the service."""
    backends = tuple(
        Backend(L4Address(ipaddress.ip_address(address), port, Protocol.TCP))
        for address, port in service.backends
    )
    return Frontend(
        at=L4Address(ipaddress.ip_address(service.address), PORT, Protocol.TCP),
        scope=Scope.EXTERNAL,
        kind=FrontendKind.CLUSTER_IP,
        service=ServiceName("default", f"s{service.address.replace('.', '-')}"),
        backends=backends,
        eligible=backends,
    )
