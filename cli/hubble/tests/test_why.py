# ruff: noqa: N802  methods are named as the services name them
"""`hubble why`: what is asked, and how the answer reads."""

import json
from concurrent import futures

import grpc
import pytest
from cilium.agent.v1 import agent_pb2
from cilium.flows.v1 import explain_pb2, explain_pb2_grpc
from flow import flow_pb2
from hubble_cli.__main__ import run
from hubble_cli.errors import RemoteError, UsageError
from observer import observer_pb2, observer_pb2_grpc

UUID = "7bb0cd1e-7f6d-4e1c-9a59-3f6a8f4e4a0d"


def dropped():
    flow = flow_pb2.Flow(
        uuid=UUID,
        verdict=flow_pb2.DROPPED,
        drop_reason=133,
        source=flow_pb2.Endpoint(
            namespace="shop", pod_name="web", identity=700, labels=["k8s:a=b"]
        ),
        IP=flow_pb2.IP(source="10.0.0.1", destination="10.0.0.2"),
        l4=flow_pb2.Layer4(TCP=flow_pb2.TCP(source_port=4000, destination_port=80)),
        traffic_direction=flow_pb2.EGRESS,
        event_type=flow_pb2.CiliumEventType(type=1, sub_type=133),
        egress_denied_by=[flow_pb2.Policy(kind="NetworkPolicy", namespace="shop", name="no")],
        file=flow_pb2.FileInfo(name="policy.h", line=82),
        Summary="TCP Flags: SYN\x1b[2J",
    )
    flow.time.FromJsonString("2026-01-15T10:20:31Z")
    return flow


def explained():
    frontend = agent_pb2.ServiceAddress(ip="10.96.0.1", port=80, protocol=6)
    backend = agent_pb2.ServiceBackend(
        address=agent_pb2.ServiceAddress(ip="10.0.0.2", port=80, protocol=6), state="active"
    )
    return explain_pb2.ExplainFlowResponse(
        flow=dropped(),
        node_name="node1",
        conclusion="Policy dropped it.",
        drop=explain_pb2.DropMeaning(code=133, text="Policy denied", meaning="M.", remedy="R."),
        counts=explain_pb2.TrafficCounts(packets=1, bytes=1074),
        translation=explain_pb2.ServiceTranslation(frontend=frontend, service="shop/api"),
        frontends=[agent_pb2.Service(frontend=frontend, type="ClusterIP", backends=[backend])],
        policy=agent_pb2.ExplainPolicyResponse(
            revision=4,
            source=agent_pb2.PolicyParty(name="shop/web"),
            destination=agent_pb2.PolicyParty(name="10.0.0.2"),
            egress=agent_pb2.ExplainedDirection(
                direction="egress",
                message="no rule allows it",
                reason="default-deny",
                default_deny=["NetworkPolicy shop/no"],
            ),
            ingress=agent_pb2.ExplainedDirection(direction="ingress", allowed=True, message="free"),
        ),
        notes=["Something has changed."],
        missing_nodes=["node3"],
    )


TEXT = """\
2026-01-15T10:20:31Z: shop/web:4000 (ID:700) <> 10.0.0.2:80 (unknown) Policy denied DROPPED \
(TCP Flags: SYN^[[2J)
  Policy dropped it.
  seen on node1, uuid 7bb0cd1e-7f6d-4e1c-9a59-3f6a8f4e4a0d
  from shop/web, 10.0.0.1: identity 700
       k8s:a=b
  to   10.0.0.2: no identity
  1 packet, 1,074 bytes since the last flow of this connection and direction
  denied at egress then by NetworkPolicy shop/no

Drop reason: Policy denied (code 133, policy.h:82)
  M.
  What to do: R.

Service: shop/api, asked at 10.96.0.1:80/TCP, translated at the client's socket
  shop/web got 10.0.0.2:80
  ClusterIP 10.96.0.1:80/TCP: 10.0.0.2:80/TCP (active) <- this one

Policies of now (revision 4):
  Egress at shop/web: DENIED, no rule allows it
    default deny because of: NetworkPolicy shop/no
  Ingress at 10.0.0.2: ALLOWED, free

note: Something has changed.
not seen: node3 did not answer, and may have a newer such flow
"""


class Server(explain_pb2_grpc.ExplanationServiceServicer, observer_pb2_grpc.ObserverServicer):
    """Explains one flow, or has one."""

    def __init__(self):
        self.requests = []
        self.error = None

    def ExplainFlow(self, request, context):
        self.requests.append(request)
        if self.error:
            context.abort(*self.error)
        return explained()

    def GetFlows(self, request, context):
        self.requests.append(request)
        if request.whitelist[0].uuid == [UUID]:
            yield observer_pb2.GetFlowsResponse(flow=dropped(), node_name="go1")


@pytest.fixture
def serve(tmp_path):
    server = Server()
    running = []

    def start(*, explains=True):
        grpc_server = grpc.server(futures.ThreadPoolExecutor(2))
        observer_pb2_grpc.add_ObserverServicer_to_server(server, grpc_server)
        if explains:
            explain_pb2_grpc.add_ExplanationServiceServicer_to_server(server, grpc_server)
        address = f"unix://{tmp_path}/hubble.sock"
        grpc_server.add_insecure_port(address)
        grpc_server.start()
        running.append(grpc_server)
        return server, address

    yield start
    for one in running:
        one.stop(None)


def test_the_answer_reads_from_what_happened_to_what_is_not_known(serve, capsys):
    server, address = serve()

    run(["why", UUID, "--verify", "--server", address])

    assert capsys.readouterr().out == TEXT
    (request,) = server.requests
    assert [list(one.uuid) for one in request.flows.whitelist] == [[UUID]]
    assert request.verify


def test_filters_and_times_say_which_flow(serve, capsys):
    server, address = serve()

    run(
        [
            *("why", "--verdict", "DROPPED", "--not", "--port", "53", "--since", "1970-01-02"),
            *("-o", "json", "--server", address),
        ]
    )

    assert json.loads(capsys.readouterr().out)["flow"]["uuid"] == UUID
    flows = server.requests[0].flows
    assert [list(one.verdict) for one in flows.whitelist] == [[flow_pb2.DROPPED]]
    assert [list(one.source_port) for one in flows.blacklist] == [["53"], []]
    assert flows.since.seconds == 86_400
    assert not flows.HasField("until")


def test_a_server_that_cannot_explain_is_asked_for_the_flow_alone(serve, capsys):
    _, address = serve(explains=False)

    run(["why", UUID, "--server", address])

    printed = capsys.readouterr().out
    assert (
        "Policy dropped it at shop/web (egress), because of NetworkPolicy shop/no (denies)."
    ) in printed
    assert "  seen on go1, uuid" in printed
    assert "note: Policies were not asked: the server is of a kind that cannot tell." in printed


@pytest.mark.parametrize("explains", [True, False])
def test_a_flow_that_is_not_there_is_an_error(serve, explains):
    server, address = serve(explains=explains)
    server.error = (grpc.StatusCode.NOT_FOUND, "node1 has no such flow, or no longer")

    with pytest.raises(RemoteError, match="has no such flow, or no longer"):
        run(["why", "another", "--server", address])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "say which flow"),
        ([UUID, "--verdict", "DROPPED"], "leave out the filters"),
        ([UUID, "more"], "exactly 0 or 1 argument"),
        ([UUID, "-o", "yaml"], "invalid output format: yaml"),
    ],
)
def test_what_makes_no_sense_is_told(words, text):
    with pytest.raises(UsageError, match=text):
        run(["why", *words])
