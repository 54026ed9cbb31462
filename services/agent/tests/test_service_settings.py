"""What settings of services mean to the data plane and to the model."""

import ipaddress
from pathlib import Path
from types import SimpleNamespace

import pytest
from cilium_agent import configurations
from cilium_agent.datapath.configuring import fields
from cilium_agent.datapath.models import NodeConfig, ServiceConfig
from cilium_agent.services.facts import node_facts
from cilium_agent.settings import AgentSettings
from cilium_core import abi
from cilium_core.records import CILIUM_INTERNAL_IP, INTERNAL_IP, NodeAddress, NodeRecord
from cilium_core.settings import SettingsError, load


def settings(*arguments):
    return load(AgentSettings, ["--node-name=node1", *arguments], {}).value


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--node-port-range=1", "node-port-range"),
        ("--node-port-range=40000,30000", "node-port-range"),
        ("--node-port-range=30000,66000", "node-port-range"),
        ("--bpf-lb-maglev-table-size=1000", "bpf-lb-maglev-table-size"),
        ("--bpf-lb-maglev-hash-seed=short", "bpf-lb-maglev-hash-seed"),
        ("--nodeport-addresses=10.0.0.0/33", "nodeport-addresses"),
        ("--bpf-lb-mode=dnat", "bpf-lb-mode"),
    ],
)
def test_nonsense_is_refused_by_name(argument, named):
    with pytest.raises(SettingsError, match=named):
        settings(argument)


@pytest.mark.parametrize(
    ("mode", "tcp", "udp"), [("snat", False, False), ("dsr", True, True), ("hybrid", True, False)]
)
def test_the_mode_says_who_answers_clients(mode, tcp, udp):
    config = configurations.service_config(settings(f"--bpf-lb-mode={mode}"))
    assert (config.dsr_tcp, config.dsr_udp) == (tcp, udp)


def test_without_kube_proxy_replacement_nothing_is_served_from_outside():
    given = settings("--kube-proxy-replacement=false")
    flags = fields(NodeConfig(services=configurations.service_config(given)))["flags"]
    assert not flags & abi.CONFIG_LB_NODES
    assert flags & abi.CONFIG_LB_PODS
    assert not configurations.service_options(given).kube_proxy_replacement


def test_masquerading_leaves_the_node_ports_alone():
    host = SimpleNamespace(ipv4=None, ipv6=None, devices=(), mtu=1500)
    pool = SimpleNamespace(routers=lambda: ("", ""), pool=SimpleNamespace(pod_cidrs=()))
    config = configurations.node_config(settings("--node-port-range=35000,36000"), host, pool)
    assert (config.nat_port_min, config.services.node_port_max) == (36001, 36000)


def test_the_cgroup_is_the_mount_unless_told():
    assert configurations.service_config(settings()).cgroup is None
    given = settings("--cgroup-root=/sys/fs/cgroup/node1")
    assert configurations.service_config(given).cgroup == Path("/sys/fs/cgroup/node1")


def test_acceleration_is_on_for_every_value_but_disabled():
    for value in ("native", "best-effort", "testing-only"):
        flags = fields(NodeConfig(services=ServiceConfig(acceleration=value)))["flags"]
        assert flags & abi.CONFIG_LB_XDP
    assert not fields(NodeConfig())["flags"] & abi.CONFIG_LB_XDP


OWN = ipaddress.ip_address("172.30.0.1")
ROUTER = ipaddress.ip_address("10.244.0.1")
SECOND = ipaddress.ip_address("192.168.7.1")
OTHER = ipaddress.ip_address("172.30.0.2")


def record(name, *addresses):
    return NodeRecord(
        name=name, cluster="default", cluster_id=0, addresses=addresses, pod_cidrs=(), labels={}
    )


def nodes():
    own = record("node1", NodeAddress(INTERNAL_IP, OWN), NodeAddress(CILIUM_INTERNAL_IP, ROUTER))
    other = record("node2", NodeAddress(INTERNAL_IP, OTHER))
    labels = {"topology.kubernetes.io/zone": "z1"}
    return SimpleNamespace(own=own, all=lambda: [own, other], labels=labels)


def test_node_ports_are_on_the_nodes_own_address():
    facts = node_facts(settings(), nodes(), [SECOND])
    assert facts.node_port_addresses == (OWN,)
    assert facts.addresses == {OWN, ROUTER, SECOND}
    assert facts.remote_addresses == {OTHER}
    assert facts.zone == "z1"


def test_node_ports_are_on_the_addresses_of_named_networks():
    given = settings("--nodeport-addresses=192.168.0.0/16")
    assert node_facts(given, nodes(), [SECOND]).node_port_addresses == (SECOND,)


def test_there_are_no_facts_before_the_node_is_known():
    assert node_facts(settings(), SimpleNamespace(own=None), []) is None
