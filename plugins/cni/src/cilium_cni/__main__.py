# SPDX-License-Identifier: Apache-2.0
"""Runs one CNI verb: environment and stdin in, JSON on stdout, exit code 0 or 1.

Nothing is kept between calls. Errors become JSON in `main` and nowhere else.
"""

import json
import os
import sys
import time

from cilium_cni.agents import Agent
from cilium_cni.errors import INTERNAL, NOT_AVAILABLE, TRY_AGAIN_LATER, AgentUnreachable, CNIError
from cilium_cni.requests import VERSIONS, Request, read
from cilium_cni.results import convert

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ADD_PATIENCE_S = 30.0
"""How long ADD waits for an agent that is starting."""
DEL_RETRIES = 3
DEL_RETRY_PAUSE_S = 5.0
_DEL_TIMEOUT_S = 10.0


def add(request: Request, agent: Agent) -> "dict[str, Any]":
    """Create the endpoint and return the result in the version asked for."""
    result = agent.call("POST", "/v1/cni/add", request.body(), patience_s=ADD_PATIENCE_S)
    return convert(result, request.version)


def delete(request: Request, agent: Agent) -> None:
    """Remove the endpoint, or queue that when the agent is down. Succeeds when there is none."""
    for attempt in range(DEL_RETRIES + 1):
        try:
            agent.call("POST", "/v1/cni/del", request.body(), timeout_s=_DEL_TIMEOUT_S)
        except AgentUnreachable:
            _delete_later(request, agent)
        except CNIError as error:
            if error.code != TRY_AGAIN_LATER or attempt == DEL_RETRIES:
                raise
            time.sleep(DEL_RETRY_PAUSE_S)
            continue
        return


def _delete_later(request: Request, agent: Agent) -> None:
    from cilium_cni.links import remove_link
    from cilium_cni.queueing import defer

    def last_try() -> bool:
        try:
            agent.call("POST", "/v1/cni/del", request.body(), timeout_s=_DEL_TIMEOUT_S)
        except AgentUnreachable:
            return False
        return True

    if defer(f"{request.state_dir}/deleteQueue", request.body(), last_try) and request.netns:
        remove_link(request.netns, request.ifname)


def check(request: Request, agent: Agent) -> None:
    """Compare the pod with the result of ADD; the agent answers 100 or 101 when they differ."""
    agent.call("POST", "/v1/cni/check", request.body())


def status(request: Request, agent: Agent) -> None:
    """Fail with code 50 unless the agent would serve an ADD now."""
    try:
        agent.call("GET", "/v1/cni/status", timeout_s=5.0)
    except CNIError as error:
        raise CNIError(NOT_AVAILABLE, error.msg, error.details) from error


def collect_garbage(request: Request, agent: Agent) -> None:
    """Do nothing: the agent finds endpoints without a device by itself."""


_VERBS = {
    "ADD": add,
    "DEL": delete,
    "CHECK": check,
    "STATUS": status,
    "GC": collect_garbage,
}


def main() -> int:
    """Serve one call of a runtime, or `cilium-cni install FOLDER`."""
    version = VERSIONS[-1]
    if sys.argv[1:2] == ["install"] and len(sys.argv) == 3:
        from cilium_cni.installing import install

        print(install(sys.argv[2]))
        return 0
    try:
        if os.environ.get("CNI_COMMAND") == "VERSION":
            _print({"cniVersion": version, "supportedVersions": list(VERSIONS)})
            return 0
        if not os.environ.get("CNI_COMMAND") and sys.stdin.isatty():
            print(f"cilium-cni is run by a container runtime; it speaks CNI {', '.join(VERSIONS)}")
            print("cilium-cni install FOLDER puts it where a runtime looks for its plugins")
            return 0
        request = read(os.environ, sys.stdin.read())
        version = request.version
        agent = Agent(f"{request.state_dir}/cni.sock")
        result = _VERBS[request.verb](request, agent)
        if result is not None:
            _print(result)
    except CNIError as error:
        _print(_error(version, error))
        return 1
    except Exception as error:
        _print(_error(version, CNIError(INTERNAL, f"{type(error).__name__}: {error}")))
        return 1
    return 0


def _error(version: str, error: CNIError) -> "dict[str, Any]":
    report = {"cniVersion": version, "code": error.code, "msg": error.msg}
    if error.details:
        report["details"] = error.details
    return report


def _print(document: "dict[str, Any]") -> None:
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    sys.exit(main())
