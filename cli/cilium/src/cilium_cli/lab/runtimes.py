# SPDX-License-Identifier: Apache-2.0
"""Runs pods: the part a kubelet and a container runtime play elsewhere.

A pod is a network namespace, a cgroup and an object in etcd. Its network comes from the CNI plugin,
executed the way a runtime does it: the configuration the agent left in the node's CNI folder on
stdin, CNI_* in the environment. What was done is recorded in one file a pod, written before the
first step, so that whatever crashed half-way can be deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cilium_cli.errors import CommandError, NotFoundError
from cilium_cli.lab import cgroups, namespaces, objects, probes, processes
from cilium_cli.lab.layouts import NETNS_ROOT, NodeLayout, node_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cilium_cli.lab.etcd import Gateway
    from cilium_cli.lab.layouts import Layout

_INTERFACE = "eth0"
_PLUGIN_LIMIT_S = 60.0
_GRACE_S = 30.0
"""Time a pod gets to end, unless it says otherwise; Kubernetes' own default."""


class Pod:
    """A pod of the lab, as its record describes it."""

    def __init__(self, lab: Layout, record: dict[str, Any]) -> None:
        self.lab = lab
        self.namespace: str = record["namespace"]
        self.name: str = record["name"]
        self.node: str = record["node"]
        self.container_id: str = record["containerID"]
        self.uid: str = record["uid"]
        self.host_network: bool = record.get("hostNetwork", False)
        self.result: dict[str, Any] | None = record.get("result")

    @property
    def full_name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def netns(self) -> str:
        """Name of the network namespace; the node's for a pod of the host's network."""
        if self.host_network:
            return self.lab.node(node_number(self.node)).netns
        return self.lab.pod_netns(self.namespace, self.name)

    @property
    def cgroup(self) -> Path:
        """The pod's cgroup, below its node's."""
        return cgroups.group(self.lab.name, self.node, "pods", f"{self.namespace}.{self.name}")

    @property
    def log(self) -> Path:
        """Output of the pod's command."""
        return self.lab.logs / f"pod-{self.namespace}.{self.name}.log"

    @property
    def addresses(self) -> list[str]:
        """Addresses the plugin gave, IPv4 first; empty before it did. Or those of the node."""
        if self.host_network:
            layout = self.lab.node(node_number(self.node))
            return [layout.ipv4, layout.ipv6]
        if self.result is None:
            return []
        return [ip["address"].partition("/")[0] for ip in self.result["ips"]]

    def write(self) -> None:
        """Keep the record, in one step."""
        path = self.lab.pod_record(self.namespace, self.name)
        draft = path.with_suffix(".new")
        document = {
            "namespace": self.namespace,
            "name": self.name,
            "node": self.node,
            "containerID": self.container_id,
            "uid": self.uid,
            "hostNetwork": self.host_network,
            "result": self.result,
        }
        draft.write_text(json.dumps(document))
        draft.rename(path)


def pods(lab: Layout) -> list[Pod]:
    """All pods of the lab, by namespace and name."""
    found = [Pod(lab, json.loads(path.read_text())) for path in lab.pods.glob("*.json")]
    return sorted(found, key=lambda pod: (pod.namespace, pod.name))


def find(lab: Layout, namespace: str, name: str) -> Pod:
    """Return one pod; raises NotFoundError naming those there are."""
    try:
        return Pod(lab, json.loads(lab.pod_record(namespace, name).read_text()))
    except FileNotFoundError:
        known = ", ".join(pod.full_name for pod in pods(lab)) or "none"
        raise NotFoundError(
            f"lab {lab.name} has no pod {namespace}/{name}", f"its pods: {known}"
        ) from None


def choose_node(lab: Layout) -> str:
    """Return the node with the fewest pods, the first of several."""
    load = {path.name: 0 for path in lab.folder.glob("node*")}
    for pod in pods(lab):
        load[pod.node] = load.get(pod.node, 0) + 1
    return min(load, key=lambda name: (load[name], node_number(name)))


def add(
    lab: Layout, store: Gateway, spec: dict[str, Any], node: str | None, cwd: Path = Path("/")
) -> Pod:
    """Store the Pod object, create the sandbox, call the plugin, start the command if it has one.

    The command starts in the folder `cwd`: a pod of the lab shares the machine's file system.
    Raises CommandError with the plugin's words when the network cannot be set up; nothing of the
    pod is left then.
    """
    metadata = spec["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    if lab.pod_record(namespace, name).exists():
        raise CommandError(
            f"pod {namespace}/{name} exists already",
            f"delete it first: cilium lab pod delete {name} -n {namespace}",
        )
    chosen = node or spec["spec"].get("nodeName") or choose_node(lab)
    layout = lab.node(node_number(chosen))
    if not layout.folder.exists():
        raise NotFoundError(f"lab {lab.name} has no node {chosen!r}")
    pod = Pod(
        lab,
        {
            "namespace": namespace,
            "name": name,
            "node": chosen,
            "containerID": os.urandom(32).hex(),
            "uid": objects.new_uid(),
            "hostNetwork": spec["spec"].get("hostNetwork") is True,
        },
    )
    pod.write()
    try:
        _add(layout, store, pod, spec, cwd)
    except BaseException:
        delete(store, pod, grace_s=0)
        raise
    return pod


def _add(layout: NodeLayout, store: Gateway, pod: Pod, spec: dict[str, Any], cwd: Path) -> None:
    spec["metadata"] |= {"uid": pod.uid, "creationTimestamp": objects.present()}
    spec["spec"]["nodeName"] = pod.node
    host_ips = [{"ip": layout.ipv4}, {"ip": layout.ipv6}]
    spec["status"] = {"phase": "Pending", "hostIP": layout.ipv4, "hostIPs": host_ips}
    objects.put_pod(store, spec)
    cgroups.create(pod.cgroup)
    if not pod.host_network:
        namespaces.create(pod.netns)
        pod.result = call_plugin(pod.lab, layout, "ADD", pod)
    pod.write()
    addresses = pod.addresses
    spec["status"] |= {
        "phase": "Running",
        "podIP": addresses[0],
        "podIPs": [{"ip": address} for address in addresses],
    }
    containers = spec["spec"].get("containers", ())
    checks = [check for check in map(probes.readiness, containers) if check is not None]
    objects.set_ready(spec, ready=not checks)
    objects.put_pod(store, spec)
    for container in containers:
        command = [*container.get("command", ()), *container.get("args", ())]
        if command:
            processes.start(command, netns=pod.netns, cgroup=pod.cgroup, log=pod.log, cwd=cwd)
    if checks and all(check.wait(pod.netns) for check in checks):
        objects.set_ready(spec, ready=True)
        objects.put_pod(store, spec)


def add_all(
    lab: Layout,
    store: Gateway,
    spaces: list[dict[str, Any]],
    specs: list[dict[str, Any]],
    node: str | None = None,
    cwd: Path = Path("/"),
) -> list[Pod]:
    """Store the Namespaces, and create the pods one after another with theirs."""
    for space in spaces:
        metadata = space["metadata"]
        objects.put_namespace(store, metadata["name"], metadata.get("labels") or {}, replace=True)
    named = {space["metadata"]["name"] for space in spaces}
    for namespace in {spec["metadata"]["namespace"] for spec in specs} - named:
        objects.put_namespace(store, namespace, {})
    return [add(lab, store, spec, node, cwd) for spec in specs]


class _Ending(NamedTuple):
    """A pod that was told to end: when its processes are asked to, and when they are killed."""

    pod: Pod
    stop_at: float
    deadline: float


def delete(store: Gateway, pod: Pod, *, grace_s: float | None = None) -> None:
    """End one pod; see delete_all."""
    for _ in delete_all(store, [pod], grace_s=grace_s):
        pass


def delete_all(
    store: Gateway, doomed: Iterable[Pod], *, grace_s: float | None = None
) -> Iterator[Pod]:
    """End pods side by side and remove everything of them, giving each that is gone.

    Each is marked as terminating, waits for the `sleep` of its preStop hooks, and has what is left
    of `grace_s` to end after SIGTERM; None takes the time that it asks for itself. 0 kills it at
    once. What is already gone is fine.
    """
    endings = [_announce(store, pod, grace_s) for pod in doomed]
    for ending in sorted(endings, key=lambda one: one.stop_at):
        if cgroups.processes(ending.pod.cgroup):
            time.sleep(max(0.0, ending.stop_at - time.monotonic()))
        for pid in cgroups.processes(ending.pod.cgroup):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    for ending in endings:
        while cgroups.processes(ending.pod.cgroup) and time.monotonic() < ending.deadline:
            processes.reap()
            time.sleep(0.005)
        _remove(store, ending.pod)
        yield ending.pod


def _announce(store: Gateway, pod: Pod, grace_s: float | None) -> _Ending:
    """Say that the pod ends, unless it does so at once."""
    now = time.monotonic()
    found = objects.get_pod(store, pod.namespace, pod.name) if grace_s != 0 else None
    if found is None:
        return _Ending(pod, now, now)
    spec = found.get("spec") or {}
    asked = spec.get("terminationGracePeriodSeconds")
    limit_s = grace_s if grace_s is not None else float(_GRACE_S if asked is None else asked)
    pause_s = max(map(_pause_s, spec.get("containers") or ()), default=0.0)
    objects.mark_deleted(found, limit_s)
    objects.put_pod(store, found)
    return _Ending(pod, now + min(pause_s, limit_s), now + limit_s)


def _remove(store: Gateway, pod: Pod) -> None:
    cgroups.kill(pod.cgroup)
    layout = pod.lab.node(node_number(pod.node))
    if not pod.host_network:
        if (layout.cni_config / objects.CNI_CONFIG).exists():
            call_plugin(pod.lab, layout, "DEL", pod)
        namespaces.delete(pod.netns)
    cgroups.remove(pod.cgroup)
    objects.delete_pod(store, pod.namespace, pod.name)
    pod.lab.pod_record(pod.namespace, pod.name).unlink(missing_ok=True)


def _pause_s(container: dict[str, Any]) -> float:
    """Seconds a container goes on to serve after its end was announced."""
    hook = (container.get("lifecycle") or {}).get("preStop") or {}
    return float((hook.get("sleep") or {}).get("seconds") or 0)


def set_ready(store: Gateway, pod: Pod, *, ready: bool) -> None:
    """Say whether the pod serves, as its readiness probe would. Raises NotFoundError."""
    found = objects.get_pod(store, pod.namespace, pod.name)
    if found is None:
        raise NotFoundError(f"etcd has no pod {pod.full_name}")
    objects.set_ready(found, ready=ready)
    objects.put_pod(store, found)


def call_plugin(lab: Layout, layout: NodeLayout, verb: str, pod: Pod) -> dict[str, Any] | None:
    """Execute the node's plugins for one verb; returns the last one's result.

    DEL runs them in reverse order, as the specification says. Raises CommandError with code,
    message and details of the plugin that failed.
    """
    path = layout.cni_config / objects.CNI_CONFIG
    try:
        network = json.loads(path.read_text())
    except FileNotFoundError:
        raise CommandError(
            f"{pod.node} has no network configuration yet ({path})",
            f"its agent writes it when it is ready: cilium status --wait --node {pod.node}",
        ) from None
    environ = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": pod.container_id,
        "CNI_NETNS": str(NETNS_ROOT / pod.netns),
        "CNI_IFNAME": _INTERFACE,
        "CNI_PATH": str(lab.bin),
        "CNI_ARGS": (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};"
            f"K8S_POD_INFRA_CONTAINER_ID={pod.container_id};K8S_POD_UID={pod.uid}"
        ),
        "PATH": os.environ.get("PATH", os.defpath),
    }
    result = pod.result if verb != "ADD" else None
    plugins = network["plugins"] if verb != "DEL" else network["plugins"][::-1]
    for plugin in plugins:
        config = {"cniVersion": network["cniVersion"], "name": network["name"], **plugin}
        if result is not None:
            config["prevResult"] = result
        answer = _execute(lab.bin / plugin["type"], environ, config, pod)
        result = answer or result
    return result


def _execute(
    plugin: Path, environ: dict[str, str], config: dict[str, Any], pod: Pod
) -> dict[str, Any] | None:
    verb = environ["CNI_COMMAND"]
    try:
        done = subprocess.run(
            [str(plugin)],
            input=json.dumps(config).encode(),
            capture_output=True,
            env=environ,
            timeout=_PLUGIN_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CommandError(
            f"{plugin.name} {verb} for pod {pod.full_name} took more than {_PLUGIN_LIMIT_S:g} s"
        ) from None
    try:
        answer: dict[str, Any] | None = json.loads(done.stdout) if done.stdout.strip() else None
    except ValueError:
        answer = None
    if done.returncode == 0:
        return answer
    report = answer or {"msg": done.stderr.decode(errors="replace").strip() or "it says nothing"}
    details = f" ({report['details']})" if report.get("details") else ""
    raise CommandError(
        f"{plugin.name} {verb} for pod {pod.full_name} on {pod.node}: {report['msg']}{details}",
        f"CNI error code {report['code']}" if "code" in report else "",
    )
