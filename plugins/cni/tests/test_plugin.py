"""The plugin as runtimes see it: environment and stdin in, JSON and an exit code out."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import FakeAgent, Outcome

RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "lxc123", "mac": "02:00:00:00:00:01", "sandbox": ""},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x", "mtu": 1500},
    ],
    "ips": [
        {"address": "10.244.0.7/32", "gateway": "10.244.0.1", "interface": 1},
        {"address": "fd00:244::7/128", "gateway": "fd00:244::1", "interface": 1},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1", "mtu": 1450}],
    "dns": {},
}


def test_version_lists_what_is_spoken(plugin: Callable[..., Outcome]) -> None:
    outcome = plugin("VERSION")

    assert outcome.exit_code == 0
    assert outcome.answer["supportedVersions"] == ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]


def test_add_hands_over_everything_a_runtime_gave(
    plugin: Callable[..., Outcome], agent: FakeAgent
) -> None:
    agent.answers["/v1/cni/add"] = [(200, RESULT)]

    plugin("ADD")

    method, path, body = agent.requests[0]
    assert (method, path) == ("POST", "/v1/cni/add")
    assert body["containerID"] == "c0ffee"
    assert body["netns"] == "/run/netns/none-such"
    assert body["ifname"] == "eth0"
    assert body["args"] == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": "shop",
        "K8S_POD_NAME": "cart",
    }
    assert body["config"]["name"] == "cilium"


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_add_answers_in_the_version_asked_for(
    plugin: Callable[..., Outcome], agent: FakeAgent, version: str
) -> None:
    agent.answers["/v1/cni/add"] = [(200, RESULT)]

    outcome = plugin("ADD", cniVersion=version)

    assert outcome.exit_code == 0
    assert outcome.answer["cniVersion"] == version
    families = [ip.get("version") for ip in outcome.answer["ips"]]
    assert families == (["4", "6"] if version < "1.0.0" else [None, None])
    assert ("mtu" in outcome.answer["routes"][0]) == (version == "1.1.0")


def test_an_agents_refusal_keeps_its_code(plugin: Callable[..., Outcome], agent: FakeAgent) -> None:
    refusal = {"code": 11, "msg": "the agent is starting", "details": "try again"}
    agent.answers["/v1/cni/add"] = [(503, refusal)]

    outcome = plugin("ADD")

    assert outcome == (1, {"cniVersion": "1.1.0", **refusal})


def test_add_waits_for_an_agent_that_restarts(
    plugin: Callable[..., Outcome], state_dir: Path
) -> None:
    from .conftest import FakeAgent

    late: list[FakeAgent] = []

    def start() -> None:
        time.sleep(0.5)
        fake = FakeAgent(state_dir / "cni.sock")
        fake.answers["/v1/cni/add"] = [(200, RESULT)]
        late.append(fake)

    thread = threading.Thread(target=start)
    thread.start()
    try:
        assert plugin("ADD").exit_code == 0
    finally:
        thread.join()
        late[0].close()


def test_delete_twice_succeeds_twice(plugin: Callable[..., Outcome], agent: FakeAgent) -> None:
    assert plugin("DEL") == (0, None)
    assert plugin("DEL", CNI_NETNS=None) == (0, None)


def test_delete_without_an_agent_is_queued_once(
    plugin: Callable[..., Outcome], state_dir: Path
) -> None:
    assert plugin("DEL") == (0, None)
    assert plugin("DEL") == (0, None)

    queued = list((state_dir / "deleteQueue").glob("*.delete"))
    assert len(queued) == 1
    body = json.loads(queued[0].read_text())
    assert (body["containerID"], body["ifname"]) == ("c0ffee", "eth0")
    assert queued[0].stat().st_mode & 0o777 == 0o600


def test_the_queue_holds_256_deletes_and_no_more(
    plugin: Callable[..., Outcome], state_dir: Path
) -> None:
    queue = state_dir / "deleteQueue"
    queue.mkdir()
    for number in range(256):
        (queue / f"{number:032x}.delete").write_text("{}")

    outcome = plugin("DEL")

    assert outcome.exit_code == 1
    assert outcome.answer["code"] == 11
    assert len(list(queue.glob("*.delete"))) == 256


def test_a_delete_reaches_an_agent_that_comes_up_while_the_queue_is_locked(
    plugin: Callable[..., Outcome], state_dir: Path
) -> None:
    from .conftest import FakeAgent

    queue = state_dir / "deleteQueue"
    queue.mkdir()
    lock = os.open(queue / "lockfile", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(plugin("DEL")))
    thread.start()
    time.sleep(0.3)  # long enough to find no socket and to wait for the lock
    fake = FakeAgent(state_dir / "cni.sock")
    os.close(lock)
    thread.join()

    try:
        assert outcomes == [(0, None)]
        assert [path for _, path, _ in fake.requests] == ["/v1/cni/del"]
        assert list(queue.glob("*.delete")) == []
    finally:
        fake.close()


def test_status_without_an_agent_is_code_50(plugin: Callable[..., Outcome]) -> None:
    outcome = plugin("STATUS")

    assert outcome.exit_code == 1
    assert outcome.answer["code"] == 50
    assert "cni.sock" in outcome.answer["msg"]


def test_check_without_an_agent_asks_to_try_again(plugin: Callable[..., Outcome]) -> None:
    assert plugin("CHECK", prevResult=RESULT).answer["code"] == 11


def test_garbage_collection_is_left_to_the_agent(plugin: Callable[..., Outcome]) -> None:
    assert plugin("GC") == (0, None)


@pytest.mark.parametrize(
    ("verb", "changes", "code", "word"),
    [
        ("EXPLODE", {}, 4, "EXPLODE"),
        ("ADD", {"CNI_CONTAINERID": ""}, 4, "CNI_CONTAINERID"),
        ("ADD", {"CNI_CONTAINERID": "../etc"}, 4, "../etc"),
        ("ADD", {"CNI_NETNS": None}, 4, "CNI_NETNS"),
        ("ADD", {"CNI_IFNAME": "much-too-long-a-name"}, 4, "CNI_IFNAME"),
        ("ADD", {"CNI_IFNAME": "a/b"}, 4, "a/b"),
        ("ADD", {"CNI_IFNAME": ".."}, 4, ".."),
        ("ADD", {"CNI_ARGS": "K8S_POD_NAME"}, 4, "CNI_ARGS"),
        ("ADD", {"cniVersion": "0.2.0"}, 1, "0.2.0"),
        ("ADD", {"cniVersion": 7}, 1, "7"),
        ("ADD", {"name": "bad name"}, 7, "bad name"),
        ("ADD", {"chaining_mode": "flannel"}, 2, "flannel"),
        ("CHECK", {"cniVersion": "0.3.1"}, 1, "CHECK"),
        ("STATUS", {"cniVersion": "1.0.0"}, 1, "STATUS"),
        ("CHECK", {}, 7, "prevResult"),
    ],
)
def test_bad_input_is_named(
    plugin: Callable[..., Outcome], verb: str, changes: dict[str, Any], code: int, word: str
) -> None:
    outcome = plugin(verb, **changes)

    assert outcome.exit_code == 1
    assert outcome.answer["code"] == code
    assert word in outcome.answer["msg"]


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "\x00", "{}x"])
def test_a_configuration_that_is_no_object_is_a_decoding_failure(
    plugin: Callable[..., Outcome], text: str
) -> None:
    assert plugin("ADD", stdin=text).answer["code"] == 6


@pytest.mark.parametrize("status", [500, 404])
def test_an_answer_without_a_code_is_an_internal_error(
    plugin: Callable[..., Outcome], agent: FakeAgent, status: int
) -> None:
    agent.answers["/v1/cni/add"] = [(status, "no object")]

    assert plugin("ADD").answer["code"] == 999


def test_it_installs_itself_where_a_runtime_looks(launcher: Path, tmp_path: Path) -> None:
    command = [str(launcher), "install", str(tmp_path / "bin")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    installed = tmp_path / "bin" / "cilium-cni"
    assert done.stdout == f"{installed}\n"
    assert installed.read_text() == launcher.read_text()
    assert installed.stat().st_mode & 0o777 == 0o755


def test_only_what_is_needed_is_imported(launcher: Path) -> None:
    program = (
        "import sys\n"
        "try: exec(open(sys.argv[1]).read())\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    ).replace("json.", "sys.modules['json'].")
    done = subprocess.run(
        [launcher.read_text().splitlines()[0][2:].split()[0], "-IS", "-c", program, str(launcher)],
        env={"CNI_COMMAND": "VERSION"},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(json.loads(done.stderr))
    assert not loaded & {"typing", "ctypes", "http.client", "dataclasses", "subprocess", "hashlib"}
