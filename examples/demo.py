# SPDX-License-Identifier: Apache-2.0
"""The demo: a cluster on this machine, policies in its kernel, and the flows they decide.

Runs the very commands a user would type and checks that what they show is what the policies say:
the exit code is 0 only then. KEEP=1 in the environment leaves the lab running. Needs root.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LAB = "demo"
FOLDER = Path(__file__).resolve().parent / "01-secure-api"
BIN = Path(sys.executable).parent
CLIENT = [sys.executable, "client.py"]
BLOCKED = ("203.0.113.10", "2001:db8:113::a")
PRICES, STOREFRONT = "http://10.96.0.80", "http://10.96.0.81"
NODES = ("172.30.0.11", "172.30.0.12", "172.30.0.13")
EXCEPTED = ("203.0.113.20", "2001:db8:113::14")
SETTLE_S = 15.0
"""How long policies and flows may take to be seen everywhere. Milliseconds, as a rule; the first
rule about requests starts the proxies, which takes a second or two."""

SERVERS = {"frontend": ("http", 80), "api-server": ("http", 8080), "database": ("tcp", 5432)}
SOURCES = {
    "frontend": "shop",
    "api-server": "shop",
    "database": "shop",
    "intruder": "outskirts",
}
ALLOWED = {
    ("frontend", "api-server"),
    ("frontend", "allowed outside"),
    ("api-server", "frontend"),
    ("api-server", "database"),
    ("api-server", "allowed outside"),
    ("database", "frontend"),
    ("database", "allowed outside"),
    ("intruder", "frontend"),
    ("intruder", "allowed outside"),
}
"""What the policies say: every other pair is to be refused."""

Matrix = dict[tuple[str, str, str], bool]
"""Whether source reached destination, by family."""


class DemoError(Exception):
    """What was seen is not what the policies say, or a command failed."""


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n{bold(text)}", flush=True)


def bold(text: str) -> str:
    """Return the text in bold on a terminal."""
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def run(*command: str, show: bool = True, check: bool = True) -> str:
    """Run a command of ours, shown as one would type it, and return what it prints."""
    if show:
        print(f"$ {shlex.join(command)}", flush=True)
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"CILIUM_LAB": LAB},
        cwd=FOLDER,
    )
    if check and done.returncode:
        raise DemoError(f"{shlex.join(command)} ended with exit code {done.returncode}")
    return done.stdout


def targets(addresses: dict[str, list[str]], source: str) -> list[str]:
    """Return what the client of a pod is to try, as its arguments."""
    found = [
        f"{name}/{'6' if ':' in address else '4'}={kind}:{port}:{address}"
        for name, (kind, port) in SERVERS.items()
        if name != source
        for address in addresses[name]
    ]
    for name, pair in (("blocked outside", BLOCKED), ("allowed outside", EXCEPTED)):
        found += [f"{name}/{4 if ':' not in a else 6}=http:80:{a}" for a in pair]
    return found


def try_all(addresses: dict[str, list[str]]) -> Matrix:
    """Let every pod try every server, over both families, all at once."""
    started = {
        source: subprocess.Popen(
            [
                *(str(BIN / "cilium"), "lab", "exec", "--lab", LAB, f"{SOURCES[source]}/{source}"),
                *("--", *CLIENT, *targets(addresses, source)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=FOLDER,
        )
        for source in SOURCES
    }
    seen: Matrix = {}
    for source, process in started.items():
        output, _ = process.communicate(timeout=30)
        if process.returncode:
            raise DemoError(f"the client of {source} ended with exit code {process.returncode}")
        for label, answer in json.loads(output).items():
            destination, family = label.rsplit("/", 1)
            seen[source, destination, family] = answer is not None
    return seen


def print_matrix(seen: Matrix) -> None:
    """Print who reached whom, IPv4 and IPv6 side by side."""
    columns = [*SERVERS, "blocked outside", "allowed outside"]
    print(f"  {'from / to':<12}" + "".join(f"{name:<17}" for name in columns))
    for source in SOURCES:
        cells = []
        for destination in columns:
            if (source, destination, "4") not in seen:
                cells.append("-")
                continue
            marks = [
                f"v{family} {'ok' if seen[source, destination, family] else 'NO'}"
                for family in ("4", "6")
            ]
            cells.append("  ".join(marks))
        print(f"  {source:<12}" + "".join(f"{cell:<17}" for cell in cells))
    sys.stdout.flush()


def unexpected(seen: Matrix, allowed: set[tuple[str, str]] | None) -> list[str]:
    """Return what is not as it should be; None allows everything."""
    return [
        f"{source} {'reached' if reached else 'did not reach'} {destination} over IPv{family}"
        for (source, destination, family), reached in seen.items()
        if reached != (allowed is None or (source, destination) in allowed)
    ]


def expect(addresses: dict[str, list[str]], allowed: set[tuple[str, str]] | None) -> None:
    """Try until everything is as it should be; raises DemoError when it does not become so."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        seen = try_all(addresses)
        wrong = unexpected(seen, allowed)
        if not wrong or time.monotonic() > deadline:
            print_matrix(seen)
            break
    if wrong:
        raise DemoError("not what the policies say: " + "; ".join(wrong))


Request = tuple[str, list[str], str]
"""Who asks (a place of the lab), with which command, and how the answer must begin."""


def requests(addresses: dict[str, list[str]]) -> list[Request]:
    """Return who asks proxies for what."""
    public = f"http://{addresses['api-server'][0]}:8080/api/v1/public/prices"
    users = f"http://[{addresses['api-server'][1]}]:8080/api/v1/users"
    dns, orders = addresses["dns"][0], f"{addresses['orders'][0]}:9092"
    return [
        ("shop/frontend", ["request.py", "GET", public], "200"),
        ("shop/frontend", ["request.py", "POST", public], "403"),
        ("shop/frontend", ["request.py", "GET", users], "403"),
        ("shop/frontend", ["request.py", "GET", users, "Authorization: Bearer abc"], "200"),
        ("shop/mailer", ["names.py", "ask", dns, "smtp.mail.test"], "NOERROR 203.0.113.20"),
        ("shop/mailer", ["names.py", "ask", dns, "www.elsewhere.test"], "REFUSED"),
        ("shop/api-server", ["produce.py", orders, "orders"], "delivered"),
        ("shop/api-server", ["produce.py", orders, "salaries"], "TOPIC_AUTHORIZATION_FAILED"),
    ]


def service_requests() -> list[Request]:
    """Return who asks services for what."""
    path = "/api/v1/public/prices"
    return [
        ("shop/frontend", ["request.py", "GET", PRICES + path], "200 api-server"),
        ("shop/frontend", ["request.py", "POST", PRICES + path], "403"),
        ("shop/database", ["request.py", "GET", PRICES + path], "no answer"),
        ("shop/database", ["request.py", "GET", STOREFRONT + path], "200 frontend"),
        ("node3", ["request.py", "GET", STOREFRONT + path], "200 frontend"),
        *(
            ("world", ["request.py", "GET", f"http://{node}:30080{path}"], "200 frontend")
            for node in NODES
        ),
    ]


def ask_all(wanted: list[Request]) -> None:
    """Ask everything at once until all answers are as expected; raises DemoError otherwise."""
    place = [str(BIN / "cilium"), "lab", "exec", "--lab", LAB]
    deadline = time.monotonic() + SETTLE_S
    while True:
        started = [
            subprocess.Popen(
                [*place, pod, "--", sys.executable, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=FOLDER,
            )
            for pod, words, _ in wanted
        ]
        answers = [process.communicate(timeout=30)[0].strip() for process in started]
        wrong = [
            f"{pod}: {shlex.join(words)} gave {answer or 'nothing'}"
            for (pod, words, expected), answer in zip(wanted, answers, strict=True)
            if not answer.startswith(expected)
        ]
        if not wrong or time.monotonic() > deadline:
            break
    for (pod, words, _), answer in zip(wanted, answers, strict=True):
        print(f"  {pod.removeprefix('shop/'):<11}{shlex.join(words):<84} {answer}", flush=True)
    if wrong:
        raise DemoError("not what the policies say: " + "; ".join(wrong))


def observe(relay: str, words: tuple[str, ...], *arguments: str) -> None:
    """Show flows through the relay; one of them has to have these words."""
    shown = ["--last", "2", "--use-default-field-masks=false"]
    deadline = time.monotonic() + SETTLE_S
    command = ["hubble", "observe", "--server", relay, *shown, *arguments]
    lines = run(*command).splitlines()
    while not any(all(word in line for word in words) for line in lines):
        if time.monotonic() > deadline:
            raise DemoError(f"no flow shows {' '.join(words)}")
        lines = run(*command, show=False).splitlines()
    print("\n".join(lines), flush=True)


def check_flows(relay: str) -> None:
    """Show and check a few flows of each kind."""
    api, dropped = ("--to-pod", "shop/api-server", "--to-port", "8080"), ("--verdict", "DROPPED")
    intruder = ("--from-pod", "outskirts/intruder")
    observe(relay, ("outskirts/intruder", "shop/api-server:8080"), *dropped, *intruder, *api)
    observe(relay, (BLOCKED[0], "DROPPED"), *dropped, "--to-ip", BLOCKED[0])
    observe(relay, ("DROPPED", "POST"), "--protocol", "http", *dropped, "--http-method", "POST")
    observe(relay, ("DROPPED", "www.elsewhere.test"), "--protocol", "dns", *dropped)
    observe(relay, ("DROPPED", "salaries"), "--protocol", "kafka", *dropped)


def show() -> str:
    """Play the demo; returns the relay's address."""
    say("1. Three nodes: etcd, two operators, an agent and a hubble-server each, and a relay")
    print(run("cilium", "lab", "up", "--name", LAB, "--nodes", "3"), end="")
    relay = json.loads(run("cilium", "lab", "list", "-o", "json", show=False))
    address: str = next(lab["relay"] for lab in relay if lab["name"] == LAB)

    say("2. A shop, a name server and an intruder; their network comes from the CNI plugin")
    listed: list[dict[str, Any]] = json.loads(
        run("cilium", "lab", "pod", "add", "-f", "pods.yaml", "-o", "json")
    )
    addresses = {pod["name"]: pod["addresses"] for pod in listed}
    for pod in listed:
        where = f"{pod['namespace']}/{pod['name']}"
        print(f"  {where:<22} on {pod['node']}   {'   '.join(pod['addresses'])}")
    server = ["server.py", "http", "the outside world", "80"]
    with subprocess.Popen(
        [str(BIN / "cilium"), "lab", "exec", "--lab", LAB, "world", "--", sys.executable, *server],
        cwd=FOLDER,
    ) as outside:
        try:
            show_policies(addresses)
            say("5. Proxies refuse requests, names and topics that are not allowed")
            ask_all(requests(addresses))
            say("6. Services: an address for whichever pods are ready, inside and from outside")
            print(run("cilium", "apply", "-f", "services.yaml"), end="")
            ask_all(service_requests())
            print(run("cilium", "service", "list", "--name", "shop/storefront"), end="")
            say("7. What the kernel and the proxies did, seen through the relay")
            check_flows(address)
        finally:
            outside.kill()
    return address


def show_policies(addresses: dict[str, list[str]]) -> None:
    """Try everything without policies, then with them."""
    say("3. Without a policy everyone reaches everyone")
    expect(addresses, None)
    say("4. With policies the kernel refuses what they do not allow")
    print(run("cilium", "apply", "-f", "policies.yaml"), end="")
    expect(addresses, ALLOWED)


def main() -> int:
    """Play the demo, clean up, and say what to try next."""
    keep = os.environ.get("KEEP", "") not in {"", "0"}
    run("cilium", "lab", "down", "--name", LAB, show=False)
    began = time.monotonic()
    try:
        relay = show()
    except DemoError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    finally:
        if not keep:
            run("cilium", "lab", "down", "--name", LAB, show=False, check=False)
    say(f"All of it was as the policies say, in {time.monotonic() - began:.0f} s. Try next:")
    first = "cilium lab exec outskirts/intruder -- bash" if keep else "make demo KEEP=1"
    tips = {
        first: "a shell in a pod's network" if keep else "leaves the cluster running",
        f"hubble observe --follow --server {relay}": "flows as they happen",
        "cilium delete -f examples/01-secure-api/policies.yaml": "and everyone gets in again",
    }
    for command, meaning in tips.items():
        print(f"  {command:<66} {meaning}")
    print(f"Relay, for any Hubble client: {relay}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
