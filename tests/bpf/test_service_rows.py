"""The maps of services: shared where alike, not reused too early, whole when they are full."""

from __future__ import annotations

import ipaddress
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cilium_core import abi
from cilium_core.policy.ports import Protocol
from cilium_core.services import (
    Algorithm,
    Backend,
    BackendState,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
    ServiceName,
)

from tests.needing import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_agent.datapath.maps import Maps
    from cilium_agent.datapath.services import Services


class Clock:
    """Time that a case moves itself, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def opened() -> Iterator[Maps]:
    need("" if os.geteuid() == 0 else "maps of the kernel need root")
    from cilium_agent.datapath import maps, specs

    from tests.fuzz.service_maps import SIZES

    made = maps.open_maps(specs.read_maps(specs.bpf_folder(), SIZES), None)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def services(opened: Maps, clock: Clock) -> Iterator[Services]:
    from cilium_agent.datapath.services import Services

    made = Services(opened, clock=clock)
    made.erase()
    yield made
    made.close()


def backend(number: int, state: BackendState = BackendState.ACTIVE) -> Backend:
    address = ipaddress.IPv4Address("10.0.0.0") + number
    return Backend(L4Address(address, 8080, Protocol.TCP), state)


def frontend(number: int, *backends: Backend, **fields: object) -> Frontend:
    address = ipaddress.IPv4Address("10.96.0.0") + number
    made = Frontend(
        L4Address(address, 80, Protocol.TCP),
        Scope.EXTERNAL,
        FrontendKind.LOAD_BALANCER,
        ServiceName("default", f"s{number}"),
        backends=backends,
        eligible=backends,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def rows(opened: Maps) -> dict[str, tuple[int, int]]:
    """First slot and number of slots by frontend."""
    found = {}
    for key, value in opened["LB4_SERVICES"].items():
        row = abi.unpack("lb_service", value)
        found[str(ipaddress.IPv4Address(key[:4]))] = (row.first, row.count)
    return found


def test_frontends_with_the_same_backends_share_their_slots(
    opened: Maps, services: Services
) -> None:
    services.apply([frontend(1, backend(1), backend(2)), frontend(2, backend(1), backend(2))])
    assert len(set(rows(opened).values())) == 1
    assert services.counts()["slots"] == 2


def test_slots_that_a_program_may_read_are_not_written_anew(
    opened: Maps, services: Services, clock: Clock
) -> None:
    services.apply([frontend(1, backend(1))])
    old = rows(opened)["10.96.0.1"]
    services.apply([frontend(1, backend(2))])
    services.apply([frontend(2, backend(3))])
    assert old not in rows(opened).values()
    clock.now += 1.5
    services.apply([frontend(3, backend(4))])
    assert rows(opened)["10.96.0.3"] == old


def test_full_slots_are_cleared_by_waiting_rather_than_refused(
    opened: Maps, services: Services
) -> None:
    most = opened["LB_SLOTS"].spec.max_entries // 40
    wide = [backend(number) for number in range(1, 41)]
    many = [frontend(n, *wide[n:], *wide[:n]) for n in range(1, most + 1)]
    assert not services.apply(many).refused
    assert not services.apply([], [(many[0].at, Scope.EXTERNAL)]).refused
    assert not services.apply([frontend(99, *reversed(wide))]).refused


def test_what_does_not_fit_is_named_and_the_rest_is_served(
    opened: Maps, services: Services
) -> None:
    most = opened["LB_BACKENDS"].spec.max_entries - 1
    wide = [backend(number) for number in range(1, most + 2)]
    too_wide, good = frontend(1, *wide), frontend(2, backend(1))
    refused = services.apply([too_wide, good]).refused
    assert list(refused) == [(too_wide.at, Scope.EXTERNAL)]
    assert "ids of backends are in use" in refused[too_wide.at, Scope.EXTERNAL]
    assert set(rows(opened)) == {"10.96.0.2"}
    assert services.counts()["backends"] == 1


def test_a_backend_that_some_service_still_counts_as_active_is_active(
    opened: Maps, services: Services
) -> None:
    from tests.fuzz.service_maps import read

    leaving = backend(1, BackendState.TERMINATING)
    services.apply([frontend(1, backend(1)), frontend(2, leaving)])
    told = ("10.0.0.1", 8080, 6)
    assert read(opened).backends[told] == (abi.LB_BACKEND_ACTIVE, False)
    services.apply([], [(frontend(1).at, Scope.EXTERNAL)])
    assert read(opened).backends[told] == (abi.LB_BACKEND_TERMINATING, False)


def test_vanished_backends_are_told_once(services: Services) -> None:
    both = frontend(1, backend(1), backend(2))
    assert services.apply([both]).vanished == ()
    assert services.apply([frontend(1, backend(2))]).vanished == (backend(1).at,)
    assert services.apply([both]).vanished == ()


def test_alike_maglev_tables_are_one_map(opened: Maps, services: Services) -> None:
    pair = (backend(1), backend(2))
    chosen = [frontend(n, *pair, algorithm=Algorithm.MAGLEV) for n in (1, 2)]
    services.apply(chosen)
    assert len({value for _, value in opened["LB_MAGLEV"].items()}) == 1
    before = dict(opened["LB_MAGLEV"].items())
    services.apply([frontend(1, backend(1), algorithm=Algorithm.MAGLEV)])
    after = dict(opened["LB_MAGLEV"].items())
    assert len(set(after.values())) == 2
    assert len(set(before.values()) & set(after.values())) == 1


def test_a_restarted_agent_leaves_a_table_that_is_right(
    opened: Maps, services: Services, clock: Clock
) -> None:
    from cilium_agent.datapath.services import Services

    chosen = frontend(1, backend(1), backend(2), algorithm=Algorithm.MAGLEV)
    services.apply([chosen])
    before = dict(opened["LB_MAGLEV"].items())
    again = Services(opened, clock=clock)
    again.apply([chosen])
    again.prune()
    again.close()
    assert dict(opened["LB_MAGLEV"].items()) == before


def test_an_affinity_that_has_run_out_is_swept(opened: Maps, services: Services) -> None:
    services.apply([frontend(1, backend(1), affinity_timeout=10)])
    number = services.rev_nat(frontend(1).at)
    now = int(time.monotonic())
    for client, used in ((b"\x01", now), (b"\x02", now - 60)):
        key = abi.pack("lb_affinity_key", client=client, rev_nat=number)
        opened["LB_AFFINITY"].set(key, abi.pack("lb_affinity", last_used=used, backend=1))
    assert services.sweep().affinities == 1
    assert [key[0] for key, _ in opened["LB_AFFINITY"].items()] == [1]


def test_the_id_that_stands_for_frontends_of_other_nodes_is_never_given_away(
    opened: Maps, services: Services
) -> None:
    key = abi.pack("ct_key4", addr_low=1, kind=abi.CT_FLOW)
    entry = abi.pack("ct_entry", rev_nat=abi.LB_OTHER_FRONTEND)
    opened["CT_TCP4"].set(key, entry)
    services.sweep()
    assert opened["CT_TCP4"].get(key) is not None
    opened["CT_TCP4"].delete(key)
