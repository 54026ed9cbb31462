"""`cilium service`, `cilium lrp` and `cilium bpf lb`: what they ask, and how they tell it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from cilium.agent.v1 import agent_pb2
from cilium_cli import addresses, map_dumps
from cilium_cli.commands import redirects, services
from cilium_cli.commands.bpf import bpf
from cilium_cli.targets import Target
from click.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import click

SOCKET = ["--socket", "/run/nowhere.sock"]


def at(text: str, protocol: int = 6) -> agent_pb2.ServiceAddress:
    place = addresses.read_endpoint(text)
    return agent_pb2.ServiceAddress(ip=place.ip, port=place.port, protocol=protocol)


def backend(text: str = "10.0.1.15:8080", **fields: Any) -> agent_pb2.ServiceBackend:
    values: dict[str, Any] = {"id": 7, "state": "active", "weight": 1, "eligible": True}
    return agent_pb2.ServiceBackend(address=at(text), **(values | fields))


CART = agent_pb2.Service(
    id=3,
    frontend=at("10.96.4.20:80"),
    scope="external",
    type="ClusterIP",
    namespace="shop",
    name="cart",
    port_name="http",
    backends=[
        backend(),
        backend("10.0.2.9:8080", id=8, state="terminating", eligible=False, node="node2"),
    ],
    external_traffic_policy="Cluster",
    internal_traffic_policy="Local",
    algorithm="random",
    affinity_timeout_s=600,
    source_ranges=["192.0.2.0/24"],
)
INSIDE = agent_pb2.Service(
    id=4, frontend=at("[fd00:96::a]:443"), scope="internal", type="NodePort", name="web"
)
RANDOM = agent_pb2.ExplainServiceResponse(
    service=CART,
    client="pod shop/frontend",
    place="pod",
    choice=agent_pb2.SERVICE_CHOICE_RANDOM,
    steps=["10.96.4.20:80/TCP is a frontend", "nothing is remembered of the client"],
    candidates=[
        agent_pb2.ServiceCandidate(backend=CART.backends[0], possible=True, message="1 of 1"),
        agent_pb2.ServiceCandidate(backend=CART.backends[1], message="terminating"),
    ],
    kernel=agent_pb2.ServiceVerdict(
        program="from-container", backend=CART.backends[0], agrees=True
    ),
)


class Stub:
    """An agent that answers with what it was given, and keeps what it was asked."""

    def __init__(self, answers: Iterable[Any] = ()) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []

    def _answer(self, request: Any, timeout: float) -> Any:
        assert timeout > 0
        self.asked.append(request)
        return self.answers.pop(0)

    DumpMap = ListServices = ListRedirectPolicies = ExplainService = _answer


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub()

    @contextmanager
    def agent(target: Target) -> Iterator[Stub]:
        yield made

    for module in (services, redirects, map_dumps):
        monkeypatch.setattr(module, "agent", agent)
    return made


def run(command: click.Command, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(command, [*arguments, *SOCKET])
    assert done.exit_code == code, done.output
    return done.output


def lines(text: str) -> list[list[str]]:
    return [" ".join(line.split()).split(" ") for line in text.splitlines()]


def dumped(kind: str, *entries: Any) -> list[agent_pb2.DumpMapResponse]:
    made = [agent_pb2.MapEntry(**{kind: entry}) for entry in entries]
    return [agent_pb2.DumpMapResponse(entries=made)]


# ---- service ----


def test_the_list_has_a_line_for_each_backend(stub: Stub) -> None:
    stub.answers = [[agent_pb2.ListServicesResponse(services=[CART, INSIDE])]]
    text = run(services.service, "list")

    assert [" ".join(line) for line in lines(text)] == [
        "ID Frontend Service Type Backend",
        "3 10.96.4.20:80/TCP ClusterIP 1 => 10.0.1.15:8080/TCP (active)",
        "2 => 10.0.2.9:8080/TCP (terminating)",
        "4 [fd00:96::a]:443/TCP/i NodePort",
    ]


def test_one_service_may_be_asked_for_by_name(stub: Stub) -> None:
    stub.answers = [[agent_pb2.ListServicesResponse(services=[CART])]]
    text = run(services.service, "list", "--name", "shop/cart", "-v")

    assert [agent_pb2.ListServicesRequest(name="shop/cart")] == stub.asked
    assert "10.0.2.9:8080/TCP (terminating) on node2" in text
    assert "shop/cart" in text


def test_lists_are_json_yaml_and_picked_parts_too(stub: Stub) -> None:
    stub.answers = [[agent_pb2.ListServicesResponse(services=[CART])]] * 2
    whole = json.loads(run(services.service, "list", "-o", "json"))
    picked = run(services.service, "list", "-o", "jsonpath={[*].backends[*].address.ip}")

    assert whole[0]["frontend"] == {"ip": "10.96.4.20", "port": 80, "protocol": 6}
    assert whole[0]["backends"][1]["state"] == "terminating"
    assert picked == "10.0.1.15 10.0.2.9\n"


def test_a_frontend_is_shown_with_all_that_is_known(stub: Stub) -> None:
    stub.answers = [[agent_pb2.ListServicesResponse(services=[CART])]]
    text = run(services.service, "get", "3")

    assert [agent_pb2.ListServicesRequest(id=3)] == stub.asked
    for part in (
        "10.96.4.20:80/TCP: ClusterIP of shop/cart, port http",
        "traffic policies: external Cluster, internal Local",
        "session affinity by client address for 600 s",
        "only from 192.0.2.0/24",
        "10.0.2.9:8080/TCP (terminating): id 8, gets no new connections, on node2",
    ):
        assert part in text


def test_an_id_that_nobody_has_is_an_error(stub: Stub) -> None:
    stub.answers = [[]]
    done = CliRunner().invoke(services.service, ["get", "9", *SOCKET])

    assert "no frontend has the id 9" in str(done.exception)


# ---- service explain ----


def test_a_choice_is_told_with_its_steps_and_what_the_kernel_says(stub: Stub) -> None:
    stub.answers = [RANDOM]
    text = run(services.service, "explain", "10.96.4.20:80", "--from", "shop/frontend")

    (asked,) = stub.asked
    assert asked == agent_pb2.ExplainServiceRequest(
        frontend=at("10.96.4.20:80"), client="shop/frontend"
    )
    for part in (
        "asked by pod shop/frontend, chosen as the pod's packet leaves",
        "served by any of the candidates, with equal chances",
        "2. nothing is remembered of the client",
        "+ 10.0.1.15:8080/TCP (active): 1 of 1",
        "- 10.0.2.9:8080/TCP (terminating) on node2: terminating",
        "the kernel agrees: from-container chose 10.0.1.15:8080/TCP",
    ):
        assert part in text


def test_disagreement_of_the_kernel_is_exit_code_1(stub: Stub) -> None:
    answer = agent_pb2.ExplainServiceResponse()
    answer.CopyFrom(RANDOM)
    answer.kernel.CopyFrom(
        agent_pb2.ServiceVerdict(program="from-netdev", drop_reason="Service backend not found")
    )
    stub.answers = [answer]
    text = run(services.service, "explain", "10.96.4.20:80", code=1)

    assert "the kernel DISAGREES: from-netdev refused it (Service backend not found)" in text


def test_the_node_of_the_client_is_asked_where_there_is_one(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    sibling = Target(tmp_path, tmp_path, "node2")
    monkeypatch.setattr(services, "siblings", lambda target: [sibling])
    elsewhere = agent_pb2.ExplainServiceResponse(service=CART, node="node2")
    stub.answers = [elsewhere, RANDOM]
    text = run(services.service, "explain", "10.96.4.20:80/UDP", "--from", "shop/frontend")

    assert [asked.frontend.protocol for asked in stub.asked] == [17, 17]
    assert "the kernel agrees" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["10.96.4.20"],
        ["10.96.4.20:0"],
        ["10.96.4.20:70000"],
        ["fd00::1:80"],
        ["[10.0.0.1]:80"],
        ["web:80"],
        ["10.96.4.20:80/ICMP"],
        ["10.96.4.20:80", "--proto", "GRE"],
        ["10.96.4.20:80", "--source-port", "0"],
    ],
)
def test_what_is_no_address_of_a_service_is_refused(stub: Stub, arguments: list[str]) -> None:
    run(services.service, "explain", *arguments, code=2)
    assert stub.asked == []


# ---- bpf lb ----


def entry(**fields: Any) -> agent_pb2.LBFrontendEntry:
    values: dict[str, Any] = {"address": at("10.96.4.20:80"), "scope": "external", "rev_nat": 3}
    return agent_pb2.LBFrontendEntry(**(values | fields))


SERVES = agent_pb2.LBBackendEntry(id=7, address=at("10.0.1.15:8080"), state="active", local=True)


def test_the_frontends_of_the_kernel_have_their_slots_below_them(stub: Stub) -> None:
    whole = entry(address=agent_pb2.ServiceAddress(ip="10.96.4.20"), flags=["wildcard"], rev_nat=0)
    outside = entry(scope="internal", flags=["node-port", "affinity", "routable"])
    stub.answers = [dumped("lb_frontend", entry(backends=[SERVES]), outside, whole)]
    text = run(bpf, "lb", "list")

    assert [" ".join(line) for line in lines(text)] == [
        "SERVICE ADDRESS BACKEND ADDRESS (REVNAT_ID) (SLOT)",
        "10.96.4.20:80/TCP (0) 0.0.0.0:0 (3) (0) [ClusterIP, non-routable]",
        "10.96.4.20:80/TCP (1) 10.0.1.15:8080/TCP (3) (1)",
        "10.96.4.20:80/TCP/i (0) 0.0.0.0:0 (3) (0) [NodePort, sessionAffinity]",
        "10.96.4.20:* (0) 0.0.0.0:0 (0) (0) [ClusterIP, whole address, non-routable]",
    ]


@pytest.mark.parametrize(
    ("arguments", "kind", "answer", "row"),
    [
        (["lb", "list", "--backends"], agent_pb2.MAP_KIND_LB_BACKENDS, {"lb_backend": SERVES},
         "7 10.0.1.15:8080/TCP active local"),
        (["lb", "list", "--revnat"], agent_pb2.MAP_KIND_LB_REVERSE_NAT,
         {"lb_reverse_nat": agent_pb2.LBReverseNATEntry(rev_nat=3, address=at("10.96.4.20:80"))},
         "3 10.96.4.20:80/TCP"),
        (["lb", "list", "--source-ranges"], agent_pb2.MAP_KIND_LB_SOURCE_RANGES,
         {"lb_source_range": agent_pb2.LBSourceRangeEntry(rev_nat=3, prefix="192.0.2.0/24")},
         "3 192.0.2.0/24"),
        (["lb", "maglev", "list"], agent_pb2.MAP_KIND_LB_MAGLEV,
         {"lb_maglev": agent_pb2.LBMaglevEntry(rev_nat=3, size=1021, shares={7: 1021})},
         "3 1021 7: 1021"),
        (["affinity", "list"], agent_pb2.MAP_KIND_LB_AFFINITY,
         {"lb_affinity": agent_pb2.LBAffinityEntry(
             client="192.0.2.7", rev_nat=3, backend=7, age_s=12)},
         "192.0.2.7 3 7 12s ago"),
        (["nat", "list"], agent_pb2.MAP_KIND_NAT,
         {"nat": agent_pb2.NATEntry(
             protocol=6, direction="IN", source="10.0.1.15", source_port=8080,
             destination="10.0.3.4", destination_port=40112, translated="192.0.2.7",
             translated_port=5000, rev_nat=3, age_s=1)},
         "TCP IN 10.0.1.15:8080 10.0.3.4:40112 192.0.2.7:5000 3 1s"),
    ],
)  # fmt: skip
def test_a_map_is_a_table_with_a_row_for_each_entry(
    stub: Stub, arguments: list[str], kind: int, answer: dict[str, Any], row: str
) -> None:
    ((field, value),) = answer.items()
    stub.answers = [dumped(field, value)]
    text = run(bpf, *arguments)

    assert [kind] == [asked.map for asked in stub.asked]
    assert [" ".join(line) for line in lines(text)[1:]] == [row]


def test_a_whole_table_tells_the_backend_of_each_entry(stub: Stub) -> None:
    found = agent_pb2.LBMaglevEntry(rev_nat=3, size=20, table=[7, 8] * 10)
    stub.answers = [dumped("lb_maglev", found)]
    text = run(bpf, "lb", "maglev", "get", "3")

    assert [asked.rev_nat for asked in stub.asked] == [3]
    assert [" ".join(line) for line in lines(text)] == ["0: " + "7 8 " * 7 + "7 8", "16: 7 8 7 8"]


# ---- lrp ----


def test_redirects_are_told_with_the_pods_that_serve_instead(stub: Stub) -> None:
    frontend = agent_pb2.RedirectFrontend(
        address=at("169.254.169.254:80"), backends=[backend("10.0.1.20:8080")]
    )
    policy = agent_pb2.RedirectPolicy(
        namespace="kube-system", name="metadata", type="address", frontends=[frontend]
    )
    stub.answers = [agent_pb2.ListRedirectPoliciesResponse(policies=[policy])]
    text = run(redirects.lrp, "list")

    assert lines(text)[1] == [
        "kube-system", "metadata", "address", "169.254.169.254:80/TCP", "10.0.1.20:8080/TCP", "ok",
    ]  # fmt: skip
