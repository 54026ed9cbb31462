"""A plugin as a runtime executes it, and an agent that answers as told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingUnixStreamServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cilium_cni.installing import install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class FakeAgent:
    """Records requests and answers each with the status and document set for its path."""

    def __init__(self, path: Path) -> None:
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                agent.requests.append((self.command, self.path, json.loads(body or b"{}")))
                queued = agent.answers.get(self.path, [(200, {})])
                status, document = queued.pop(0) if len(queued) > 1 else queued[0]
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST  # noqa: N815 - the base class chose the name

            def address_string(self) -> str:
                return "plugin"

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingUnixStreamServer(str(path), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Outcome(NamedTuple):
    """What a call of the plugin came to."""

    exit_code: int
    answer: Any


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def agent(state_dir: Path) -> Iterator[FakeAgent]:
    fake = FakeAgent(state_dir / "cni.sock")
    yield fake
    fake.close()


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("bin"), sys.executable)


@pytest.fixture
def plugin(launcher: Path, state_dir: Path) -> Callable[..., Outcome]:
    """Execute the plugin; `environ` and `config` change the defaults, None removes one."""

    def run(verb: str, stdin: str | None = None, **changes: Any) -> Outcome:
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "c0ffee",
            "CNI_NETNS": "/run/netns/none-such",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart",
            "CNI_PATH": str(launcher.parent),
            "PATH": os.environ["PATH"],
        }
        config: dict[str, Any] = {
            "cniVersion": "1.1.0",
            "name": "cilium",
            "type": "cilium-cni",
            "state-dir": str(state_dir),
        }
        for name, value in changes.items():
            target = environ if name.startswith("CNI_") else config
            key = name if name.startswith("CNI_") else name.replace("_", "-")
            if value is None:
                target.pop(key, None)
            else:
                target[key] = value
        done = subprocess.run(
            [str(launcher)],
            input=json.dumps(config) if stdin is None else stdin,
            text=True,
            capture_output=True,
            env=environ,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        return Outcome(done.returncode, json.loads(done.stdout) if done.stdout else None)

    return run
