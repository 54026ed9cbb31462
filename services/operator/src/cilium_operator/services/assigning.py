"""Writes addresses and ports into Services: the leader's event-driven job.

All Services and pools are read and claimed, oldest first, before any is given something; then each
that changes is settled. A write holds only if the object is still what was settled, and only while
this process leads: what one operator gives no other gives too, whoever crashes when. What is
refused by that comes again as a change.

A Service that does not get what it asks for is told so by a condition and an event, and tried
again whenever something was released.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from cilium_core.errors import InvalidError, NotFoundError
from cilium_core.resources.etcd import EtcdSource
from cilium_core.resources.keys import kind_of
from cilium_core.resources.model import Change
from cilium_core.telemetry import counter, gauge, get_logger

from cilium_operator.services.allocating import Ledger, Problem
from cilium_operator.services.balancing import SATISFIED, PoolBook, is_served
from cilium_operator.services.conditions import Condition, has, with_conditions
from cilium_operator.services.reading import (
    LOAD_BALANCER,
    Name,
    age_key,
    mapping,
    name_of,
    spec_of,
    type_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cilium_core.kvstore import Compare, Store
    from cilium_core.records import Address, Network
    from cilium_core.resources.announcing import Announcer
    from cilium_core.resources.keys import Kind
    from cilium_core.resources.model import Object, ObjectEvent

log = get_logger()

SERVICES = gauge(
    "cilium_operator_services", "Services by whether they have all that they ask for.", "satisfied"
)
WRITES = counter("cilium_operator_service_writes_total", "Services and pools written.", "kind")

ALLOCATED: Final = "cilium.io/Allocated"
"""Condition of a Service that has, or had, trouble with its cluster addresses or node ports."""

_AT_ONCE: Final = 64
"""Writes under way at a time."""

_SERVICE: Final = kind_of("Service")
_POOL: Final = kind_of("CiliumLoadBalancerIPPool")


class ServiceAssigner:
    """Knows all Services and pools for the time of one leadership."""

    def __init__(
        self,
        store: Store,
        networks: Sequence[Network],
        ports: range,
        announcer: Announcer,
        *,
        balance: bool = True,
        fence: Callable[[], list[Compare]] = list,
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """Give cluster addresses of `networks` and node ports of `ports`.

        Load balancers get addresses if `balance`. `fence` gives the conditions under which this
        process may write; `on_pass` is called whenever everything known is settled.
        """
        self._source = EtcdSource(store)
        self._ledger = Ledger(networks, ports)
        self._book = PoolBook()
        self._announcer = announcer
        self._balance = balance
        self._fence = fence
        self._on_pass = on_pass
        self._services: dict[Name, Object] = {}
        self._dirty: set[Name] = set()
        self._waiting: set[Name] = set()
        """Services that lack something."""
        self._synced: set[str] = set()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Claim what is stored, then settle what changes, for ever. Raises what the store does."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(_SERVICE))
                group.create_task(self._follow(_POOL))
                group.create_task(self._settle_always())
        except* Exception as errors:
            raise errors.exceptions[0] from None

    async def _follow(self, kind: Kind) -> None:
        async with aclosing(self._source.watch(kind)) as events:
            async for event in events:
                if event.change is Change.SYNCED:
                    self._synced.add(kind.name)
                    if len(self._synced) == 2:
                        self._claim_all()
                elif event.change is not Change.UNREADABLE:
                    (self._observe if kind is _SERVICE else self._observe_pool)(event)
                if len(self._synced) == 2:
                    self._wake.set()

    def _observe(self, event: ObjectEvent) -> None:
        name = name_of(event.object)
        if event.change is Change.DELETE:
            self._services.pop(name, None)
            self._dirty.discard(name)
            self._waiting.discard(name)
            self._ledger.release(name)
            self._book.release(name)
            self._dirty |= self._waiting
        else:
            self._services[name] = event.object
            self._dirty.add(name)
            if len(self._synced) == 2:
                self._ledger.claim(event.object)  # before anybody is given what it chose

    def _observe_pool(self, event: ObjectEvent) -> None:
        if event.change is Change.DELETE:
            self._book.remove_pool(event.object["metadata"]["name"])
        else:
            known = [one for one in self._book.pools() if name_of(one) == name_of(event.object)]
            self._book.put_pool(event.object)
            if known and _essence(known[0]) == _essence(event.object):
                return  # its status only
        self._dirty |= {name for name, item in self._services.items() if is_served(item)}

    def _claim_all(self) -> None:
        """Let the oldest claim first, and those before all who were told that they had no claim."""
        ordered = sorted(
            self._services.values(),
            key=lambda item: (has(item.get("status"), ALLOCATED, "False"), age_key(item)),
        )
        for item in ordered:
            self._ledger.claim(item)
            self._book.claim(item)

    async def _settle_always(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                batch = sorted(self._dirty, key=lambda name: age_key(self._services[name]))
                for at in range(0, len(batch), _AT_ONCE):
                    # What is decided is noted at once; only the writing takes its time.
                    here = [name for name in batch[at : at + _AT_ONCE] if name in self._dirty]
                    self._dirty.difference_update(here)
                    news = [one for name in here if (one := self._settle(name)) is not None]
                    await asyncio.gather(*(self._write(*one) for one in news))
            await self._write_pools()
            SERVICES.replace(
                {
                    ("true",): len(self._services) - len(self._waiting),
                    ("false",): len(self._waiting),
                }
            )
            self._on_pass()

    def _settle(self, name: Name) -> tuple[Object, Object, list[Condition]] | None:
        """Decide what a Service has; gives old and new version and its conditions if it is news."""
        item = self._services[name]
        before = self._ledger.holding(name) | self._book.holding(name)
        spec, problems = self._ledger.settle(item)
        conditions, dropped = _judge(problems, item)
        status = dict(mapping(item.get("status")))
        settled = {**item, "spec": spec}
        if self._balance and is_served(item):
            found, condition = self._book.settle(settled)
            conditions.append(condition)
            status["loadBalancer"] = _ingress(found)
        else:
            self._book.release(name)
            dropped.append(SATISFIED)
            if type_of(spec_of(item)) != LOAD_BALANCER:
                status.pop("loadBalancer", None)
        status = with_conditions(status, conditions, dropped)
        (self._waiting.add if any(one.bad for one in conditions) else self._waiting.discard)(name)
        if before - self._ledger.holding(name) - self._book.holding(name):
            self._dirty |= self._waiting - {name}
        if status:
            settled["status"] = status
        else:
            settled.pop("status", None)
        return (item, settled, conditions) if settled != item else None

    async def _write(self, item: Object, settled: Object, conditions: list[Condition]) -> None:
        if not await self._source.replace(item, settled, self._fence()):
            return  # it changed meanwhile, which comes as an event; or we lead no more
        WRITES.add(1, "Service")
        name = "/".join(name_of(item))
        spec = spec_of(settled)
        log.info(
            "service settled",
            service=name,
            cluster_ips=spec.get("clusterIPs") or [],
            status=settled.get("status", {}).get("loadBalancer", {}),
        )
        for one in conditions:
            news = with_conditions(item.get("status"), [one]) != mapping(item.get("status"))
            if one.bad and news:
                log.warning("service not satisfied", service=name, problem=one.message)
                await self._announcer.announce(item, one.reason, one.message)

    async def _write_pools(self) -> None:
        for item in self._book.pools():
            name = item["metadata"]["name"]
            conditions = self._book.conditions_of_pool(name)
            if with_conditions(item.get("status"), conditions) == mapping(item.get("status")):
                continue

            def change(current: Object, wanted: list[Condition] = conditions) -> Object | None:
                status = with_conditions(current.get("status"), wanted)
                return None if status == mapping(current.get("status")) else status

            try:
                if await self._source.update_status(_POOL, "", name, change, self._fence()):
                    WRITES.add(1, _POOL.name)
            except (NotFoundError, InvalidError):
                continue


def _judge(problems: list[Problem], item: Object) -> tuple[list[Condition], list[str]]:
    """The condition about cluster addresses and node ports; none where there never was trouble."""
    if problems:
        message = "; ".join(problem.message for problem in problems)
        return [Condition(ALLOCATED, "False", problems[0].reason, message)], []
    if has(item.get("status"), ALLOCATED, "False"):
        return [Condition(ALLOCATED, "True", "Satisfied")], []
    return [], []


def _ingress(found: list[Address]) -> dict[str, Any]:
    return {"ingress": [{"ip": str(one), "ipMode": "VIP"} for one in found]} if found else {}


def _essence(pool: Object) -> Any:
    return pool.get("spec"), "deletionTimestamp" in pool["metadata"]
