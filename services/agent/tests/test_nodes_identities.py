"""Identities of other nodes, the node's own labels, and the node as an endpoint."""

import ipaddress

import pytest
from cilium_agent.endpoints.records import HOST_ID
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.hostendpoint import HostEndpoint, host_labels
from cilium_agent.nodeidentities import NodeIdentities
from cilium_core.records import CILIUM_INTERNAL_IP, INTERNAL_IP, NodeAddress, NodeRecord

MARKS = {"k8s:io.cilium.k8s.policy.cluster=default", "reserved:remote-node"}


def node(name="node2", ip="172.30.0.12", **labels):
    addresses = ((INTERNAL_IP, ip), (INTERNAL_IP, "fd00::12"), (CILIUM_INTERNAL_IP, "10.0.2.1"))
    listed = tuple(NodeAddress(kind, ipaddress.ip_address(address)) for kind, address in addresses)
    return NodeRecord(name, addresses=listed, labels=labels)


def at(record, ip="172.30.0.12"):
    return next(a for a in record.addresses if str(a.ip) == ip)


def acquire(identities, record, ip="172.30.0.12"):
    return identities.acquire(record, at(record, ip))


def make(folder, *, by_labels=True, by_address=False):
    file = folder / "numbers.json"
    return NodeIdentities(file, by_labels=by_labels, by_address=by_address)


def test_a_remote_node_has_its_labels_beside_those_that_mark_it(tmp_path):
    labels = make(tmp_path).labels_of(node(zone="z1"), at(node()))
    assert set(labels.texts()) == {"node:zone=z1", *MARKS}


def test_no_label_of_a_node_replaces_what_marks_it(tmp_path):
    forged = {
        "remote-node": "x",
        "io.cilium.k8s.policy.cluster": "other",
        "172.30.0.12/32": "x",
    }
    found = make(tmp_path, by_address=True).labels_of(node(**forged), at(node())).texts()
    assert {"reserved:remote-node", "cidr:172.30.0.12/32"} <= set(found)
    assert "k8s:io.cilium.k8s.policy.cluster=default" in found
    assert "reserved:host" in host_labels({"host": "x"}).texts()


def test_where_cidrs_match_nodes_each_family_of_a_node_is_an_identity(tmp_path):
    identities = make(tmp_path, by_labels=False, by_address=True)
    other = node(zone="z1")
    texts = {str(a.ip): set(identities.labels_of(other, a).texts()) for a in other.addresses}
    assert texts == {
        "172.30.0.12": {"cidr:172.30.0.12/32", *MARKS},
        "fd00::12": {"cidr:fd00--12/128", *MARKS},
        "10.0.2.1": {"cidr:172.30.0.12/32", *MARKS},
    }
    first = acquire(identities, node())
    assert first == acquire(identities, node(), "10.0.2.1")
    assert first != acquire(identities, node(), "fd00::12")
    assert first != acquire(identities, node(ip="172.30.0.13"), "172.30.0.13")


def test_nodes_with_equal_labels_share_a_number_of_the_remote_scope(tmp_path):
    identities = make(tmp_path)
    first, second = (
        acquire(identities, node("a", zone="z")),
        acquire(identities, node("b", zone="z")),
    )
    assert first == second
    assert first.id >> 24 == 2
    assert not identities.release(first)
    assert identities.release(second)


def test_numbers_survive_a_restart_until_no_node_has_them(tmp_path):
    number = acquire(make(tmp_path), node(zone="z")).id
    again = make(tmp_path)
    assert set(again.restore()) == {number}
    assert acquire(again, node(zone="other")).id != number
    assert acquire(again, node(zone="z")).id == number
    assert again.finish_restoring() == []
    third = make(tmp_path)
    third.restore()
    acquire(third, node(zone="z"))
    assert len(third.finish_restoring()) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"x": []}', '{"1": 1}'])
def test_a_broken_file_of_numbers_is_passed_over(tmp_path, content):
    (tmp_path / "numbers.json").write_text(content)
    assert make(tmp_path).restore() == {}


class NoPolicies:
    async def build(self, endpoint):
        endpoint.note("built")


async def test_the_node_is_an_endpoint_with_its_labels_and_options(tmp_path):
    table = EndpointTable()
    host = HostEndpoint(table, NoPolicies(), tmp_path / "host.json")
    endpoint = host.make(7, "02:00:00:00:00:07", {"role": "db"})
    assert (table.get(HOST_ID), endpoint.identity, endpoint.is_host) == (endpoint, 1, True)
    assert set(endpoint.labels.texts()) == {"k8s:role=db", "reserved:host"}
    await host.relabel({"role": "web"})
    assert [entry.message for entry in endpoint.log][-1] == "built"
    endpoint.audit = True
    await host.save()
    again = HostEndpoint(EndpointTable(), NoPolicies(), tmp_path / "host.json")
    assert again.make(7, "02:00:00:00:00:07", {}).audit


def test_pods_never_get_the_nodes_id():
    table = EndpointTable()
    assert HOST_ID not in {table.new_id() for _ in range(65534)}
