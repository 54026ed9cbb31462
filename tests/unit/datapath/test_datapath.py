"""The whole facade over tiny programs, in a network namespace of its own."""

from __future__ import annotations

import functools
import ipaddress
import shutil
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent import datapath
from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath import specs
from cilium_core import abi

from tests.bpf.harness import Namespace
from tests.bpf.nodes import CONFIG, V4, V6, Node, path_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pod(root: None) -> Iterator[Namespace]:
    """A network namespace for pods' interfaces."""
    made = Namespace()
    yield made
    made.close()


@pytest.fixture
def node(
    sources: Path,
    template_cache: Path,
    bpf_root: Path,
    namespace: Namespace,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Node]:
    monkeypatch.setattr(specs, "bpf_folder", lambda: sources)
    paths = datapath.DatapathPaths(bpf_root, template_cache)
    made = Node(namespace, datapath.Datapath(paths, {"cilium_policy": 64}), bpf_root)

    made.add_device()
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


def test_a_restart_changes_nothing_in_a_living_data_plane(node: Node, pod: Namespace) -> None:
    node.start()
    endpoint = node.add_pod(pod, 10)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 65536}, "endpoint 65536"),
        ({"mac": "02:00"}, "'02:00' is no MAC address"),
        ({"identity": -1}, "endpoint 7"),
        ({"ipv4": None}, "endpoint 7: no address"),
        ({"ifindex": 0}, "endpoint 7: ifindex 0 is no device"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(
    node: Node, change: dict[str, Any], message: str
) -> None:
    node.start()
    good = datapath.EndpointInfo(id=7, identity=1000, ifindex=3, ipv4=V4("10.244.0.7"))

    with pytest.raises(datapath.DatapathError, match=message):
        node.plane.endpoints.upsert(replace(good, **change))

    assert node.plane.endpoints.dump() == []


def test_an_endpoint_that_moves_leaves_no_row_behind(node: Node) -> None:
    node.start()
    upsert = node.plane.endpoints.upsert
    upsert(datapath.EndpointInfo(id=7, identity=1000, ifindex=3, ipv4=V4("10.244.0.7")))

    moved = upsert(datapath.EndpointInfo(id=7, identity=1000, ifindex=4, ipv6=V6("fd00:244::7")))

    assert node.plane.endpoints.dump() == [moved]
    assert node.plane.endpoints.delete(7)
    assert not node.plane.endpoints.delete(7)
    assert node.plane.endpoints.dump() == []


def test_a_change_of_enforcement_has_connections_judged_anew(node: Node) -> None:
    node.start()
    info = datapath.EndpointInfo(id=7, identity=1000, ifindex=3, ipv4=V4("10.244.0.7"))

    first = node.plane.endpoints.upsert(info)
    same = node.plane.endpoints.upsert(info)
    enforced = node.plane.endpoints.upsert(replace(info, flags=abi.ENDPOINT_ENFORCE_INGRESS))

    assert first.policy_rev > 0
    assert same == first
    assert enforced.policy_rev == first.policy_rev + 1


@pytest.mark.parametrize("family", [4, 6])
def test_a_node_of_one_family_comes_up(node: Node, family: int) -> None:
    other = 10 - family
    gone: dict[str, Any] = {f"node_ipv{other}": None, f"router_ipv{other}": None}
    cidrs = tuple(cidr for cidr in CONFIG.pod_cidrs if cidr.version == family)

    node.start(replace(CONFIG, **gone, pod_cidrs=cidrs))

    assert set(node.call(node.plane.routes.dump)) == set(cidrs)


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("int cil_to_container(struct __sk_buff *skb) { return *(int *)0; }", datapath.LoadError),
        ("int cil_to_container(struct __sk_buff *skb) { return x; }", datapath.CompileError),
    ],
)
def test_an_upgrade_that_fails_changes_nothing(
    node: Node,
    pod: Namespace,
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    error: type[Exception],
) -> None:
    node.start()
    node.add_pod(pod, 10)
    before = (_identities(node), _hooks(node))
    bad = shutil.copytree(sources, tmp_path / "bad")
    good_text = "int cil_to_container(struct __sk_buff *skb) { return 0; }"
    file = bad / "lxc.c"
    file.write_text(file.read_text().replace(good_text, program))
    maps = bad / "lib" / "maps.h"
    maps.write_text(maps.read_text().replace(", 65535,", ", 60000,"))
    monkeypatch.setattr(specs, "bpf_folder", lambda: bad)

    with pytest.raises(error, match=r"cil_to_container|lxc\.c"):
        node.start()

    assert (_identities(node), _hooks(node)) == before
    monkeypatch.setattr(specs, "bpf_folder", lambda: sources)
    node.start()
    assert [info.id for info in node.plane.endpoints.dump()] == [10]


def test_a_failed_start_can_be_repeated(node: Node) -> None:
    node.start()
    with pytest.raises(datapath.DeviceError):
        node.start(replace(CONFIG, devices=("nope0",)))
    with pytest.raises(datapath.DatapathError, match="is not started"):
        node.plane.live_config()

    node.start()

    assert node.plane.live_config()["device_ifindex"]


def test_a_pods_interface_is_complete(node: Node, pod: Namespace) -> None:
    node.start()
    node.add_pod(pod, 10)

    node.call(
        datapath.netns.check, path_of(pod), "eth10", ipv4=V4("10.244.0.10"), ipv6=V6("fd00:244::10")
    )
    with pytest.raises(datapath.NamespaceError, match=r"eth10 lacks the address 10\.244\.0\.11"):
        node.call(datapath.netns.check, path_of(pod), "eth10", ipv4=V4("10.244.0.11"))
    with pytest.raises(datapath.NamespaceError, match="there is no interface eth99"):
        node.call(datapath.netns.check, path_of(pod), "eth99")


def test_leftovers_of_a_failed_attempt_are_replaced(node: Node, pod: Namespace) -> None:
    node.start()
    first = node.add_pod(pod, 10)
    second = node.add_pod(pod, 10)

    assert first.ifindex != second.ifindex
    assert [info.ifindex for info in node.plane.endpoints.dump()] == [second.ifindex]


def test_a_pods_interface_can_be_removed_from_both_sides_and_twice(
    node: Node, pod: Namespace
) -> None:
    node.start()
    node.add_pod(pod, 10)
    node.add_pod(pod, 11)

    assert node.call(datapath.netns.delete, path_of(pod), "eth10")
    assert not node.call(datapath.netns.delete, path_of(pod), "eth10")
    assert node.call(datapath.netns.delete_host, "container", "eth11")
    assert not node.call(datapath.netns.delete_host, "container", "eth11")
    assert not datapath.netns.delete("/proc/self/ns/nothing", "eth0")


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("/run/netns/gone", "/run/netns/gone: No such file"),
        ("/etc/hostname", "is no network namespace"),
        ("/proc/self/ns/uts", "is no network namespace"),
        ("/proc/self/ns/net", "the node's own network namespace"),
    ],
)
def test_what_is_no_namespace_of_a_pod_is_refused_untouched(
    root: None, path: str, wrong: str
) -> None:
    with pytest.raises(datapath.NamespaceError, match=wrong):
        datapath.netns.create(path, "lo", "container")


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


def test_teardown_leaves_nothing_of_ours(node: Node, pod: Namespace) -> None:
    node.start()
    node.add_pod(pod, 10)

    node.call(node.plane.teardown)

    links = node.netlink(lambda n: {str(each.get_attr("IFLA_IFNAME")) for each in n.get_links()})
    assert not {name for name in links if name.startswith("cilium")}
    assert node.netlink(lambda n: _programs_on(n, "eth0")) == {"eth0": {}}
    assert not node.root.exists()


def test_what_only_a_start_can_change_is_refused(node: Node) -> None:
    node.start()

    with pytest.raises(datapath.DatapathError, match="devices cannot change while"):
        node.plane.set_config(devices=("eth1",))


def test_only_refused_prefixes_can_be_removed(node: Node) -> None:
    node.start()

    with pytest.raises(datapath.DatapathError, match=r"192\.0\.2\.0/24 is not among the refused"):
        node.call(node.plane.prefilter.update, remove=[ipaddress.ip_network("192.0.2.0/24")])


def test_nothing_works_before_start(tmp_path: Path) -> None:
    plane = datapath.Datapath(datapath.DatapathPaths(tmp_path, tmp_path))

    with pytest.raises(datapath.DatapathError, match="is not started; call start first"):
        plane.set_config(hubble=True)


def test_the_probe_names_what_it_tried(root: None) -> None:
    found = datapath.probe()

    assert {"helper redirect_peer", "map of longest-prefix maps", "vxlan devices"} <= set(found)
    assert found["program type sched_cls"] is True
