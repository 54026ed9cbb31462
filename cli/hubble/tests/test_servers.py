# ruff: noqa: N802  methods are named as the services name them
"""Commands that ask a server, put to one that runs in this process."""

import json
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from cilium.flows.v1 import flows_pb2, flows_pb2_grpc
from cilium_core.flow_dimensions import NAMES
from flow import flow_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from hubble_cli import names
from hubble_cli.__main__ import run
from hubble_cli.errors import HubbleError
from hubble_cli.requesting import DEFAULT_FIELD_MASK, POLICY_FIELDS
from observer import observer_pb2, observer_pb2_grpc
from peer import peer_pb2, peer_pb2_grpc
from relay import relay_pb2

FLOWS = Path(__file__).parents[3] / "tests/unit/flow_filters/flows.jsonl"
SERVING = health_pb2.HealthCheckResponse.SERVING
NUMBERS = {number: name.removeprefix("DIMENSION_") for name, number in flows_pb2.Dimension.items()}
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def answer(number):
    response = observer_pb2.GetFlowsResponse(
        flow=flow_pb2.Flow(
            Summary=f"flow {number}",
            verdict=flow_pb2.FORWARDED,
            event_type=flow_pb2.CiliumEventType(type=4),
        )
    )
    response.flow.time.seconds = response.time.seconds = 1_768_472_431 + number
    return response


class Server(
    observer_pb2_grpc.ObserverServicer,
    flows_pb2_grpc.FlowsServiceServicer,
    peer_pb2_grpc.PeerServicer,
):
    """Answers everything, and remembers what it was asked."""

    def __init__(self):
        self.requests = []
        self.methods = []
        self.error = None
        self.headers = ()
        self.status = observer_pb2.ServerStatusResponse(
            num_flows=12_285, max_flows=12_285, seen_flows=90_000, uptime_ns=60 * 10**9, version="v"
        )
        self.nodes = []

    def _take(self, method, request, context):
        self.methods.append(method)
        self.requests.append(request)
        context.send_initial_metadata(self.headers)
        if self.error:
            context.abort(*self.error)

    def GetFlows(self, request, context):
        self._take("GetFlows", request, context)
        yield from map(answer, range(3))

    def GetFlowBatches(self, request, context):
        self._take("GetFlowBatches", request, context)
        for start in (0, 2):
            yield flows_pb2.FlowBatch(
                responses=[answer(start + index).SerializeToString() for index in range(2)],
                times_ns=[0, 0],
            )

    def AggregateFlows(self, request, context):
        self._take("AggregateFlows", request, context)
        groups = [
            flows_pb2.FlowGroup(
                values=[f"{NUMBERS[one].lower()} {number}" for one in request.by],
                flows=3_000 - number,
                packets=12,
                bytes=4_096,
                first_ns=1_768_472_431 * 10**9,
                last_ns=1_768_472_432 * 10**9,
            )
            for number in range(2)
        ]
        budgets = [
            flows_pb2.LossBudget(node_name="node1"),
            flows_pb2.LossBudget(
                node_name="node2", lost_in_kernel=7, covered_from_ns=1_768_472_430 * 10**9
            ),
        ]
        return flows_pb2.AggregateFlowsResponse(
            groups=groups,
            other_groups=4,
            other_flows=1_234,
            budgets=budgets,
            missing_nodes=["node3"],
        )

    def GetAgentEvents(self, request, context):
        self._take("GetAgentEvents", request, context)
        event = flow_pb2.AgentEvent(
            type=flow_pb2.ENDPOINT_CREATED,
            endpoint_update=flow_pb2.EndpointUpdateNotification(
                id=44, namespace="ns", pod_name="p"
            ),
        )
        yield observer_pb2.GetAgentEventsResponse(agent_event=event, node_name="n")

    def GetDebugEvents(self, request, context):
        self._take("GetDebugEvents", request, context)
        event = flow_pb2.DebugEvent(
            type=flow_pb2.DBG_L4_POLICY,
            source=flow_pb2.Endpoint(ID=101, namespace="shop", pod_name="cart"),
            message="Resolved L4 policy to: 80 / ingress",
        )
        event.hash.value = 0xABCDEF
        event.cpu.value = 3
        yield observer_pb2.GetDebugEventsResponse(debug_event=event)

    def ServerStatus(self, request, context):
        self._take("ServerStatus", request, context)
        return self.status

    def GetNodes(self, request, context):
        self._take("GetNodes", request, context)
        return observer_pb2.GetNodesResponse(nodes=self.nodes)

    def GetNamespaces(self, request, context):
        self._take("GetNamespaces", request, context)
        return observer_pb2.GetNamespacesResponse(
            namespaces=[
                observer_pb2.Namespace(namespace="plain"),
                observer_pb2.Namespace(namespace="shop", cluster="kind-a"),
            ]
        )

    def Notify(self, request, context):
        self._take("Notify", request, context)
        yield peer_pb2.ChangeNotification(
            name="kind-a/worker1",
            address="10.1.1.1:4244",
            type=peer_pb2.PEER_ADDED,
            tls=peer_pb2.TLS(server_name="worker1.kind-a.hubble-grpc.cilium.io"),
        )


def listen(address, server, *, batches=True):
    """Start a server and give it with its health."""
    grpc_server = grpc.server(futures.ThreadPoolExecutor(4))
    observer_pb2_grpc.add_ObserverServicer_to_server(server, grpc_server)
    peer_pb2_grpc.add_PeerServicer_to_server(server, grpc_server)
    if batches:
        flows_pb2_grpc.add_FlowsServiceServicer_to_server(server, grpc_server)
    states = health.HealthServicer()
    states.set("hubble.server.Observer", SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(states, grpc_server)
    reflection.enable_server_reflection(
        ["observer.Observer", "peer.Peer", reflection.SERVICE_NAME], grpc_server
    )
    grpc_server.add_insecure_port(address)
    grpc_server.start()
    return grpc_server, states


@pytest.fixture
def server(tmp_path, monkeypatch):
    one = Server()
    address = f"unix://{tmp_path}/hubble.sock"
    monkeypatch.setenv("HUBBLE_SERVER", address)
    grpc_server, one.health = listen(address, one)
    yield one
    grpc_server.stop(None).wait()


@pytest.fixture
def foreign_server(tmp_path, monkeypatch):
    one = Server()
    address = f"unix://{tmp_path}/foreign.sock"
    monkeypatch.setenv("HUBBLE_SERVER", address)
    grpc_server, one.health = listen(address, one, batches=False)
    yield one
    grpc_server.stop(None).wait()


def failing(words):
    with pytest.raises(HubbleError) as raised:
        run(words)
    return str(raised.value)


def test_flows_come_in_batches_from_our_own_servers(server, capsys):
    run(["observe", "--pod", "x"])

    assert capsys.readouterr().out.splitlines() == [
        f"Jan 15 10:20:3{second}.000:  (unknown) <>  (unknown) to-endpoint FORWARDED (flow {index})"
        for index, second in enumerate("1234")
    ]
    assert server.methods == ["GetFlowBatches"]
    [request] = server.requests
    assert request.number == 20
    assert [list(one.source_pod) for one in request.whitelist] == [["x"], []]
    assert tuple(request.field_mask.paths) == DEFAULT_FIELD_MASK


def test_flows_come_one_by_one_from_foreign_servers(foreign_server, capsys):
    run(["observe", "-o", "json", "--last", "3"])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["flow"]["Summary"] for line in lines] == ["flow 0", "flow 1", "flow 2"]
    assert foreign_server.methods == ["GetFlows"]
    assert not foreign_server.requests[0].HasField("field_mask")


@pytest.mark.parametrize(
    ("flags", "number", "first", "follow"),
    [
        ([], 20, False, False),
        (["--last", "7"], 7, False, False),
        (["--first", "7"], 7, True, False),
        (["--all"], 2**64 - 1, False, False),
        (["-f"], 0, False, True),
        (["-f", "--last", "3"], 3, False, True),
        (["--since", "1h"], 0, False, False),
        (["--since", "1h", "--last", "3"], 3, False, False),
        (["--until", "1h"], 0, False, False),
        (["-f", "--until", "nonsense"], 0, False, True),
    ],
)
def test_selectors_become_the_request(flags, number, first, follow, server):
    run(["observe", *flags])

    [request] = server.requests
    assert (request.number, request.first, request.follow) == (number, first, follow)


@pytest.mark.parametrize(
    ("flags", "paths"),
    [
        (["-o", "json"], ()),
        (["-o", "json", "--field-mask", "time,source.ID"], ("time", "source.ID")),
        (["--use-default-field-masks=false"], ()),
        (["-o", "dict"], DEFAULT_FIELD_MASK),
        (["--print-policy-names"], (*DEFAULT_FIELD_MASK, *POLICY_FIELDS)),
    ],
)
def test_field_masks(flags, paths, server):
    run(["observe", *flags])

    assert tuple(server.requests[0].field_mask.paths) == paths


def test_errors_of_the_filters_are_shown_bare_and_others_with_their_code(server):
    server.error = (grpc.StatusCode.UNKNOWN, "invalid source port filter: x")
    assert failing(["observe"]) == "invalid source port filter: x"

    server.error = (grpc.StatusCode.INVALID_ARGUMENT, "first cannot be specified with follow")
    assert failing(["observe"]) == (
        "rpc error: code = InvalidArgument desc = first cannot be specified with follow"
    )
    assert failing(["list", "nodes"]).startswith("rpc error: code = InvalidArgument desc = ")


def test_a_stream_cancelled_by_the_server_is_no_error(server):
    server.error = (grpc.StatusCode.CANCELLED, "")

    run(["observe"])


def test_a_server_that_is_not_there_is_told(tmp_path):
    text = failing(["observe", "--server", f"unix://{tmp_path}/none.sock"])

    assert text.startswith("rpc error: code = Unavailable desc = ")


def test_agent_and_debug_events(server, capsys):
    run(["observe", "agent-events", "--print-node-name"])
    run(["observe", "debug-events", "-f"])

    assert capsys.readouterr().out == (
        "N/A [n]: ENDPOINT_CREATED (id: 44, namespace: ns, pod name: p)\n"
        "N/A: shop/cart (ID: 101) DBG_L4_POLICY MARK: 0xabcdef CPU: 03"
        " (Resolved L4 policy to: 80 / ingress)\n"
    )
    assert [request.number for request in server.requests] == [20, 20]


def test_status(server, capsys):
    server.status.num_connected_nodes.value = 2
    server.status.num_unavailable_nodes.value = 12
    server.status.unavailable_nodes.extend(["kind-a/w1", "kind-a/w0"])

    run(["status", "--server", f"{server_address()}"])

    assert capsys.readouterr().out == (
        f"Healthcheck (via {server_address()}): Ok\n"
        "Current/Max Flows: 12,285/12,285 (100.00%)\n"
        "Flows/s: 1500.00\n"
        "Connected Nodes: 2/14\n"
        "Unavailable Nodes: 12\n"
        "  - kind-a/w0\n"
        "  - kind-a/w1\n"
        "  - and 10 more...\n"
    )


def server_address():
    import os

    return os.environ["HUBBLE_SERVER"]


def test_status_in_other_formats(server, capsys):
    run(["status", "-o", "dict"])
    run(["status", "-o", "table"])
    run(["status", "-o", "json"])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "          NUM FLOWS: 12,285"
    assert lines[3] == "   FLOWS PER SECOND: N/A"
    assert lines[6] == " NUM UNAVAIL. NODES: N/A"
    assert lines[8].startswith("NUM FLOWS   MAX FLOWS   SEEN FLOWS   FLOWS PER SECOND   UPTIME   ")
    assert json.loads(lines[10])["uptime_ns"] == "60000000000"


def test_status_of_an_unhealthy_server(server, capsys):
    server.health.set("hubble.server.Observer", NOT_SERVING)

    assert failing(["status"]) == "not healthy"
    assert capsys.readouterr().out.endswith("Unavailable: NOT_SERVING\n")


def test_status_of_a_server_that_fails(server):
    server.error = (grpc.StatusCode.UNKNOWN, "oops")

    assert failing(["status"]) == (
        "failed to get hubble server status: rpc error: code = Unknown desc = oops"
    )


def test_list_nodes(server, capsys):
    server.nodes = [
        observer_pb2.Node(
            name="kind-a/worker2",
            version="cilium v1.19.4+gabc",
            address="10.1.1.2:4244",
            state=relay_pb2.NODE_CONNECTED,
            tls=observer_pb2.TLS(enabled=True),
            uptime_ns=3_661_000_000_000,
            num_flows=4095,
            max_flows=4095,
            seen_flows=100_000,
        ),
        observer_pb2.Node(
            name="kind-a/worker1",
            address="10.1.1.1:4244",
            state=relay_pb2.NODE_UNAVAILABLE,
            tls=observer_pb2.TLS(),
        ),
    ]

    run(["list", "nodes", "-o", "wide"])
    run(["list", "nodes", "-o", "json"])

    printed = capsys.readouterr().out
    assert printed.startswith(
        "NAME             STATUS        AGE      FLOWS/S   CURRENT/MAX-FLOWS     VERSION"
        "               ADDRESS         TLS\n"
        "kind-a/worker1   Unavailable   N/A      N/A       N/A                   N/A"
        "                   10.1.1.1:4244   Disabled\n"
        "kind-a/worker2   Connected     1h1m1s   27.31     4095/4095 (100.00%)"
        "   cilium v1.19.4+gabc   10.1.1.2:4244   Enabled\n"
        "[\n  {\n"
    )


def test_list_namespaces(server, capsys):
    run(["list", "namespaces"])
    run(["list", "namespaces", "-o", "wide"])

    assert capsys.readouterr().out == (
        "NAMESPACE\nplain\nshop\nNAMESPACE   CLUSTER\nplain\nshop   kind-a\n"
    )
    assert failing(["list", "namespaces", "-o", "x"]) == "unknown output format: x"


def test_an_empty_list_reads_null_in_json(server, capsys):
    run(["list", "nodes", "-o", "json"])

    assert capsys.readouterr().out == "null\n"


def test_watch_peers(server, capsys):
    run(["watch", "peers"])

    assert capsys.readouterr().out == (
        "PEER_ADDED   10.1.1.1:4244 kind-a/worker1"
        " (TLS.ServerName: worker1.kind-a.hubble-grpc.cilium.io)\n"
    )


def test_reflect_prints_every_file_once(server, capsys):
    run(["reflect"])

    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert {"observer/observer.proto", "flow/flow.proto", "peer/peer.proto"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("version", "warned"), [("1.19.4+g1", False), ("1.20.0", True), ("2.0", True), ("odd", False)]
)
def test_a_newer_server_is_warned_of(version, warned, server, capsys):
    server.headers = (("hubble-relay-version", version),)

    run(["list", "namespaces"])

    assert ("a matching or newer hubble is recommended" in capsys.readouterr().err) == warned


COUNTED = """\
SOURCE     DROP REASON     FLOWS   PACKETS   BYTES     LAST SEEN
source 0   drop_reason 0   3,000   12        4.0 KiB   Jan 15 10:20:32.000
source 1   drop_reason 1   2,999   12        4.0 KiB   Jan 15 10:20:32.000
and 1,234 flows in 4 further groups
not seen: node2 lost 7 events in the kernel, where events came faster than they were read
not seen: node2 has nothing older than Jan 15 10:20:30.000
not seen: node3 did not answer
"""


def test_flows_are_counted_and_what_was_not_seen_is_told(server, capsys):
    run(["observe", "--since", "5m", "--pod", "x", "--aggregate-by", "source,drop-reason"])

    assert capsys.readouterr().out == COUNTED
    [request] = server.requests
    assert [NUMBERS[one] for one in request.by] == ["SOURCE", "DROP_REASON"]
    assert request.flows.HasField("since")
    assert [list(one.source_pod) for one in request.flows.whitelist] == [["x"], []]


def test_counts_are_a_document_too(server, capsys):
    run(["observe", "--aggregate-by", "source", "--most", "2", "-o", "json"])

    document = json.loads(capsys.readouterr().out)
    assert document["groups"][0] == {
        "source": "source 0",
        "flows": 3000,
        "packets": 12,
        "bytes": 4096,
        "first": "2026-01-15T10:20:31Z",
        "last": "2026-01-15T10:20:32Z",
    }
    assert document["missing_nodes"] == ["node3"]
    assert document["budgets"][1]["lost_in_kernel"] == 7
    assert server.requests[0].most == 2


def test_flows_of_foreign_servers_are_counted_here(foreign_server, capsys):
    run(["observe", "--aggregate-by", "verdict,type"])

    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["VERDICT", "TYPE", "FLOWS", "PACKETS", "BYTES", "LAST", "SEEN"]
    assert line.split()[:3] == ["FORWARDED", "trace", "3"]


def test_flows_of_a_file_are_counted(tmp_path, capsys):
    run(["observe", "--input-file", str(FLOWS), "--aggregate-by", "verdict"])

    counted = {
        line.split()[0]: int(line.split()[1]) for line in capsys.readouterr().out.splitlines()[1:]
    }
    lines = [json.loads(line) for line in FLOWS.read_text().splitlines()]
    assert sum(counted.values()) == sum("flow" in line for line in lines)


def test_top_counts_the_last_seconds_once_without_a_terminal(server, capsys):
    run(["top", "--by", "source,drop-reason", "--window", "5s"])

    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == [
        *("SOURCE", "DROP", "REASON", "FLOWS", "FLOWS/S", "PACKETS", "BYTES", "LAST", "SEEN"),
    ]
    assert "600.0" in shown[1]
    [request] = server.requests
    assert (request.most, request.flows.HasField("since")) == (20, True)


def test_stats_answer_several_questions_and_tell_once_what_was_not_seen(server, capsys):
    run(["stats", "--since", "1h"])

    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line in ("Verdicts", "Busiest pairs")] == [
        "Verdicts",
        "Busiest pairs",
    ]
    assert shown.count("node3 did not answer") == 1
    assert len(server.requests) == 5
    for request in server.requests:
        expected = []
        if flows_pb2.DIMENSION_PORT in request.by:
            expected.append(flow_pb2.FlowFilter(reply=[True]))
        if flows_pb2.DIMENSION_DROP_REASON in request.by:
            others = [one for one in flow_pb2.Verdict.values() if one != flow_pb2.DROPPED]
            expected.append(flow_pb2.FlowFilter(verdict=others))
        assert list(request.flows.blacklist) == expected

    run(["stats", "-o", "json"])
    assert set(json.loads(capsys.readouterr().out)) >= {"Verdicts", "Protocols"}


def test_what_cannot_be_counted_is_an_error(server):
    assert "cannot be counted by 'colour'" in failing(["observe", "--aggregate-by", "colour"])
    assert "cannot be counted by 'colour'" in failing(["top", "--by", "colour"])
    assert "leave out --follow" in failing(["observe", "-f", "--aggregate-by", "source"])


def test_the_names_of_what_is_counted_by_are_those_of_the_api():
    assert set(names.DIMENSIONS) == set(NAMES)
