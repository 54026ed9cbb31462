"""Synthetic nodes and events for tests and measurements, and a program that writes real ones."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import random
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cilium.metadata.v1 import metadata_pb2
from cilium_core import abi
from flow import flow_pb2
from hubble_server.ring.records import EVENT_DTYPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

make = metadata_pb2.Update

DEVICES = 8
_PORTS = (0, 53, 80, 443, 40000)
COOKIES = (1, 2, 3)


def identity_of(pod: int) -> int:
    """Identity of a pod of the synthetic node."""
    return 1000 + pod


def address_of(pod: int, *, ipv6: bool = False) -> str:
    """Address of a pod of the synthetic node."""
    if ipv6:
        return f"fd00:244::{pod + 1:x}"
    return str(ipaddress.IPv4Address("10.244.0.1") + pod)


def snapshot(pods: int) -> list[metadata_pb2.Update]:
    """What an agent with `pods` local pods in two namespaces says."""
    updates = [
        make(
            local_node=metadata_pb2.LocalNode(
                name="node1", cluster="default", labels=["os=linux"], addresses=["172.30.0.11"]
            )
        ),
        make(node=metadata_pb2.Node(name="node1", cluster="default", addresses=["172.30.0.11"])),
    ]
    for pod in range(pods):
        labels = [
            f"k8s:app=app{pod % 7}",
            "k8s:io.cilium.k8s.policy.cluster=default",
            f"k8s:io.kubernetes.pod.namespace=ns{pod % 2}",
        ]
        updates.append(make(identity=metadata_pb2.Identity(id=identity_of(pod), labels=labels)))
        updates.append(
            make(
                endpoint=metadata_pb2.Endpoint(
                    id=pod + 1,
                    identity=identity_of(pod),
                    namespace=f"ns{pod % 2}",
                    pod_name=f"pod-{pod}",
                    ips=[address_of(pod), address_of(pod, ipv6=True)],
                    workloads=[flow_pb2.Workload(name=f"app{pod % 7}", kind="Deployment")],
                )
            )
        )
    updates += [
        make(interface=metadata_pb2.Interface(index=index, name=f"lxc{index}"))
        for index in range(1, DEVICES)
    ]
    for cookie in COOKIES[:2]:
        policy = flow_pb2.Policy(name=f"rule{cookie}", namespace="ns0", kind="CiliumNetworkPolicy")
        rules = metadata_pb2.Rules(cookie=cookie, policies=[policy], log=["a", "a", "b"])
        updates.append(make(rules=rules))
    return updates


def packed(address: str) -> bytes:
    """16 bytes of an address as events carry it."""
    return ipaddress.ip_address(address).packed.ljust(16, b"\0")


def network_order(port: int) -> int:
    """A port as it stands in an event."""
    return int.from_bytes(port.to_bytes(2, "big"), "little")


def event(**fields: Any) -> NDArray[Any]:
    """One event with some fields set; addresses as text, ports as numbers."""
    made = np.zeros(1, dtype=EVENT_DTYPE)
    for name, value in fields.items():
        if name in ("saddr", "daddr", "orig_saddr"):
            made[name][0] = np.frombuffer(packed(value), dtype=np.uint8)
            if ":" in value:
                made["flags"] |= abi.constants["EVENT_IPV6"]
            made["flags"] |= abi.constants["EVENT_L3"]
        elif name in ("sport", "dport", "ethertype"):
            made[name][0] = network_order(value)
            made["flags"] |= abi.constants["EVENT_L4"]
        elif name == "flags":
            made["flags"] |= value
        else:
            made[name][0] = value
    return made


def join(events: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Events one after the other."""
    return np.concatenate(events)


def traffic(count: int, pods: int, seed: int = 1) -> NDArray[Any]:
    """Events of plain pod-to-pod TCP: nine traces to a verdict or a drop, as a busy node has."""
    random_ = np.random.default_rng(seed)
    events = np.zeros(count, dtype=EVENT_DTYPE)
    events["time_ns"] = np.arange(count, dtype=np.uint64) * 1000
    kinds = random_.random(count)
    events["type"] = np.where(kinds < 0.9, 4, np.where(kinds < 0.95, 5, 1))
    events["subtype"] = np.where(events["type"] == 1, 133, 0)
    events["verdict"] = np.where((events["type"] == 5) & (kinds < 0.925), -133, 0)
    events["cookie"] = np.where(events["type"] == 5, 1, 0)
    events["match"] = np.where(events["type"] == 5, 2, 0)
    events["reason"] = random_.integers(0, 3, count)
    events["proto"] = 6
    names = abi.constants
    events["flags"] = names["EVENT_L3"] | names["EVENT_L4"] | names["EVENT_ETHERNET"]
    events["flags"] |= np.where(events["type"] == 5, names["EVENT_INGRESS"], 0).astype(np.uint16)
    source, target = random_.integers(0, pods, count), random_.integers(0, pods, count)
    base = int(ipaddress.IPv4Address("10.244.0.1"))
    for field, pod in (("saddr", source), ("daddr", target)):
        events[field][:, :4] = (base + pod).astype(">u4").view(np.uint8).reshape(-1, 4)
    events["endpoint"] = target + 1
    events["src_identity"] = identity_of(0) + source
    events["dst_identity"] = identity_of(0) + target
    events["ifindex"] = 1 + target % (DEVICES - 1)
    events["sport"] = random_.integers(32768, 61000, count).astype(">u2").view("<u2")
    events["dport"] = random_.choice([80, 443, 8080, 5432], count).astype(">u2").view("<u2")
    events["tcp_flags"] = random_.choice([2, 16, 17, 18, 24], count)
    for field, pod in (("smac", source), ("dmac", target)):
        events[field][:, 0] = 2
        events[field][:, 4:] = pod.astype(">u2").view(np.uint8).reshape(-1, 2)
    events["bytes"], events["packets"] = 1000, 2
    return events


_ADDRESSES = (
    address_of(0), address_of(1), address_of(2), "10.244.0.200", "192.0.2.7", "172.30.0.11",
    address_of(0, ipv6=True), address_of(3, ipv6=True), "2001:db8::1", "::1", "::102:304",
)  # fmt: skip


def strange(count: int, seed: int) -> NDArray[Any]:
    """Events of every kind with every field anything it can be, for comparing two readings."""
    chance = random.Random(seed)
    names = abi.constants
    flags = [int(bit) for bit in abi.enum("event_flag") if bit != names["EVENT_IPV6"]]
    made = []
    for number in range(count):
        six = chance.random() < 0.4
        pool = [address for address in _ADDRESSES if (":" in address) == six]
        kind = chance.choice([1, 3, 4, 4, 4, 5, 5, 7])
        one = event(saddr=chance.choice(pool), daddr=chance.choice(pool))
        one["type"] = kind
        one["time_ns"] = number
        one["subtype"] = {
            1: chance.choice([133, 181, 132, 203, 159]),
            3: chance.randrange(4, 12),
            7: chance.randrange(1, 5),
        }.get(kind, chance.randrange(14))
        one["reason"] = chance.randrange(8)
        one["proto"] = chance.choice([6, 6, 6, 17, 1, 58, 132, 2, 112, 47])
        one["endpoint"] = chance.choice([1, 2, 3] if kind == 7 else [0, 1, 2, 3, 99])
        one["flags"] = sum(bit for bit in flags if chance.random() < 0.7)
        one["flags"] |= names["EVENT_IPV6"] if six else 0
        one["src_identity"] = chance.choice([0, 2, identity_of(0), identity_of(1), 7777])
        one["dst_identity"] = chance.choice([0, 1, identity_of(2), 0x01000001])
        one["dst_id"] = chance.choice([0, 3, 15001])
        one["ifindex"] = chance.choice([0, 1, 2, 77])
        one["verdict"] = chance.choice([0, 0, 15001, -133, -181])
        one["cookie"] = chance.choice([0, 1, 2, 3])
        if chance.random() < 0.3:
            one["orig_saddr"][0] = np.frombuffer(packed(chance.choice(pool)), dtype=np.uint8)
        icmp = one["proto"][0] in (1, 58)
        one["sport"] = network_order(chance.choice([0, 3, 8, 129, 200] if icmp else _PORTS))
        one["dport"] = network_order(chance.choice([0, 3, 9] if icmp else _PORTS))
        one["tcp_flags"] = chance.randrange(256)
        if one["proto"][0] == 132:
            one["tcp_flags"] = chance.randrange(16)
        one["match"] = chance.randrange(7)
        one["file"] = chance.randrange(7)
        one["line"] = chance.randrange(2000)
        one["smac"][0] = [chance.randrange(256) for _ in range(6)]
        one["dmac"][0] = [chance.randrange(256) for _ in range(6)]
        one["tunnel_peer"] = int.from_bytes(packed("172.30.0.12")[:4], "little")
        one["packets"] = 0 if kind == 7 else chance.choice([0, 1, 3, 0xFFFFFFFF])
        one["bytes"] = chance.choice([0, 64, 1500, 0xFFFFFFFF])
        made.append(one)
    return join(made)


NAMES = (("10.244.0.200", "api.example.com"), ("2001:db8::1", "v6.example.com"))


def names(pods: int) -> list[metadata_pb2.Update]:
    """What pods have resolved: each some of `NAMES`."""
    return [
        make(names=metadata_pb2.Names(endpoint=pod + 1, ip=ip, names=[name, f"alias{pod}.test"]))
        for pod in range(pods)
        for at, (ip, name) in enumerate(NAMES)
        if (pod + at) % 2
    ]


def record(
    l7: flow_pb2.Layer7,
    source: str = address_of(0),
    destination: str = address_of(1),
    *,
    time_ns: int = 0,
    **fields: Any,
) -> metadata_pb2.Update:
    """What a proxy saw, as the agent tells it; a response goes from server to client."""
    flow = flow_pb2.Flow(
        verdict=fields.pop("verdict", flow_pb2.FORWARDED),
        traffic_direction=fields.pop("direction", flow_pb2.EGRESS),
        l7=l7,
    )
    flow.IP.source, flow.IP.destination = source, destination
    transport = flow.l4.UDP if fields.pop("udp", False) else flow.l4.TCP
    transport.source_port, transport.destination_port = fields.pop("ports", (40000, 80))
    for end, address in ((flow.source, source), (flow.destination, destination)):
        pod = fields.pop(f"{'source' if end is flow.source else 'destination'}_pod", None)
        if pod is None:
            own = [pod for pod in range(4) if address == address_of(pod)]
            pod = own[0] if own else None
        if pod is None:
            end.identity = 2
            end.labels.append("reserved:world")
            continue
        end.ID, end.identity = pod + 1, identity_of(pod)
        end.namespace, end.pod_name = f"ns{pod % 2}", f"pod-{pod}"
        end.labels.extend([f"k8s:app=app{pod % 7}", "k8s:io.cilium.k8s.policy.cluster=default"])
        end.cluster_name = "default"
    assert not fields, fields
    told = metadata_pb2.L7Record(flow=flow)
    told.time.FromNanoseconds(time_ns)
    return make(l7=told)


def strange_records(count: int, seed: int) -> list[metadata_pb2.Update]:
    """Records of every kind, for comparing two readings of a filter."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        l7 = flow_pb2.Layer7()
        l7.type = chance.choice([flow_pb2.REQUEST, flow_pb2.RESPONSE, flow_pb2.SAMPLE])
        kind = chance.choice(["dns", "http", "kafka", ""])
        if kind == "dns":
            l7.dns.query = chance.choice(["a-b.example.com.", "x.test."])
        elif kind == "http":
            l7.http.method = chance.choice(["GET", "POST", ""])
            l7.http.url = chance.choice(["http://web/a?b=1", "/plain", "not a url", ""])
            l7.http.code = chance.choice([0, 200, 404]) if l7.type == flow_pb2.RESPONSE else 0
            if chance.random() < 0.5:
                l7.http.headers.add(key="a", value=chance.choice("bc"))
            if chance.random() < 0.3:
                l7.http.headers.add(key="Traceparent", value=f"00-{'ab' * 16}-{'01' * 8}-01")
        elif kind == "kafka":
            l7.kafka.api_key, l7.kafka.topic = "fetch", "orders"
        pool = [one for one in _ADDRESSES if (":" in one) == (chance.random() < 0.3)]
        update = record(
            l7,
            *(chance.choice(pool or ["10.244.0.1"]) for _ in range(2)),
            verdict=chance.choice([1, 2, 3, 4, 5]),
            direction=chance.choice([0, 1, 2]),
            udp=kind == "dns",
            ports=(chance.choice(_PORTS), chance.choice(_PORTS)),
        )
        flow = update.l7.flow
        if chance.random() < 0.1:
            flow.ClearField("l4")
        if chance.random() < 0.1:
            flow.IP.source = "nobody"
        made.append(update)
    return made


# ---- real events ----

_MAP_TYPE_ARRAY = 2
_MMAPABLE = 1 << 10
_PROGRAM = """
#include "maps.h"
#undef map_of
#define map_of(name) ((__u64)bpf_pseudo_fd(1, FD_##name))
enum { FD_EVENTS = FD_OF_EVENTS, FD_EVENT_HEADS = FD_OF_HEADS, FD_SCRATCH = -1 };
#include "ring.h"
int emit(struct __sk_buff *skb)
{
    __u32 sequence;
    struct event *e = event_begin(EVENT_TRACE, TRACE_TO_LXC, &sequence);
    __u64 now = bpf_ktime_get_ns();
    if (!e)
        return 0;
    e->flags = EVENT_L3 | EVENT_L4, e->proto = 6;
    e->saddr[0] = 10, e->saddr[1] = 244, e->saddr[3] = 1;
    e->daddr[0] = 10, e->daddr[1] = 244, e->daddr[3] = 2 + (now & 31);
    e->src_identity = 1000, e->dst_identity = 1001 + (now & 31);
    event_commit(e, sequence);
    return 0;
}
"""


class _CreateOptions(ctypes.Structure):
    """The head of struct bpf_map_create_opts of libbpf."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("btf", ctypes.c_uint32 * 4),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class Emitter:
    """Pinned events maps and a program that writes events into them, as the data plane does.

    Needs root and a bpffs at /sys/fs/bpf; use `emitter()`.
    """

    def __init__(self, directory: Path) -> None:
        self._libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
        self.root = directory
        self.path = directory / "cilium_events"
        self.heads_path = directory / "cilium_event_heads"
        self._fds = self._create_maps()
        self._load()

    def _create_maps(self) -> list[int]:
        cpus = os.cpu_count() or 1
        heads = self._create_map(self.heads_path, abi.sizeof("event_head"), cpus)
        events = self._create_map(self.path, abi.sizeof("event"), cpus * abi.EVENT_RING_SIZE)
        return [events, heads]

    def _create_map(self, path: Path, value_size: int, entries: int) -> int:
        options = _CreateOptions(size=ctypes.sizeof(_CreateOptions), map_flags=_MMAPABLE)
        fd = int(
            self._libbpf.bpf_map_create(
                _MAP_TYPE_ARRAY, b"events", 4, value_size, entries, ctypes.byref(options)
            )
        )
        if fd < 0:
            raise OSError(ctypes.get_errno(), "bpf_map_create")
        path.unlink(missing_ok=True)
        if self._libbpf.bpf_obj_pin(fd, os.fsencode(path)):
            raise OSError(ctypes.get_errno(), "bpf_obj_pin")
        return fd

    def _load(self) -> None:
        from bcc import BPF

        include = Path(__file__).parents[3] / "bpf" / "lib"
        text = _PROGRAM
        for name, fd in zip(("EVENTS", "HEADS"), self._fds, strict=True):
            text = text.replace(f"FD_OF_{name}", str(fd))
        self._bpf = BPF(text=text.encode(), cflags=[f"-I{include}"])
        self._program = self._bpf.load_func(b"emit", BPF.SCHED_CLS)

    def emit(self, count: int) -> None:
        """Write `count` events, all on one processor, some 80 ns each."""
        packet = ctypes.create_string_buffer(64)
        run = _TestRun(
            size=ctypes.sizeof(_TestRun),
            data_in=ctypes.addressof(packet),
            data_size_in=len(packet),
            repeat=count,
        )
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            if self._libbpf.bpf_prog_test_run_opts(self._program.fd, ctypes.byref(run)):
                raise OSError(ctypes.get_errno(), "bpf_prog_test_run_opts")
        finally:
            os.sched_setaffinity(0, allowed)

    def replace_map(self) -> None:
        """Pin a new map, as an agent does that needs another shape, and write into that."""
        old, self._fds = self._fds, self._create_maps()
        self._bpf.cleanup()
        self._load()
        for fd in old:
            os.close(fd)

    def close(self) -> None:
        """Unpin and free everything."""
        self._bpf.cleanup()
        for path, fd in zip((self.path, self.heads_path), self._fds, strict=True):
            path.unlink(missing_ok=True)
            os.close(fd)


@contextmanager
def emitter(name: str) -> Iterator[Emitter]:
    """An emitter with a directory of its own on the bpffs."""
    directory = Path("/sys/fs/bpf") / f"{name}-{os.getpid()}"
    directory.mkdir()
    try:
        made = Emitter(directory)
        try:
            yield made
        finally:
            made.close()
    finally:
        for left in directory.iterdir():
            left.unlink()
        directory.rmdir()
