"""Drives a lab from within the test's process: objects, waits and probes in milliseconds.

`Lab` in running.py goes through the command line, as users do. Where hundreds of policies and
thousands of probes are the point, starting a program for each would be most of the time: a
`Cluster` writes objects to the lab's etcd itself, asks the agents over their sockets, and has one
prober.py in every pod.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import yaml
from cilium.agent.v1 import agent_pb2
from cilium_cli.connecting import AgentServiceStub, grpc
from cilium_cli.lab import namespaces
from cilium_cli.lab.etcd import Gateway
from cilium_cli.lab.layouts import Layout
from cilium_cli.lab.objects import NAMESPACE, POD
from cilium_core.resources.keys import identify, key_of, kind_of

from tests.e2e.running import BIN, PYTHON, Lab, Pod, eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

PROBER = Path(__file__).with_name("prober.py")
LIMIT_S = 10.0
"""How long agents may take to enforce, or pods to start; milliseconds, as a rule."""
ANSWER_S = 4.0
"""How long an expected answer may take: a lost SYN is sent again after one second."""
WINDOW_S = 0.25
"""How long an answer that must not come is waited for, at least."""

NODE = kind_of("Node")

Probe = dict[str, Any]


class PodSpec(NamedTuple):
    """A pod to create: it serves with prober.py, whose options are `serve`."""

    namespace: str
    name: str
    labels: dict[str, str]
    node: str = ""
    serve: str = "--tcp 80,81 --udp 80,81 --sctp 80,81"
    ports: tuple[tuple[str, int, str], ...] = ()
    """Container ports: name, number, protocol."""
    service_account: str = "default"
    beside: tuple[str, ...] = ()
    """Command of a second container."""
    host_ports: tuple[tuple[int, int, str], ...] = ()
    """Ports of the node that lead to the pod: number on the node, number here, protocol."""


class Prober:
    """A connection to a prober.py."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")

    def run(self, opened: Sequence[Probe], shut: Sequence[Probe]) -> list[str]:
        """Outcomes of the probes that should be answered and of those that should not."""
        order = {"open": opened, "shut": shut, "limit_s": ANSWER_S, "window_s": WINDOW_S}
        self._socket.sendall(json.dumps(order).encode() + b"\n")
        answer: list[str] = json.loads(self._lines.readline())
        return answer

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()


class Cluster:
    """A running lab, with pods that probe."""

    def __init__(self, lab: Lab, nodes: int) -> None:
        self.lab = lab
        self.layout = Layout(lab.name)
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.pods: dict[str, Pod] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="probers-"))
        self._etcd = Gateway(self.layout)
        self._generations = itertools.count(1)
        self._channels = {
            node: grpc.insecure_channel(f"unix:{self.layout.folder / node / 'run/cilium.sock'}")
            for node in self.nodes
        }
        self._agents = {
            node: AgentServiceStub(channel)  # type: ignore[no-untyped-call]
            for node, channel in self._channels.items()
        }
        self._probers: dict[str, Prober] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._applied: dict[tuple[str, str, str], tuple[str, int]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for prober in self._probers.values():
            prober.close()
        for process in self._processes:
            process.kill()
            process.wait()
        for channel in self._channels.values():
            channel.close()
        self._etcd.close()
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()

    # ---- pods, and places that are none ----

    def add_pods(
        self, specs: Iterable[PodSpec], spaces: dict[str, dict[str, str]] | None = None
    ) -> None:
        """Create pods, with the labels of their namespaces, and wait until they serve.

        Pods without a node go to the nodes in turn.
        """
        documents: list[dict[str, Any]] = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
            for name, labels in (spaces or {}).items()
        ]
        turn = itertools.cycle(self.nodes)
        for spec in specs:
            command = [PYTHON, str(PROBER), str(self._path(spec.namespace, spec.name))]
            container: dict[str, Any] = {
                "name": "main",
                "command": [*command, *spec.serve.split()],
                "ports": [
                    {"name": name, "containerPort": port, "protocol": protocol}
                    for name, port, protocol in spec.ports
                ]
                + [
                    {"hostPort": outside, "containerPort": inside, "protocol": protocol}
                    for outside, inside, protocol in spec.host_ports
                ],
            }
            metadata = {"name": spec.name, "namespace": spec.namespace, "labels": spec.labels}
            inside = {
                "nodeName": spec.node or next(turn),
                "serviceAccountName": spec.service_account,
                "containers": [container, *(_second(spec) if spec.beside else ())],
            }
            documents.append(
                {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": inside}
            )
        text = yaml.safe_dump_all(documents)
        made = json.loads(self.lab.cilium("lab", "pod", "add", "-f", "-", "-o", "json", stdin=text))
        for pod in made:
            name = f"{pod['namespace']}/{pod['name']}"
            self.pods[name] = Pod(name, pod["node"], *pod["addresses"])
            self._connect(name, self._path(pod["namespace"], pod["name"]))
        self.settle_addresses(made)

    def delete_pods(self, names: Iterable[str]) -> None:
        """Remove pods."""
        for name in names:
            self._probers.pop(name).close()
            del self.pods[name]
            self.lab.cilium("lab", "pod", "delete", name)

    def serve_at(self, place: str, *options: str) -> None:
        """Have a prober in the world or on a node."""
        path = self._path("", place)
        command = [str(BIN / "cilium"), "lab", "exec", "--lab", self.lab.name, place, "--"]
        self._processes.append(
            subprocess.Popen([*command, PYTHON, str(PROBER), str(path), *options])
        )
        self._connect(place, path)

    def serve_beside(self, pod: str, place: str) -> None:
        """Have one more prober in a pod's network, in no group of the lab, under a name."""
        path = self._path("", place)
        netns = self.layout.pod_netns(*pod.split("/"))
        command = ["nsenter", f"--net=/run/netns/{netns}", PYTHON, str(PROBER), str(path)]
        self._processes.append(subprocess.Popen(command))
        self._connect(place, path)

    def _path(self, namespace: str, name: str) -> Path:
        return self._folder / f"{namespace}.{name}.sock"

    def _connect(self, name: str, path: Path) -> None:
        def connected() -> bool:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                self._probers[name] = Prober(path)
            return name in self._probers

        eventually(connected, LIMIT_S, f"{name} serves")

    def ip(self, place: str, *lines: str) -> None:
        """Run lines of `ip -batch` in the network of a place."""
        namespaces.ip_batch(list(lines), f"{self.layout.prefix}{place}")

    def open_world(self) -> None:
        """Let the outside world reach pods by their own addresses, through their nodes."""
        lines = []
        for node in self.nodes:
            layout = self.layout.node(int(node.removeprefix("node")))
            status = self._agents[node].GetStatus(agent_pb2.GetStatusRequest(), timeout=10)
            lines += [
                f"route replace {cidr} via {layout.ipv6 if ':' in cidr else layout.ipv4}"
                for cidr in status.ipam.pod_cidrs
            ]
        self.ip("world", *lines)

    def configure(self, options: dict[str, str | None]) -> None:
        """Set options of every agent, None for the default, and wait until all is ready again."""
        for node in self.nodes:
            folder = self.layout.node(int(node.removeprefix("node"))).config
            for name, value in options.items():
                if value is None:
                    (folder / name).unlink(missing_ok=True)
                else:
                    (folder / name).write_text(value)
            self.lab.cilium("lab", "restart", f"{node}/agent")
        self.lab.cilium("lab", "wait")

    # ---- objects ----

    def apply(self, *objects: dict[str, Any]) -> None:
        """Store policies, and return once every endpoint of every node enforces them.

        Raises AssertionError for a policy that an agent refuses.
        """
        pairs: dict[str, bytes] = {}
        for obj in objects:
            kind, namespace, name = identify(obj)
            generation = next(self._generations)
            metadata = {**obj["metadata"], "generation": generation}
            if namespace:
                metadata["namespace"] = namespace
            pairs[key_of(obj)] = json.dumps({**obj, "metadata": metadata}).encode()
            self._applied[kind.name, namespace, name] = (key_of(obj), generation)
        if pairs:
            self._etcd.put(pairs)
            self.settle()

    def delete(self, *objects: dict[str, Any]) -> None:
        """Remove policies, and return once no endpoint enforces them."""
        keys = []
        for obj in objects:
            kind, namespace, name = identify(obj)
            found = self._applied.pop((kind.name, namespace, name), None)
            if found is not None:
                keys.append(found[0])
        if keys:
            self._etcd.delete(keys)
            self.settle()

    @contextlib.contextmanager
    def applied(self, *objects: dict[str, Any]) -> Iterator[None]:
        """Policies while the block runs."""
        try:
            self.apply(*objects)
            yield
        finally:
            self.delete(*objects)

    def refusal(self, *objects: dict[str, Any]) -> str:
        """What the agents say against policies; empty for what is only refused elsewhere."""
        keys = {key_of(obj): json.dumps(obj).encode() for obj in objects}
        names = {identify(obj)[2] for obj in objects}
        self._etcd.put(keys)

        def seen() -> list[str]:
            agent = self._agents[self.nodes[0]]
            answer = agent.GetPolicy(agent_pb2.GetPolicyRequest(), timeout=10)
            return [
                policy.error or "accepted" for policy in answer.policies if policy.name in names
            ]

        try:
            found: list[str] = eventually(seen, LIMIT_S, "an agent has read the policies")
            return "\n".join(found)
        finally:
            self._etcd.delete(list(keys))
            self.settle()

    def settle(self) -> None:
        """Return once all nodes enforce exactly the policies applied here."""
        for node in self.nodes:
            eventually(lambda node=node: self._settled(node), LIMIT_S, f"{node} enforces")

    def _settled(self, node: str) -> bool:
        agent = self._agents[node]
        answer = agent.GetPolicy(agent_pb2.GetPolicyRequest(), timeout=10)
        seen: dict[tuple[str, str, str], int] = {}
        for policy in answer.policies:
            generation = json.loads(policy.json)["metadata"].get("generation", 0)
            ref = (policy.kind, policy.namespace, policy.name)
            seen[ref] = generation
            if ref in self._applied and self._applied[ref][1] == generation:
                assert not policy.error, f"{node} refuses {policy.name}: {policy.error}"
        wanted = {
            ref: generation
            for ref, (_, generation) in self._applied.items()
            if ref[0].endswith("Policy")
        }
        if seen != wanted:
            return False
        request = agent_pb2.WaitForPolicyRequest(revision=answer.revision)
        agent.WaitForPolicy(request, timeout=LIMIT_S)
        return True

    def label_namespace(self, name: str, labels: dict[str, str]) -> None:
        """Give a namespace other labels, and wait until its pods' identities have them."""
        key = NAMESPACE.key("", name)
        space = json.loads(self._etcd.get(key) or b"{}")
        space["metadata"]["labels"] = labels | {"kubernetes.io/metadata.name": name}
        self._etcd.put({key: json.dumps(space).encode()})
        prefix = "k8s:io.cilium.k8s.namespace.labels."
        wanted = {f"{prefix}{key}={value}" for key, value in labels.items()}
        for pod in self.pods.values():
            if pod.full_name.startswith(f"{name}/"):
                self._wait_labels(
                    pod, prefix, wanted | {f"{prefix}kubernetes.io/metadata.name={name}"}
                )

    def label_pod(self, name: str, labels: dict[str, str]) -> None:
        """Give a pod other labels, and wait until its identity has them."""
        key = POD.key(*name.split("/"))
        pod = json.loads(self._etcd.get(key) or b"{}")
        pod["metadata"]["labels"] = labels
        self._etcd.put({key: json.dumps(pod).encode()})
        wanted = {f"k8s:{key}={value}" for key, value in labels.items()}
        self._wait_labels(self.pods[name], "k8s:", wanted)

    def label_node(self, name: str, labels: dict[str, str]) -> None:
        """Give a node's object these labels."""
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
        }
        self._etcd.put({NODE.key("", name): json.dumps(node).encode()})

    def _wait_labels(self, pod: Pod, prefix: str, wanted: set[str]) -> None:
        """Wait until every node knows the pod's address by exactly these labels of a prefix."""

        def known(node: str) -> bool:
            entries = self._agents[node].ListIPs(agent_pb2.ListIPsRequest(), timeout=10).entries
            for entry in entries:
                if entry.prefix == f"{pod.ipv4}/32":
                    found = {label for label in entry.labels if label.startswith(prefix)}
                    return wanted == {label for label in found if not _is_ours(label, prefix)}
            return False

        for node in self.nodes:
            eventually(lambda node=node: known(node), LIMIT_S, f"{node} knows {pod.full_name}")

    def settle_addresses(self, made: Iterable[dict[str, Any]]) -> None:
        """Return once every node knows the pods' addresses."""
        wanted = {f"{pod['addresses'][0]}/32" for pod in made}

        def known(node: str) -> bool:
            entries = self._agents[node].ListIPs(agent_pb2.ListIPsRequest(), timeout=10).entries
            return wanted <= {entry.prefix for entry in entries if entry.identity}

        for node in self.nodes:
            eventually(lambda node=node: known(node), LIMIT_S, f"{node} knows every pod")

    # ---- services ----

    def frontends(self, node: str) -> list[agent_pb2.Service]:
        """What a node has in its data plane of services."""
        asked = agent_pb2.ListServicesRequest()
        parts = self._agents[node].ListServices(asked, timeout=10)
        return [service for part in parts for service in part.services]

    def put(self, *objects: dict[str, Any]) -> None:
        """Store objects of any kind, whose effect the caller waits for."""
        self._etcd.put({key_of(obj): json.dumps(obj).encode() for obj in objects})

    def remove(self, *objects: dict[str, Any]) -> None:
        """Remove objects stored by `put`."""
        self._etcd.delete([key_of(obj) for obj in objects])

    # ---- probes ----

    def probe(
        self, probes: Mapping[str, tuple[Sequence[Probe], Sequence[Probe]]]
    ) -> dict[str, list[str]]:
        """Run probes from several places at once: those to be answered, and those not to be."""
        with ThreadPoolExecutor(len(probes) or 1) as pool:
            running = {
                place: pool.submit(self._probers[place].run, *wanted)
                for place, wanted in probes.items()
            }
            return {place: future.result() for place, future in running.items()}


def _second(spec: PodSpec) -> list[dict[str, Any]]:
    return [{"name": "beside", "command": list(spec.beside)}]


def _is_ours(label: str, prefix: str) -> bool:
    """Whether a label is one that we give to every pod, not one of the pod's object."""
    return prefix == "k8s:" and label.startswith(("k8s:io.cilium.", "k8s:io.kubernetes.pod."))
