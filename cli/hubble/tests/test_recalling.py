# ruff: noqa: N802  methods are named as the services name them
"""`hubble observe --at`: states of the past as tables and documents."""

import json
from concurrent import futures

import grpc
import pytest
from cilium.flows.v1 import states_pb2, states_pb2_grpc
from cilium.metadata.v1 import metadata_pb2
from flow import flow_pb2
from hubble_cli.__main__ import run
from hubble_cli.errors import RemoteError, UsageError

AT_NS = 1_768_472_431 * 10**9


class Server(states_pb2_grpc.StateServiceServicer):
    """Two nodes, one of which has nothing."""

    def GetState(self, request, context):
        self.request = request
        yield states_pb2.NodeState(
            node_name="node1",
            told_ns=AT_NS - 120 * 10**9,
            kept_from_ns=AT_NS - 10**12,
            policies=[
                flow_pb2.Policy(kind="CiliumNetworkPolicy", namespace="shop", name="cart"),
                flow_pb2.Policy(labels=["reserved:io.cilium.policy.derived-from=allow-localhost"]),
            ],
        )
        yield states_pb2.NodeState(node_name="node2", note="did not answer")
        yield states_pb2.NodeState(
            node_name="node1",
            endpoints=[
                metadata_pb2.Endpoint(
                    id=7, identity=1000, namespace="shop", pod_name="cart-1", ips=["10.1.0.7"]
                ),
                metadata_pb2.Endpoint(id=8, identity=1001, namespace="web", pod_name="front"),
            ],
        )
        yield states_pb2.NodeState(
            node_name="node1",
            identities=[
                metadata_pb2.Identity(id=1000, labels=["k8s:app=cart"]),
                metadata_pb2.Identity(id=1001, labels=["k8s:app=front"]),
            ],
            addresses=[metadata_pb2.IPEntry(prefix="10.1.0.7/32", identity=1000)],
        )


@pytest.fixture
def server(tmp_path, monkeypatch):
    one = Server()
    grpc_server = grpc.server(futures.ThreadPoolExecutor(2))
    states_pb2_grpc.add_StateServiceServicer_to_server(one, grpc_server)
    address = f"unix://{tmp_path}/hubble.sock"
    monkeypatch.setenv("HUBBLE_SERVER", address)
    grpc_server.add_insecure_port(address)
    grpc_server.start()
    yield one
    grpc_server.stop(None).wait()


TABLES = """\
State at 2026-01-15T10:20:31Z

Endpoints
NODE    ID   POD           ADDRESSES   IDENTITY   LABELS
node1   7    shop/cart-1   10.1.0.7    1000       k8s:app=cart
node1   8    web/front     -           1001       k8s:app=front

Identities
ID     LABELS
1000   k8s:app=cart
1001   k8s:app=front

Policies
KIND                  NAME        NODES
CiliumNetworkPolicy   shop/cart   node1

not known: node1: what happened since 2026-01-15T10:18:31Z, when it last heard of its agent
not known: node2: did not answer
"""


def test_a_moment_is_told_in_tables_with_what_is_not_known_of_it(server, capsys):
    run(["observe", "--at", "2026-01-15T10:20:31Z"])

    assert capsys.readouterr().out == TABLES
    assert server.request.at_ns == AT_NS


def test_filters_choose_endpoints_and_what_belongs_to_them(server, capsys):
    run(["observe", "--at", "2026-01-15T10:20:31Z", "-n", "web", "-o", "json"])

    document = json.loads(capsys.readouterr().out)
    (first, second) = document["nodes"]
    assert [one["pod_name"] for one in first["endpoints"]] == ["front"]
    assert [one["id"] for one in first["identities"]] == [1001]
    assert [one.get("name") for one in first["policies"]] == [None]
    assert first["addresses"] == []
    assert second["note"] == "did not answer"
    assert document["at"] == "2026-01-15T10:20:31Z"
    run(["observe", "--at", "2026-01-15T10:20:31Z", "--ip", "10.1.0.0/24", "-o", "json"])
    (first, _) = json.loads(capsys.readouterr().out)["nodes"]
    assert [one["prefix"] for one in first["addresses"]] == ["10.1.0.7/32"]
    assert [one.get("name") for one in first["policies"]] == ["cart", None]


def test_a_moment_and_flows_do_not_go_together(server):
    with pytest.raises(UsageError, match="leave out --follow"):
        run(["observe", "--at", "5m", "--follow"])


def test_servers_of_another_kind_are_told_of(tmp_path, monkeypatch):
    grpc_server = grpc.server(futures.ThreadPoolExecutor(1))
    address = f"unix://{tmp_path}/hubble.sock"
    monkeypatch.setenv("HUBBLE_SERVER", address)
    grpc_server.add_insecure_port(address)
    grpc_server.start()
    try:
        with pytest.raises(RemoteError, match="keeps no states"):
            run(["observe", "--at", "5m"])
    finally:
        grpc_server.stop(None).wait()
