"""The whole facade over tiny programs, in a network namespace of its own."""

from __future__ import annotations

import ctypes
import functools
import ipaddress
import os
import statistics
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent import datapath
from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath import specs
from cilium_core import abi
from pyroute2 import IPRoute

from tests.bpf.harness import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

V4, V6 = ipaddress.IPv4Address, ipaddress.IPv6Address
CONFIG = datapath.NodeConfig(
    node_ipv4=V4("172.30.0.11"),
    node_ipv6=V6("fd00:30::11"),
    router_ipv4=V4("10.244.0.1"),
    router_ipv6=V6("fd00:244::1"),
    pod_cidrs=(ipaddress.ip_network("10.244.0.0/24"), ipaddress.ip_network("fd00:244::/64")),
    devices=("eth0",),
)


@dataclass
class Node:
    """A node: its namespace, and the data plane to be started there."""

    namespace: Namespace
    plane: datapath.Datapath
    pod: Path
    root: Path

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Run inside the node's namespace."""
        return self.namespace.call(function, *arguments, **named)

    def start(self, config: datapath.NodeConfig = CONFIG) -> None:
        self.call(self.plane.start_sync, config)

    def netlink(self, function: Callable[[Any], Any]) -> Any:
        """Run with a netlink socket inside."""

        def inside() -> Any:
            with IPRoute() as netlink:
                return function(netlink)

        return self.call(inside)

    def add_pod(self, number: int) -> datapath.EndpointInfo:
        """Make an endpoint with an interface of its own in the pod's namespace."""
        ipv4, ipv6 = V4(f"10.244.0.{number}"), V6(f"fd00:244::{number}")
        made = self.call(
            datapath.netns.create,
            self.pod,
            f"eth{number}",
            "container",
            ipv4=ipv4,
            ipv6=ipv6,
            router_ipv4=CONFIG.router_ipv4,
            router_ipv6=CONFIG.router_ipv6,
        )
        info = datapath.EndpointInfo(
            id=number,
            identity=1000,
            ifindex=made.ifindex,
            mac=made.mac,
            node_mac=made.node_mac,
            ipv4=ipv4,
            ipv6=ipv6,
        )
        self.call(self.plane.endpoints.upsert, info)
        self.call(self.plane.attach_endpoint, made.ifindex)
        return info


@pytest.fixture
def pod_namespace(root: None) -> Iterator[Path]:
    """The path of a network namespace that lives as long as the test."""
    ready, done = threading.Event(), threading.Event()
    found: list[Path] = []

    def live() -> None:
        ctypes.CDLL(None).unshare(0x40000000)
        found.append(Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"))
        ready.set()
        done.wait()

    thread = threading.Thread(target=live)
    thread.start()
    ready.wait(10)
    yield found[0]
    done.set()
    thread.join()


@pytest.fixture
def node(
    sources: Path,
    template_cache: Path,
    bpf_root: Path,
    namespace: Namespace,
    pod_namespace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Node]:
    monkeypatch.setattr(specs, "bpf_folder", lambda: sources)
    paths = datapath.DatapathPaths(bpf_root, template_cache)
    made = Node(namespace, datapath.Datapath(paths, {"cilium_policy": 64}), pod_namespace, bpf_root)

    def device(netlink: Any) -> None:
        netlink.link("add", ifname="eth0", kind="veth", peer={"ifname": "wire"})
        netlink.link("set", index=nl.index_of(netlink, "eth0"), state="up")

    made.netlink(device)
    yield made
    made.call(made.plane.teardown)


def _programs_on(netlink: Any, *names: str) -> dict[str, dict[str, str]]:
    indices = {name: nl.index_of(netlink, name) for name in names}
    return {name: nl.filter_names(netlink, index) for name, index in indices.items() if index}


def _hooks(node: Node) -> dict[str, dict[str, str]]:
    names = ("eth0", "cilium_host", "cilium_net", "cilium_vxlan")
    found: dict[str, dict[str, str]] = node.netlink(lambda n: _programs_on(n, *names))
    return found


def test_start_puts_every_program_on_its_hook(node: Node) -> None:
    node.start()

    assert _hooks(node) == {
        "eth0": {nl.INGRESS: "cil_from_netdev", nl.EGRESS: "cil_to_netdev"},
        "cilium_host": {nl.INGRESS: "cil_to_host", nl.EGRESS: "cil_from_host"},
        "cilium_net": {nl.INGRESS: "cil_to_host"},
        "cilium_vxlan": {nl.INGRESS: "cil_from_overlay", nl.EGRESS: "cil_to_overlay"},
    }


def test_the_programs_know_the_nodes_devices_and_addresses(node: Node) -> None:
    node.start()

    config = node.plane.live_config()
    index = node.netlink(lambda n: nl.index_of(n, "cilium_host"))
    assert config["host_ifindex"] == index
    assert config["router_ipv4"].to_bytes(4, "little") == V4("10.244.0.1").packed
    assert config["node_ipv6"] == V6("fd00:30::11").packed
    assert config["flags"] & abi.CONFIG_TUNNEL


def test_the_host_reaches_pods_through_cilium_host(node: Node) -> None:
    node.start()
    remote = tuple(map(ipaddress.ip_network, ("10.244.1.0/24", "fd00:244:0:1::/64")))
    node.call(node.plane.routes.set_node, datapath.RemoteNode("b", remote))

    routes = node.call(node.plane.routes.dump)

    local = dict.fromkeys(CONFIG.pod_cidrs, 0)
    assert routes == {**local, **dict.fromkeys(remote, 1450)}


def test_routes_to_nodes_that_left_while_the_agent_was_away_are_removed(node: Node) -> None:
    node.start()
    for name, prefix in (("b", "10.244.1.0/24"), ("c", "10.244.2.0/24")):
        left = datapath.RemoteNode(name, (ipaddress.ip_network(prefix),))
        node.call(node.plane.routes.set_node, left)

    node.start()
    stayed = datapath.RemoteNode("c", (ipaddress.ip_network("10.244.2.0/24"),))
    node.call(node.plane.routes.sync, [stayed])

    assert set(node.call(node.plane.routes.dump)) == {*CONFIG.pod_cidrs, *stayed.pod_cidrs}


def test_a_node_may_change_its_pod_cidr(node: Node) -> None:
    node.start()
    for prefix in ("10.244.1.0/24", "10.244.7.0/24"):
        moved = datapath.RemoteNode("b", (ipaddress.ip_network(prefix),))
        node.call(node.plane.routes.set_node, moved)

    assert ipaddress.ip_network("10.244.1.0/24") not in node.call(node.plane.routes.dump)
    node.call(node.plane.routes.delete_node, "b")
    assert set(node.call(node.plane.routes.dump)) == set(CONFIG.pod_cidrs)


def test_a_restart_changes_nothing_in_a_living_data_plane(node: Node) -> None:
    node.start()
    endpoint = node.add_pod(10)
    node.plane.policy.replace(10, {})
    before = (_identities(node), _hooks(node), node.plane.endpoints.dump())

    node.start()

    assert (_identities(node), _hooks(node), node.plane.endpoints.dump()) == before
    hooks = node.netlink(lambda n: nl.filter_names(n, endpoint.ifindex))
    assert hooks == {nl.INGRESS: "cil_from_container", nl.EGRESS: "cil_to_container"}


def _identities(node: Node) -> list[tuple[str, int]]:
    """Names and inode numbers of the pins, which change with every new pin."""
    return sorted(
        (str(path.relative_to(node.root)), path.stat().st_ino) for path in node.root.rglob("*")
    )


def test_a_restart_keeps_live_settings_that_are_not_the_configurations(node: Node) -> None:
    node.start()
    prefix = ipaddress.ip_network("192.0.2.0/24")
    node.call(node.plane.prefilter.update, add=[prefix], rate_limit_pps=50)

    node.start()

    state = node.call(node.plane.prefilter.get)
    assert (dict(state.cidrs), state.rate_limit_pps) == ({prefix: 0}, 50)
    assert set(state.attached) == {"eth0"}


def test_the_prefilter_is_attached_only_while_it_refuses_something(node: Node) -> None:
    node.start()
    prefix = ipaddress.ip_network("2001:db8::/32")

    before = node.call(node.plane.prefilter.get).attached
    during = node.call(node.plane.prefilter.update, add=[prefix]).attached
    after = node.call(node.plane.prefilter.update, remove=[prefix]).attached

    assert (set(before), set(during), set(after)) == (set(), {"eth0"}, set())


def test_settings_change_while_it_runs(node: Node) -> None:
    node.start()

    node.plane.set_config(hubble=False, aggregation=0)

    config = node.plane.live_config()
    assert not config["flags"] & abi.CONFIG_HUBBLE
    assert config["aggregation"] == 0
    assert node.plane.config.hubble is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": ("nope0",)}, "device nope0 does not exist"),
        ({"nat_port_min": 7, "nat_port_max": 6}, "nat ports 7 to 6"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(
    node: Node, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(datapath.DatapathError, match=message):
        node.start(replace(CONFIG, **change))


def test_an_unknown_device_of_a_pod_is_refused(node: Node) -> None:
    node.start()

    with pytest.raises(datapath.DeviceError, match="programs of device 4242"):
        node.call(node.plane.attach_endpoint, 4242)


def test_a_pods_interface_is_complete(node: Node) -> None:
    node.start()
    node.add_pod(10)

    node.call(
        datapath.netns.check, node.pod, "eth10", ipv4=V4("10.244.0.10"), ipv6=V6("fd00:244::10")
    )
    with pytest.raises(datapath.NamespaceError, match=r"eth10 lacks the address 10\.244\.0\.11"):
        node.call(datapath.netns.check, node.pod, "eth10", ipv4=V4("10.244.0.11"))
    with pytest.raises(datapath.NamespaceError, match="there is no interface eth99"):
        node.call(datapath.netns.check, node.pod, "eth99")


def test_leftovers_of_a_failed_attempt_are_replaced(node: Node) -> None:
    node.start()
    first = node.add_pod(10)
    second = node.add_pod(10)

    assert first.ifindex != second.ifindex
    assert [info.ifindex for info in node.plane.endpoints.dump()] == [second.ifindex]


def test_a_pods_interface_can_be_removed_from_both_sides_and_twice(node: Node) -> None:
    node.start()
    node.add_pod(10)
    node.add_pod(11)

    assert node.call(datapath.netns.delete, node.pod, "eth10")
    assert not node.call(datapath.netns.delete, node.pod, "eth10")
    assert node.call(datapath.netns.delete_host, "container", "eth11")
    assert not node.call(datapath.netns.delete_host, "container", "eth11")
    assert not datapath.netns.delete("/proc/self/ns/nothing", "eth0")


def test_a_missing_namespace_is_named(root: None) -> None:
    with pytest.raises(datapath.NamespaceError, match="/run/netns/gone: No such file"):
        datapath.netns.create("/run/netns/gone", "eth0", "container")


def test_the_last_of_two_hundred_pods_costs_what_the_first_did(node: Node) -> None:
    node.start()
    programs = _identities(node)
    took: list[float] = []

    for number in range(200):
        index = node.netlink(functools.partial(_veth, name=f"lxc{number}"))
        started = time.perf_counter()
        node.call(node.plane.attach_endpoint, index)
        took.append(time.perf_counter() - started)

    assert _identities(node) == programs
    assert statistics.median(took[-40:]) < 2 * statistics.median(took[:40])


def _veth(netlink: Any, name: str) -> int:
    netlink.link("add", ifname=name, kind="veth", peer={"ifname": f"{name}-p"})
    index = nl.index_of(netlink, name)
    assert index is not None
    return index


def test_teardown_leaves_nothing_of_ours(node: Node) -> None:
    node.start()
    node.add_pod(10)

    node.call(node.plane.teardown)

    links = node.netlink(lambda n: {str(each.get_attr("IFLA_IFNAME")) for each in n.get_links()})
    assert not {name for name in links if name.startswith("cilium")}
    assert node.netlink(lambda n: _programs_on(n, "eth0")) == {"eth0": {}}
    assert not node.root.exists()


def test_nothing_works_before_start(tmp_path: Path) -> None:
    plane = datapath.Datapath(datapath.DatapathPaths(tmp_path, tmp_path))

    with pytest.raises(datapath.DatapathError, match="is not started; call start first"):
        plane.set_config(hubble=True)


def test_the_probe_names_what_it_tried(root: None) -> None:
    found = datapath.probe()

    assert {"helper redirect_peer", "map of longest-prefix maps", "vxlan devices"} <= set(found)
    assert found["program type sched_cls"] is True
