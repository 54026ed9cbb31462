"""What people are shown of services is what is in the maps."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
from cilium_agent.datapath import maps, specs
from cilium_agent.datapath.servicedumps import ServiceAddress, ServiceDumps
from cilium_agent.datapath.servicerows import AFFINITY, AFFINITY_KEY
from cilium_agent.datapath.services import Services
from cilium_agent.datapath.tracking import connection_key
from cilium_core import abi
from cilium_core.policy.ports import Protocol
from cilium_core.services.models import (
    Algorithm,
    Backend,
    BackendState,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
    ServiceName,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_agent.datapath.maps import Maps

SEED = "JLfvgnHc2kaSUFaI"
TABLE = 251


def at(address: str, port: int, protocol: Protocol = Protocol.TCP) -> L4Address:
    return L4Address(ip_address(address), port, protocol)


def seen(place: L4Address) -> ServiceAddress:
    return ServiceAddress(place.address, place.port, int(place.protocol))


NEAR = Backend(at("10.0.1.15", 8080), local=True)
FAR = Backend(at("10.0.2.9", 8080), node="node2")
GONE = Backend(at("10.0.2.10", 8080), BackendState.TERMINATING)
SIX = Backend(at("fd00::2:9", 8080))
CART = Frontend(
    at("10.96.4.20", 80),
    Scope.EXTERNAL,
    FrontendKind.LOAD_BALANCER,
    ServiceName("shop", "cart"),
    backends=(NEAR, FAR, GONE),
    eligible=(NEAR, FAR),
    affinity_timeout=600,
    source_ranges=(ip_network("192.0.2.0/24"),),
    algorithm=Algorithm.MAGLEV,
)
WEB = Frontend(
    at("fd00:96::a", 443),
    Scope.EXTERNAL,
    FrontendKind.NODE_PORT,
    ServiceName("shop", "web"),
    backends=(SIX,),
    eligible=(SIX,),
)


@pytest.fixture
def opened(root: None) -> Iterator[Maps]:
    sizes = {"cilium_lb_maglev": TABLE}
    found = maps.open_maps(specs.read_maps(specs.bpf_folder(), sizes), None)
    yield found
    found.close()


@pytest.fixture
def dumps(opened: Maps) -> Iterator[ServiceDumps]:
    services = Services(opened, maglev_seed=SEED)
    assert services.apply([CART, WEB]).refused == {}
    yield ServiceDumps(opened)
    services.close()


def test_frontends_have_their_backends_in_their_slots(dumps: ServiceDumps) -> None:
    known = {row.id: row for row in dumps.backends()}
    found = {row.at: row for row in dumps.frontends()}

    assert found.keys() == {seen(CART.at), seen(WEB.at)}
    cart = found[seen(CART.at)]
    assert {known[number].at for number in cart.slots} == {seen(NEAR.at), seen(FAR.at)}
    assert cart.affinity_timeout_s == 600
    assert cart.flags & abi.LB_LOAD_BALANCER
    assert cart == dumps.frontend(seen(CART.at), abi.LB_EXTERNAL)
    assert dumps.frontend(seen(CART.at), abi.LB_INTERNAL) is None


def test_backends_are_told_one_by_one_as_all_together(dumps: ServiceDumps) -> None:
    found = {row.at: row for row in dumps.backends()}

    assert found.keys() >= {seen(one.at) for one in (NEAR, FAR, SIX)}
    assert [found[seen(one.at)].local for one in (NEAR, FAR)] == [True, False]
    for row in found.values():
        assert dumps.backend(row.id) == row
    assert dumps.backend(0) is None
    assert dumps.backend(60_000) is None


def test_ids_of_frontends_lead_to_their_addresses(dumps: ServiceDumps) -> None:
    assert dict(dumps.reverse()) == {row.rev_nat: row.at for row in dumps.frontends()}


def test_who_may_ask_is_told_by_the_id_of_the_frontend(dumps: ServiceDumps) -> None:
    cart = dumps.frontend(seen(CART.at), abi.LB_EXTERNAL)
    assert cart is not None
    assert list(dumps.ranges()) == [(cart.rev_nat, ip_network("192.0.2.0/24"))]


def test_a_table_holds_the_backends_of_its_frontend(dumps: ServiceDumps) -> None:
    cart = dumps.frontend(seen(CART.at), abi.LB_EXTERNAL)
    assert cart is not None
    assert dumps.maglev_ids() == [cart.rev_nat]
    table = dumps.maglev(cart.rev_nat)
    assert table is not None
    assert set(table.tolist()) == set(cart.slots)
    assert dumps.maglev(cart.rev_nat + 1000) is None


@pytest.mark.parametrize("client", [ip_address("192.0.2.7"), 4711])
def test_clients_are_addresses_or_namespaces(
    opened: Maps, dumps: ServiceDumps, client: object
) -> None:
    cart = dumps.frontend(seen(CART.at), abi.LB_EXTERNAL)
    assert cart is not None
    is_cookie = isinstance(client, int)
    packed = client.to_bytes(8, "little") if is_cookie else client.packed  # type: ignore[attr-defined]
    key = AFFINITY_KEY.pack(packed.ljust(16, b"\0"), cart.rev_nat, is_cookie, abi.FAMILY_IPV4)
    opened["LB_AFFINITY"].set(key, AFFINITY.pack(77, cart.slots[0]))

    (row,) = dumps.affinity()

    assert (row.client, row.rev_nat, row.backend) == (client, cart.rev_nat, cart.slots[0])
    assert row.last_used_s == 77
    assert dumps.affine(client, cart.rev_nat, abi.FAMILY_IPV4) == row  # type: ignore[arg-type]
    assert dumps.serves(row.backend, cart.rev_nat)
    assert not dumps.serves(row.backend + 100, cart.rev_nat)


def test_the_backend_of_a_connection_is_found_by_its_ends(
    opened: Maps, dumps: ServiceDumps
) -> None:
    client, port = ip_address("192.0.2.7"), 40000
    key = connection_key(6, client, port, CART.at.address, 80, kind=abi.CT_SERVICE)
    opened["CT_TCP4"].set(key, abi.pack("ct_entry", lifetime=99, backend=5, rev_nat=3))

    found = dumps.connection(client, port, seen(CART.at))

    assert found is not None
    assert (found.backend, found.rev_nat, found.expires_s) == (5, 3, 99)
    assert dumps.connection(client, port + 1, seen(CART.at)) is None
