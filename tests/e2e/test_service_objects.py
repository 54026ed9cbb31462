"""What Services are given, and which of their Pods serve, as the objects in etcd say."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.running import BIN, PYTHON, TRAFFIC, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.running import Lab

COUNT = 30


@pytest.fixture(scope="module")
def lab(start_lab: Callable[[int], Lab]) -> Lab:
    return start_lab(1)


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"made-by": "test"}},
        "spec": {"ports": [{"port": 80}]} | spec,
    }


def apply(lab: Lab, *items: dict[str, Any]) -> None:
    document = {"apiVersion": "v1", "kind": "List", "items": list(items)}
    lab.cilium("apply", "-f", "-", stdin=json.dumps(document))


def specs(lab: Lab) -> dict[str, dict[str, Any]]:
    items = lab.json("get", "services")["items"]
    return {item["metadata"]["name"]: item["spec"] for item in items}


def settled(lab: Lab, count: int) -> dict[str, dict[str, Any]]:
    def found() -> dict[str, dict[str, Any]] | None:
        every = specs(lab)
        good = all("clusterIP" in one and "nodePort" in one["ports"][0] for one in every.values())
        return every if good and len(every) == count else None

    result = eventually(found, 20, f"{count} services have addresses")
    assert isinstance(result, dict)
    return result


def test_operators_that_crash_give_nothing_twice(lab: Lab) -> None:
    apply(lab, *(service(f"a{at}", type="NodePort") for at in range(COUNT)))
    lab.cilium("lab", "kill", "operator1")
    lab.cilium("lab", "kill", "operator2")
    apply(lab, *(service(f"b{at}", type="NodePort") for at in range(COUNT)))
    before = specs(lab)
    lab.cilium("lab", "start", "operator1")
    lab.cilium("lab", "start", "operator2")

    after = settled(lab, 2 * COUNT)

    assert len({spec["clusterIP"] for spec in after.values()}) == 2 * COUNT
    assert len({spec["ports"][0]["nodePort"] for spec in after.values()}) == 2 * COUNT
    kept = {name: spec for name, spec in before.items() if "clusterIP" in spec}
    assert {name: after[name] for name in kept} == kept
    lab.cilium("delete", "service", *after)


def test_a_pod_that_is_deleted_serves_until_everybody_knows(lab: Lab) -> None:
    def conditions() -> list[dict[str, bool]]:
        items = lab.json("get", "endpointslices")["items"]
        return [one["conditions"] for item in items for one in item["endpoints"]]

    apply(lab, service("web", selector={"app": "web"}, ports=[{"port": 80, "targetPort": 7}]))
    command = [PYTHON, str(TRAFFIC), "serve", "7"]
    main = {
        "name": "main",
        "command": command,
        "readinessProbe": {"tcpSocket": {"port": 7}},
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"containers": [main]},
    }
    lab.cilium("lab", "pod", "add", "-f", "-", stdin=json.dumps(pod))
    serving = {"ready": True, "serving": True, "terminating": False}
    eventually(lambda: conditions() == [serving], 10, "the pod serves")
    address = lab.json("lab", "pod", "list")[0]["addresses"][0]

    began = time.monotonic()
    delete = [str(BIN / "cilium"), "lab", "pod", "delete", "--lab", lab.name, "web"]
    with subprocess.Popen(delete, stdout=subprocess.DEVNULL) as deleting:
        ending = {"ready": False, "serving": True, "terminating": True}
        eventually(lambda: conditions() == [ending], 5, "the pod is ending")
        assert lab.reaches("node1", [address], port=7) == [True]
        assert deleting.wait(timeout=20) == 0

    assert time.monotonic() - began >= 5
    eventually(lambda: conditions() == [], 5, "the slice is gone")
    lab.cilium("delete", "service", "web")
