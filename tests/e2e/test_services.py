"""Services as real traffic: every kind of frontend, asked from everywhere, over everything.

A backend tells its name and whom it was asked by. `client` is a pod on node1, once with the
programs at sockets and once (`packets`) as a process they do not see; `node1` is a process of the
node, `outside` a host that routes to node1. `near` serves on node1 and `far` on node2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from tests.e2e import balancing
from tests.e2e.balancing import Endpoint, Port
from tests.e2e.driving import Cluster, PodSpec
from tests.e2e.running import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.driving import Probe
    from tests.e2e.running import Lab

NUMBERS: Final = {
    "near": 1,
    "far": 2,
    "both": 3,
    "sticky": 4,
    "outer": 5,
    "outer-far": 6,
    "inner": 7,
    "inner-far": 8,
    "empty": 9,
    "ranged": 10,
}
"""Services, and what their addresses and ports are made of."""
BACKENDS: Final = {
    "near": ("near",),
    "far": ("far",),
    "outer-far": ("far",),
    "inner-far": ("far",),
    "empty": (),
    "ranged": ("near",),
}
"""Who serves; near and far unless it is said here."""
SPECS: Final[dict[str, dict[str, Any]]] = {
    "sticky": {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
    },
    "outer": {"externalTrafficPolicy": "Local"},
    "outer-far": {"externalTrafficPolicy": "Local"},
    "inner": {"internalTrafficPolicy": "Local"},
    "inner-far": {"internalTrafficPolicy": "Local"},
    "ranged": {"loadBalancerSourceRanges": ["203.0.113.10/32", "2001:db8:113::a/128"]},
}
SERVED: Final = 8080
HOST_PORT: Final = 8081
OUTSIDE: Final = {4: "203.0.113.10", 6: "2001:db8:113::a"}
OTHER_OUTSIDE: Final = {4: "203.0.113.20", 6: "2001:db8:113::14"}
HAIRPIN: Final = {4: "169.254.42.1", 6: "fe80::1"}
NODE: Final = {
    "node1": {4: "172.30.0.11", 6: "fd00:30::11"},
    "node2": {4: "172.30.0.12", 6: "fd00:30::12"},
}
KINDS: Final = ("ClusterIP", "NodePort", "NodePort of node2", "LoadBalancer", "ExternalIPs")
PROTOCOLS: Final = ("tcp", "udp", "udp-each", "sctp")
CLIENTS: Final = ("client", "packets", "node1", "outside")
SILENCE: Final = ""
ANYBODY: Final = "anybody"
REFUSED: Final = {"refused", "unreachable"}


class Cast(NamedTuple):
    """A lab with everything in place."""

    cluster: Cluster
    routers: dict[str, dict[int, str]]
    """Addresses that a node's own traffic into the pods' network comes from."""

    def pod(self, name: str, family: int) -> str:
        """Address of a pod."""
        pod = self.cluster.pods[f"default/{name}"]
        return pod.ipv4 if family == 4 else pod.ipv6

    def ask(self, questions: dict[str, list[Probe]], quiet: bool = False) -> dict[str, list[str]]:
        """Ask from all places at once; `quiet` where silence may be the answer."""
        order = {
            place: ([], probes) if quiet else (probes, []) for place, probes in questions.items()
        }
        return self.cluster.probe(order)


def ports(name: str) -> list[Port]:
    """Ports of a service: with SCTP they are the same everywhere."""
    number = NUMBERS[name]
    return [
        Port("tcp", "TCP", 80, SERVED, 30000 + number),
        Port("udp", "UDP", 80, SERVED, 30000 + number),
        Port("sctp", "SCTP", 31000 + number, 31000 + number, 31000 + number),
    ]


@pytest.fixture(scope="module")
def cast(start_lab: Callable[..., Lab]) -> Iterator[Cast]:
    lab = start_lab(2)
    with Cluster(lab, 2) as cluster:
        sctp = ",".join(str(31000 + number) for number in NUMBERS.values())
        serve = f"--tcp {SERVED} --udp {SERVED} --sctp {sctp}"
        host_ports = tuple((HOST_PORT, SERVED, protocol) for protocol in ("TCP", "UDP"))
        cluster.add_pods(
            [
                PodSpec("default", "client", {"app": "client"}, "node1", ""),
                PodSpec("default", "near", {"app": "near"}, "node1", serve, host_ports=host_ports),
                PodSpec("default", "far", {"app": "far"}, "node2", serve),
            ]
        )
        cluster.serve_beside("default/client", "packets")
        cluster.serve_beside("default/near", "near-packets")
        cluster.serve_at("node1")
        cluster.serve_at("world")
        cluster.ip(
            "world",
            *(f"route replace {network} via {NODE['node1'][4]}" for network in IPV4_NETWORKS),
            *(f"route replace {network} via {NODE['node1'][6]}" for network in IPV6_NETWORKS),
        )
        for name in NUMBERS:
            cluster.put(*documents(cluster, name))
        for name in NUMBERS:
            pods = [cluster.pods[f"default/{pod}"] for pod in backends(name)]
            if "inner" not in name and "outer" not in name:
                balancing.wait_for(cluster, name, balancing.active(*pods))
        yield Cast(cluster, {node: routers(cluster, node) for node in cluster.nodes})


IPV4_NETWORKS: Final = ("198.51.100.0/24", "10.96.0.0/16")
IPV6_NETWORKS: Final = ("2001:db8:51::/64", "fd00:96::/64")


def backends(name: str) -> tuple[str, ...]:
    """Pods that serve."""
    return BACKENDS.get(name, ("near", "far"))


def documents(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """A service and its slices."""
    number = NUMBERS[name]
    made = balancing.service(
        name,
        number,
        ports(name),
        "LoadBalancer",
        externalIPs=list(balancing.external_ips(number)),
        **SPECS.get(name, {}),
    )
    ends = [Endpoint(cluster.pods[f"default/{pod}"]) for pod in backends(name)]
    return [made, *balancing.slices(name, ports(name), ends)]


def routers(cluster: Cluster, node: str) -> dict[int, str]:
    """Addresses of a node in the pods' network, by family."""
    nodes = cluster.lab.json("node", "list")
    (found,) = [entry for entry in nodes if entry["name"] == node]
    return {4: found["ciliumIpv4"], 6: found["ciliumIpv6"]}


def question(kind: str, name: str, family: int, over: str) -> Probe:
    """Whom to ask for a frontend of a service."""
    number, at = NUMBERS[name], 0 if family == 4 else 1
    (port,) = [port for port in ports(name) if port.name == over.split("-")[0]]
    if kind.startswith("NodePort"):
        node = kind.partition(" of ")[2] or "node1"
        return {"kind": "who", "over": over, "address": NODE[node][family], "port": port.node_port}
    addresses = {
        "ClusterIP": balancing.cluster_ips,
        "LoadBalancer": balancing.balancer_ips,
        "ExternalIPs": balancing.external_ips,
    }[kind](number)
    return {"kind": "who", "over": over, "address": addresses[at], "port": port.port}


def asked(client: str, probe: Probe, family: int) -> tuple[str, Probe]:
    """Where a client asks: outside there are several addresses."""
    if client == "outside":
        return "world", {**probe, "source": OUTSIDE[family]}
    return ("default/client" if client == "client" else client), probe


def expected(cast: Cast, client: str, kind: str, name: str, family: int, over: str) -> str:
    """Who answers, and whom it takes for the client."""
    entered = "node2" if kind == "NodePort of node2" else "node1"
    by_packets = client == "packets" or (client == "client" and over == "sctp")
    if client == "node1":
        # an external address may be somebody else's: a node's own sockets are not led elsewhere
        if kind == "ExternalIPs":
            return SILENCE
        seen = ANYBODY
    elif by_packets and kind == "NodePort of node2":
        # what node1 does not translate leaves it under its address, and is from outside for node2
        seen = ANYBODY
    elif client != "outside":
        seen = cast.pod("client", family)
    elif kind == "ClusterIP":
        return SILENCE
    elif cast.cluster.pods[f"default/{name}"].node == entered:
        seen = OUTSIDE[family]
    else:
        seen = cast.routers[entered][family]
    return f"default.{name} {seen}"


@pytest.mark.parametrize("over", PROTOCOLS)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_every_frontend_answers_everybody_who_may_ask(
    cast: Cast, kind: str, family: int, over: str
) -> None:
    # a node's own raw packets are nobody's service: programs at sockets see no SCTP
    clients = [client for client in CLIENTS if over != "sctp" or client != "node1"]
    rows = [(client, name) for client in clients for name in ("near", "far")]
    wanted = {row: expected(cast, row[0], kind, row[1], family, over) for row in rows}
    order: dict[str, tuple[list[Probe], list[Probe]]] = {}
    where = {}
    for (client, name), answer in wanted.items():
        place, probe = asked(client, question(kind, name, family, over), family)
        opened, shut = order.setdefault(place, ([], []))
        mine = opened if answer else shut
        mine.append(probe)
        where[client, name] = (place, probe)

    seen = cast.cluster.probe(order)

    answers = {}
    for row, (place, probe) in where.items():
        everything = [*order[place][0], *order[place][1]]
        answer = seen[place][everything.index(probe)]
        if answer and wanted[row].endswith(ANYBODY):
            answer = f"{answer.split(' ')[0]} {ANYBODY}"
        answers[row] = answer
    assert wanted == answers


@pytest.mark.parametrize("over", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_port_of_the_node_leads_to_the_pod_that_asked_for_it(
    cast: Cast, family: int, over: str
) -> None:
    probe = {"kind": "who", "over": over, "address": NODE["node1"][family], "port": HOST_PORT}

    seen = cast.ask(dict([with_list(asked(client, probe, family)) for client in CLIENTS]))

    client, outside = cast.pod("client", family), OUTSIDE[family]
    assert f"default.near {client}" == seen["default/client"][0]
    assert f"default.near {client}" == seen["packets"][0]
    assert f"default.near {outside}" == seen["world"][0]
    assert seen["node1"][0].startswith("default.near ")


def with_list(pair: tuple[str, Probe]) -> tuple[str, list[Probe]]:
    """One question of a place."""
    return pair[0], [pair[1]]


@pytest.mark.parametrize("over", ["tcp", "udp"])
@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
def test_sockets_of_ipv6_reach_services_of_ipv4(cast: Cast, kind: str, over: str) -> None:
    probe = question(kind, "far", 4, over)
    probe["address"] = f"::ffff:{probe['address']}"

    seen = cast.ask({"default/client": [probe], "node1": [probe]})

    assert [f"default.far {cast.pod('client', 4)}"] == seen["default/client"]
    assert seen["node1"][0].startswith("default.far ")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("client", CLIENTS)
def test_all_backends_get_their_share(cast: Cast, client: str, family: int) -> None:
    place, probe = asked(client, question("NodePort", "both", family, "tcp"), family)

    seen = cast.ask({place: [probe] * 40})

    names = [answer.split(" ")[0] for answer in seen[place]]
    assert {"default.near", "default.far"} == set(names)
    assert min(names.count("default.near"), names.count("default.far")) >= 5


@pytest.mark.parametrize("over", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
def test_session_affinity_keeps_a_client_at_its_backend(
    cast: Cast, kind: str, family: int, over: str
) -> None:
    clients = [client for client in CLIENTS if (client, kind) != ("outside", "ClusterIP")]
    places = dict(
        asked(client, question(kind, "sticky", family, over), family) for client in clients
    )

    seen = cast.ask({place: [probe] * 2 for place, probe in places.items()})
    later = cast.ask({place: [probe] * 16 for place, probe in places.items()})

    for place in places:
        (name,) = {answer.split(" ")[0] for answer in later[place]}
        assert name in {"default.near", "default.far"}
        assert seen[place][-1].split(" ")[0] in {"default.near", "default.far"}


@pytest.mark.parametrize("over", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer", "ExternalIPs"])
def test_a_local_external_policy_keeps_the_clients_address_and_the_node(
    cast: Cast, kind: str, family: int, over: str
) -> None:
    place, probe = asked("outside", question(kind, "outer", family, over), family)
    _, elsewhere = asked("outside", question(kind, "outer-far", family, over), family)

    seen = cast.ask({place: [*[probe] * 16, elsewhere]})[place]

    assert {f"default.near {OUTSIDE[family]}"} == set(seen[:16])
    assert seen[16] in REFUSED


@pytest.mark.parametrize("family", [4, 6])
def test_each_node_answers_for_its_own_backends_with_a_local_external_policy(
    cast: Cast, family: int
) -> None:
    place, probe = asked("outside", question("NodePort of node2", "outer", family, "tcp"), family)

    assert {f"default.far {OUTSIDE[family]}"} == set(cast.ask({place: [probe] * 16})[place])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
def test_a_local_external_policy_is_nothing_to_pods(cast: Cast, kind: str, family: int) -> None:
    probe = question(kind, "outer-far", family, "tcp")

    seen = cast.ask({"default/client": [probe], "packets": [probe]})

    assert {f"default.far {cast.pod('client', family)}"} == {a[0] for a in seen.values()}


@pytest.mark.parametrize("over", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_local_internal_policy_stays_on_the_node(cast: Cast, family: int, over: str) -> None:
    probe = question("ClusterIP", "inner", family, over)
    nowhere = question("ClusterIP", "inner-far", family, over)
    places = ("default/client", "packets", "node1")

    seen = cast.ask({place: [probe] * 16 for place in places})
    refused = cast.ask({place: [nowhere] for place in places})

    for place in places:
        assert {"default.near"} == {answer.split(" ")[0] for answer in seen[place]}
        assert refused[place][0] in REFUSED


@pytest.mark.parametrize("over", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_service_without_backends_refuses(
    cast: Cast, client: str, family: int, over: str
) -> None:
    kind = "LoadBalancer" if client == "outside" else "ClusterIP"
    place, probe = asked(client, question(kind, "empty", family, over), family)

    (answer,) = cast.ask({place: [probe]})[place]

    assert answer in REFUSED


@pytest.mark.parametrize("over", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("client", ["client", "packets", "node1"])
def test_an_unknown_port_of_a_service_is_refused(
    cast: Cast, client: str, family: int, over: str
) -> None:
    place, probe = asked(client, question("ClusterIP", "near", family, over), family)

    (answer,) = cast.ask({place: [{**probe, "port": 81}]})[place]

    assert answer in REFUSED


@pytest.mark.parametrize("over", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_only_its_source_ranges_reach_a_load_balancer(cast: Cast, family: int, over: str) -> None:
    probe = question("LoadBalancer", "ranged", family, over)
    allowed = {**probe, "source": OUTSIDE[family]}
    denied = {**probe, "source": OTHER_OUTSIDE[family]}

    seen = cast.cluster.probe({"world": ([allowed], [denied])})["world"]

    assert [f"default.near {OUTSIDE[family]}", SILENCE] == seen


@pytest.mark.parametrize("over", ["tcp", "udp", "udp-each"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_backend_reaches_itself_through_its_service(cast: Cast, family: int, over: str) -> None:
    probe = question("ClusterIP", "near", family, over)

    seen = cast.ask({"default/near": [probe], "near-packets": [probe]})

    assert [f"default.near {cast.pod('near', family)}"] == seen["default/near"]
    assert [f"default.near {HAIRPIN[family]}"] == seen["near-packets"]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("place", ["default/client", "packets"])
def test_policy_judges_the_backend_that_was_chosen(cast: Cast, place: str, family: int) -> None:
    probes = [question("ClusterIP", name, family, "tcp") for name in ("near", "far")]
    policy = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "only-far", "namespace": "default"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "client"}},
            "egress": [{"toEndpoints": [{"matchLabels": {"app": "far"}}]}],
        },
    }
    with cast.cluster.applied(policy):
        answered = cast.ask({place: probes[1:]})[place]
        denied = cast.ask({place: probes[:1]}, quiet=True)[place]

    assert [answer.split(" ")[0] for answer in answered] == ["default.far"]
    assert denied == [SILENCE]


def test_a_deleted_service_answers_no_more(cast: Cast) -> None:
    number, port = 20, [Port("tcp", "TCP", 80, SERVED)]
    near = cast.cluster.pods["default/near"]
    made = [
        balancing.service("fleeting", number, port),
        *balancing.slices("fleeting", port, [Endpoint(near)]),
    ]
    address = balancing.cluster_ips(number)[0]
    probe = {"kind": "who", "over": "tcp", "address": address, "port": 80}
    cast.cluster.put(*made)
    balancing.wait_for(cast.cluster, "fleeting", balancing.active(near))
    assert cast.ask({"default/client": [probe]})["default/client"][0].startswith("default.near ")

    cast.cluster.remove(*made)

    eventually(
        lambda: not cast.ask({"default/client": [probe]}, quiet=True)["default/client"][0],
        balancing.LIMIT_S,
        "nobody answers",
    )
