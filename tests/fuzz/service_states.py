"""Services change in every order, agents restart, and the maps always say what they should.

`FrontendMachine` changes frontends as such, with full maps, ids used again, and connections and
affinities that remember them. `ObjectMachine` changes the objects they are made from, and compares
with a table that is told of all objects at once.
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath import maps, specs
from cilium_agent.datapath.services import Services
from cilium_core import abi
from cilium_core.policy.ports import Protocol
from cilium_core.services import (
    Algorithm,
    Backend,
    BackendState,
    Frontend,
    FrontendKind,
    L4Address,
    NodeFacts,
    Scope,
    ServiceName,
    ServiceOptions,
    ServiceTable,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.fuzz.service_maps import SIZES, backends_by_id, expected, names_by_id, read

if TYPE_CHECKING:
    from cilium_agent.datapath.maps import Maps

GRACE_S = 2.0
_FRONTENDS = 14
_BACKENDS = 10


@functools.cache
def opened() -> Maps:
    """Maps without names, for as long as the process lives."""
    return maps.open_maps(specs.read_maps(specs.bpf_folder(), SIZES), None)


def tracked() -> dict[bytes, Any]:
    """What connections remember."""
    return {key: abi.unpack("ct_entry", row) for key, row in opened()["CT_TCP4"].items()}


def _address(number: int, base: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Every third is of IPv6."""
    if number % 3:
        return ipaddress.IPv4Address(base) + number
    return ipaddress.IPv6Address("fd00::" if base[0] == "1" else "fd01::") + number


PLACES = [
    L4Address(_address(number, "172.30.0.0"), port, Protocol.TCP if number % 2 else Protocol.UDP)
    for number in range(_FRONTENDS)
    for port in (80, 443)
]


def backends(family: int) -> list[L4Address]:
    """Whoever may serve in a family."""
    base = "10.0.0.0" if family == 4 else "fd02::"
    first = ipaddress.ip_address(base)
    return [L4Address(first + number, 8080, Protocol.TCP) for number in range(1, _BACKENDS)]


@st.composite
def frontends(draw: Any) -> list[Frontend]:
    """A frontend, and the one of the inner scope where it has two."""
    at = draw(st.sampled_from(PLACES))
    if whole := draw(st.integers(0, 9)) == 0:
        at = L4Address(at.address, 0, Protocol.TCP)
    states = st.sampled_from([BackendState.ACTIVE, BackendState.ACTIVE, BackendState.TERMINATING])
    chosen = draw(
        st.lists(
            st.builds(Backend, st.sampled_from(backends(at.address.version)), states),
            max_size=0 if whole else 6,
            unique_by=lambda backend: backend.at,
        )
    )
    chosen = tuple(replace(one, weight=draw(st.integers(1, 2))) for one in chosen)
    serving = tuple(one for one in chosen if one.state is BackendState.ACTIVE) or chosen
    network = ipaddress.ip_network("192.0.2.0/24" if at.address.version == 4 else "2001:db8::/32")
    two = not whole and draw(st.booleans())
    outer = Frontend(
        at,
        Scope.EXTERNAL,
        draw(st.sampled_from(FrontendKind)),
        ServiceName("default", "any"),
        backends=chosen,
        eligible=serving,
        two_scopes=two,
        routable=draw(st.booleans()),
        affinity_timeout=0 if whole else draw(st.sampled_from([0, 0, 60])),
        source_ranges=None if whole else draw(st.sampled_from([None, None, (), (network,)])),
        algorithm=draw(st.sampled_from([Algorithm.RANDOM, Algorithm.RANDOM, Algorithm.MAGLEV])),
    )
    if not two:
        return [outer]
    inner = replace(outer, scope=Scope.INTERNAL, eligible=serving[:1])
    return [outer, inner]


def _key(one: Frontend) -> tuple[Any, ...]:
    return (one.at.address, one.at.port, one.at.port and one.at.protocol, one.scope)


class Machine(RuleBasedStateMachine):
    """The maps, and an agent that may restart."""

    steps = 0
    """Made by all machines of this kind."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.services = Services(opened(), clock=lambda: self.now)
        self.services.erase()
        for name in ("CT_TCP4", "LB_AFFINITY"):
            held = opened()[name]
            held.delete_many([key for key, _ in held.items()])

    def check_invariants(self, *arguments: Any, **named: Any) -> None:
        """Count the steps, after each of which Hypothesis calls this."""
        type(self).steps += 1
        super().check_invariants(*arguments, **named)

    def restart(self) -> None:
        """Another agent takes over, and knows nothing yet."""
        self.services.close()
        self.services = Services(opened(), clock=lambda: self.now)

    def teardown(self) -> None:
        """Nothing stays when everything is gone."""
        self.services.apply([], [(one.at, one.scope) for one in self.services.frontends()])
        self.services.prune()
        self.services.sweep()
        self.now += GRACE_S
        self.services.sweep()
        counts, contents = self.services.counts(), read(opened())
        self.services.close()
        assert not any(counts.values()), counts
        assert (contents.rows, contents.backends, contents.stray) == ({}, {}, [])


class FrontendMachine(Machine):
    """Frontends as such."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[tuple[Any, ...], Frontend] = {}
        self.planted: dict[bytes, tuple[Any, Any]] = {}
        self.count = 0

    def _apply(self, upserts: list[Frontend], deletes: list[Frontend]) -> None:
        done = self.services.apply(upserts, [(one.at, one.scope) for one in deletes])
        for one in deletes:
            self.model.pop(_key(one), None)
        self.model |= {_key(one): one for one in upserts if (one.at, one.scope) not in done.refused}

    @rule(batch=st.lists(frontends(), min_size=1, max_size=4))
    def upsert(self, batch: list[list[Frontend]]) -> None:
        """Some frontends are as they are told to be; the last word on each counts."""
        wanted = {_key(one): one for group in batch for one in group}
        whole = {_key(group[0])[:3]: group for group in batch}
        gone = [one for key, one in self.model.items() if key[:3] in whole and key not in wanted]
        final = {key: one for key, one in wanted.items() if one in whole[key[:3]]}
        gone += [one for key, one in self.model.items() if key in wanted.keys() - final.keys()]
        self._apply(list(final.values()), gone)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """A frontend goes, with both scopes."""
        if self.model:
            chosen = data.draw(st.sampled_from(sorted(self.model, key=str)))
            gone = [one for key, one in self.model.items() if key[:3] == chosen[:3]]
            self._apply([], gone)

    @rule()
    def repeat(self) -> None:
        """Told the same again, nothing is written."""
        before = {name: dict(opened()[name].items()) for name in ("LB4_SERVICES", "LB_MAGLEV")}
        self.services.apply(list(self.model.values()))
        assert before == {name: dict(opened()[name].items()) for name in before}

    @rule(data=st.data())
    def restart_and_change(self, data: st.DataObject) -> None:
        """Ids stay over a restart, while some frontends went meanwhile."""
        kept = dict(self.model)
        for key in sorted(kept, key=str):
            if data.draw(st.integers(0, 9)) == 0:
                kept = {other: one for other, one in kept.items() if other[:3] != key[:3]}
        ids = {key: self.services.rev_nat(one.at, one.scope) for key, one in kept.items()}
        self.restart()
        self.services.apply(list(kept.values()))
        self.services.prune()
        self.model = kept
        assert ids == {key: self.services.rev_nat(one.at, one.scope) for key, one in kept.items()}

    @rule()
    def crash_while_idle(self) -> None:
        """An agent that is killed before it was told anything has changed nothing."""
        self.restart()
        self.restart()
        self.services.apply(list(self.model.values()))
        self.services.prune()

    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        """A client is given a backend of some frontend, which the maps remember."""
        ids, names = backends_by_id(opened()), names_by_id(opened())
        if ids and names:
            backend = data.draw(st.sampled_from(sorted(ids)))
            name = data.draw(st.sampled_from(sorted(names)))
            self.count += 1
            key = abi.pack(
                "ct_key4", addr_low=self.count, proto=6, kind=abi.CT_SERVICE, port_low=self.count
            )
            entry = abi.pack("ct_entry", lifetime=2**31, rev_nat=name, backend=backend)
            opened()["CT_TCP4"].set(key, entry)
            self.planted[key] = (ids[backend][0], names[name])

    @rule()
    def sweep(self) -> None:
        """What is gone is forgotten."""
        self.services.sweep()
        ids, names = backends_by_id(opened()), names_by_id(opened())
        for entry in (
            abi.unpack("ct_entry", row) for row in dict(opened()["CT_TCP4"].items()).values()
        ):
            assert entry.backend in ids
            assert entry.rev_nat in names

    @rule()
    def wait(self) -> None:
        """Time passes."""
        self.now += GRACE_S

    @invariant()
    def the_maps_are_as_the_model(self) -> None:
        """No divergence, and nothing that nobody refers to."""
        wanted, found = expected(self.model.values()), read(opened())
        assert found.stray == []
        assert found.rows == wanted.rows
        assert found.backends == wanted.backends

    @invariant()
    def ids_never_mean_others_to_who_remembers_them(self) -> None:
        """A connection finds its own backend and frontend, or nobody."""
        ids, names = backends_by_id(opened()), names_by_id(opened())
        for key, entry in tracked().items():
            backend, name = self.planted[key]
            assert entry.backend not in ids or ids[entry.backend][0] == backend
            assert names.get(entry.rev_nat, name) == name


NODE = NodeFacts(
    "node1",
    frozenset({ipaddress.ip_address("172.30.1.1")}),
    (ipaddress.ip_address("172.30.1.1"),),
)


@st.composite
def service_documents(draw: Any) -> dict[str, Any]:
    """A Service object."""
    number = draw(st.integers(1, 8))
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    ports = []
    for port in draw(st.lists(st.sampled_from([80, 443]), min_size=1, unique=True)):
        entry = {"name": f"p{port}", "port": port, "protocol": "TCP"}
        if kind != "ClusterIP":
            entry["nodePort"] = 30000 + port + draw(st.integers(0, 1)) * 1000 + number // 2
        ports.append(entry)
    spec: dict[str, Any] = {
        "type": kind,
        "clusterIP": f"10.96.0.{number}",
        "clusterIPs": [f"10.96.0.{number}"],
        "ports": ports,
    }
    if draw(st.booleans()):
        spec["sessionAffinity"] = "ClientIP"
    if kind != "ClusterIP" and draw(st.booleans()):
        spec["externalTrafficPolicy"] = "Local"
    if draw(st.integers(0, 3)) == 0:
        spec["internalTrafficPolicy"] = "Local"
    if draw(st.integers(0, 3)) == 0:
        spec["externalIPs"] = [f"198.51.100.{draw(st.integers(1, 3))}"]
    document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": f"s{number}"},
        "spec": spec,
    }
    if kind == "LoadBalancer":
        document["status"] = {"loadBalancer": {"ingress": [{"ip": f"203.0.113.{number}"}]}}
        if draw(st.booleans()):
            spec["loadBalancerSourceRanges"] = ["192.0.2.0/24"]
    return document


@st.composite
def slice_documents(draw: Any) -> dict[str, Any]:
    """An EndpointSlice object."""
    number, part = draw(st.integers(1, 8)), draw(st.integers(1, 2))
    endpoints = [
        {
            "addresses": [f"10.0.{part}.{one}"],
            "nodeName": f"node{1 + one % 2}",
            "conditions": draw(
                st.sampled_from(
                    [
                        {"ready": True},
                        {"ready": True},
                        {"ready": False, "serving": True, "terminating": True},
                        {"ready": False, "serving": False, "terminating": False},
                    ]
                )
            ),
        }
        for one in sorted(draw(st.sets(st.integers(1, 6), max_size=4)))
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default",
            "name": f"s{number}-{part}",
            "labels": {"kubernetes.io/service-name": f"s{number}"},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": f"p{port}", "port": 8000 + port, "protocol": "TCP"} for port in (80, 443)
        ],
        "endpoints": endpoints,
    }


class ObjectMachine(Machine):
    """Objects of the cluster."""

    def __init__(self) -> None:
        super().__init__()
        self.documents: dict[str, dict[str, Any]] = {}
        self.slices: dict[str, dict[str, Any]] = {}
        self.table = self._table()

    def _table(self) -> ServiceTable:
        return ServiceTable(NODE, ServiceOptions(algorithm=Algorithm.MAGLEV))

    def _told(self) -> ServiceTable:
        table = self._table()
        for document in self.documents.values():
            table.upsert_service(document)
        for document in self.slices.values():
            table.upsert_slice(document)
        return table

    @rule(document=service_documents())
    def change_service(self, document: dict[str, Any]) -> None:
        """A Service comes or changes."""
        self.documents[document["metadata"]["name"]] = document
        self.table.upsert_service(document)

    @rule(document=slice_documents())
    def change_slice(self, document: dict[str, Any]) -> None:
        """An EndpointSlice comes or changes."""
        self.slices[document["metadata"]["name"]] = document
        self.table.upsert_slice(document)

    @rule(data=st.data())
    def delete_service(self, data: st.DataObject) -> None:
        """A Service goes."""
        if self.documents:
            name = data.draw(st.sampled_from(sorted(self.documents)))
            self.table.delete_service(self.documents.pop(name))

    @rule(data=st.data())
    def delete_slice(self, data: st.DataObject) -> None:
        """An EndpointSlice goes."""
        if self.slices:
            name = data.draw(st.sampled_from(sorted(self.slices)))
            self.table.delete_slice(self.slices.pop(name))

    @rule()
    def restart_agent(self) -> None:
        """The agent restarts and hears of everything anew."""
        self.restart()
        self.table = self._told()
        self.services.apply(self.table.all_frontends())
        self.table.take_changes()
        self.services.prune()

    @rule()
    def sweep(self) -> None:
        """What is gone is forgotten."""
        self.now += GRACE_S
        self.services.sweep()

    @invariant()
    def the_maps_are_as_all_objects_say(self) -> None:
        """Changes one by one come to the same as everything at once."""
        changes = self.table.take_changes()
        assert not self.services.apply(changes.upserts, changes.deletes).refused
        wanted, found = expected(self._told().all_frontends()), read(opened())
        assert found.stray == []
        assert found.rows == wanted.rows
        assert found.backends == wanted.backends


MACHINES = (FrontendMachine, ObjectMachine)
STEPS = 50
"""At most, from a start with empty maps."""


def play_machine(machine: type[Machine], steps: int) -> int:
    """Play until that many steps were made; returns how many. Raises what a rule or check does."""
    examples = -(-steps // STEPS)
    while (before := machine.steps) < steps:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )
        examples = max(1, -(-(steps - machine.steps) // STEPS))
        assert machine.steps > before
    return machine.steps
