"""Tables of policy files and what each must mean, checked as real traffic in a lab.

    python -m tests.e2e.meanings TABLE.yaml [--policies FOLDER] [--only TEXT] [--keep]

A table is YAML. Pods, outside addresses and names are made as the cases need them; pods with equal
namespace, labels and service account are one pod for all cases.

    world: [20.1.1.1]                # outside addresses beside those of every lab
    zones:                           # names that the pods marked `dns` answer for
      api.example.com: {A: [203.0.113.30]}
    cases:
    - file: l3/simple.yaml           # below FOLDER; `files` for several
      name: only the frontend        # instead of the file's, and `objects` for policies in place
      namespace: default             # of objects that name none
      options: {enable-host-firewall: "true"}    # of the agents; a restart
      nodes: {node1: {type: worker}} # labels of nodes
      refused: text                  # an agent must refuse it with these words
      pods:
        backend: {role: backend}     # labels; "other/backend" is in another namespace
        dns: {labels: {k8s-app: kube-dns}, dns: true, node: node1, account: a, ports: {web: 80/TCP}}
        kafka: {labels: {app: kafka}, kafka: true}
      spaces: {other: {team: red}}   # labels of namespaces
      probes:
        frontend -> backend 80/TCP 53/UDP icmp: yes
        203.0.113.10 -> backend 80/TCP: no
        frontend -> backend 80/TCP GET /public {X-Token: abc}: 200
        frontend -> dns dns api.example.com: NOERROR
        frontend -> api.example.com 443/TCP: yes          # looked up at a pod with `dns` first
        frontend -> backend 443/TCP sni www.example.com: reset
        frontend -> kafka 9092/TCP produce some-topic: yes

Ends are pods of the case, outside addresses (as a source, the address asked from), nodes by name,
`host` (the node of the other end) and `remote` (another one). All is asked over both families where
both ends have both; `icmp4`, `80/TCP6` and the like mean one of them. "yes" is an answer, "no" is
silence, anything else is what the prober must say; see `prober.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cilium_core.resources.keys import kind_of

from tests.e2e.driving import Cluster, PodSpec, Probe
from tests.e2e.running import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINE = re.compile(r"(?P<source>\S+) -> (?P<target>\S+) (?P<what>.+)")
_PORT = re.compile(r"(?P<port>\d+)/(?P<kind>TCP|UDP|SCTP)(?P<family>[46]?)")
_ECHO = re.compile(r"icmp(?P<family>[46]?)")
_METHODS = {"GET", "PUT", "POST", "HEAD", "DELETE", "PATCH", "OPTIONS"}
_NODE = re.compile(r"node\d+|host|remote")
_OWN_WORLD = ("203.0.113.10", "203.0.113.20", "203.0.113.30")
NAMESPACE = "default"
KAFKA_PORT = 9092
BROKER = Path(__file__).resolve().parents[2] / "examples/01-secure-api/broker.py"


class TableError(Exception):
    """A table that cannot be read; names the case and the place."""


@dataclass(frozen=True)
class Question:
    """One probe between two ends, before their addresses are known."""

    text: str
    source: str
    target: str
    probe: Probe
    expected: str
    family: int | None = None


@dataclass(frozen=True)
class CasePod:
    """A pod as a case describes it; equal ones are one pod."""

    namespace: str
    labels: tuple[tuple[str, str], ...]
    account: str = "default"
    dns: bool = False
    kafka: bool = False
    node: str = ""
    ports: tuple[tuple[str, int, str], ...] = ()

    @property
    def name(self) -> str:
        """A name that says nothing but that it is this one."""
        return "pod-" + hashlib.blake2b(repr(self).encode(), digest_size=5).hexdigest()

    @property
    def full_name(self) -> str:
        """With the namespace."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Case:
    """What one or several policy files must mean."""

    name: str
    files: tuple[str, ...]
    objects: tuple[dict[str, Any], ...]
    namespace: str
    pods: dict[str, CasePod]
    spaces: dict[str, dict[str, str]]
    questions: tuple[Question, ...]
    options: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: str = ""
    skip: str = ""


@dataclass(frozen=True)
class Table:
    """All cases, and what is outside."""

    cases: tuple[Case, ...]
    world: tuple[str, ...]
    zones: dict[str, dict[str, Any]]


# ---- reading ----


def read(path: Path) -> Table:
    """Read a table. Raises TableError."""
    document = yaml.safe_load(path.read_text())
    zones = document.get("zones") or {}
    cases = tuple(_case(item, zones) for item in document["cases"])
    return Table(cases, tuple(document.get("world") or ()), zones)


def _case(item: dict[str, Any], zones: dict[str, Any]) -> Case:
    files = tuple(item.get("files", [item["file"]] if "file" in item else []))
    name = item.get("name") or " ".join(files)
    namespace = item.get("namespace", NAMESPACE)
    pods = {name: _pod(name, given, namespace) for name, given in (item.get("pods") or {}).items()}
    questions = []
    for line, expected in (item.get("probes") or {}).items():
        try:
            questions += _questions(line, expected, pods, zones)
        except (TableError, KeyError) as error:
            raise TableError(f"{name}: probe {line!r}: {error}") from error
    return Case(
        name,
        files,
        tuple(item.get("objects") or ()),
        namespace,
        pods,
        item.get("spaces") or {},
        tuple(questions),
        item.get("options") or {},
        item.get("nodes") or {},
        item.get("refused", ""),
        item.get("skip", ""),
    )


def _pod(name: str, given: dict[str, Any] | None, namespace: str) -> CasePod:
    given = given or {}
    described = given if "labels" in given else {"labels": given}
    ports = tuple(
        (port, int(text.partition("/")[0]), text.partition("/")[2] or "TCP")
        for port, text in (described.get("ports") or {}).items()
    )
    return CasePod(
        name.partition("/")[0] if "/" in name else namespace,
        tuple(sorted((key, str(value)) for key, value in (described["labels"] or {}).items())),
        described.get("account", "default"),
        described.get("dns", False),
        described.get("kafka", False),
        described.get("node", ""),
        ports,
    )


def _questions(
    line: str, expected: Any, pods: dict[str, CasePod], zones: dict[str, Any]
) -> Iterator[Question]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise TableError("not SOURCE -> TARGET WHAT")
    source, target = match["source"], match["target"]
    for end in (source, target):
        if not (end in pods or end in zones or _NODE.fullmatch(end) or _is_address(end)):
            raise TableError(f"{end!r} is no pod of the case, node, address or name")
    for probe, family in _probes(match["what"].split(), line):
        answer = expected
        if isinstance(expected, bool):
            answer = ("200" if probe["kind"] == "http" else "ok") if expected else ""
        yield Question(line, source, target, probe, str(answer), family)


def _probes(words: list[str], line: str) -> Iterator[tuple[Probe, int | None]]:
    """What a line asks, with the family that it is about, None for both."""
    if words[0] in ("dns", "dns/TCP"):
        over = {"over": "tcp"} if words[0] == "dns/TCP" else {}
        yield {"kind": "dns", "name": words[1], **over}, None
        return
    port = _PORT.fullmatch(words[0])
    if port is not None and len(words) > 1 and words[1] in _METHODS:
        _, brace, rest = line.partition("{")
        headers = yaml.safe_load(brace + rest) if brace else {}
        host = {"host": str(headers.pop("Host"))} if "Host" in headers else {}
        texts = {name: str(value) for name, value in headers.items()}
        request = {"kind": "http", "method": words[1], "path": words[2], "headers": texts, **host}
        yield {**request, "port": int(port["port"])}, _family(port)
        return
    if port is not None and len(words) == 3 and words[1] == "sni":
        yield {"kind": "tls", "port": int(port["port"]), "sni": words[2]}, _family(port)
        return
    if port is not None and len(words) == 3 and words[1] in ("produce", "consume"):
        kafka = {"kind": "kafka", "port": int(port["port"]), "act": words[1], "topic": words[2]}
        yield kafka, _family(port)
        return
    for word in words:
        if port := _PORT.fullmatch(word):
            yield {"kind": port["kind"].lower(), "port": int(port["port"])}, _family(port)
        elif echo := _ECHO.fullmatch(word):
            yield {"kind": "icmp", "port": 0}, _family(echo)
        else:
            raise TableError(f"{word!r} is no PORT/PROTOCOL and not icmp")


def _family(match: re.Match[str]) -> int | None:
    return int(match["family"]) if match["family"] else None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# ---- playing ----


class Stage:
    """A lab with all that a table's cases need."""

    def __init__(self, cluster: Cluster, table: Table, policies: Path | None = None) -> None:
        self.cluster = cluster
        self._table = table
        self._policies = policies
        self._options: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of what is no part of the lab."""
        self._folder.cleanup()

    def _build(self) -> None:
        zones = Path(self._folder.name) / "zones.json"
        zones.write_text(json.dumps(self._table.zones))
        cases = [case for case in self._table.cases if not case.skip]
        pods = dict.fromkeys(pod for case in cases for pod in case.pods.values())
        served: dict[CasePod, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        certified: dict[CasePod | None, set[int]] = defaultdict(set)
        topics: dict[CasePod | None, set[str]] = defaultdict(set)
        outside: dict[str, set[int]] = defaultdict(set)
        nodes: dict[str, set[int]] = defaultdict(set)
        for case in cases:
            for question in case.questions:
                kind = question.probe["kind"]
                kind = "tcp" if kind == "http" else kind
                pod = case.pods.get(question.target)
                place = nodes if _NODE.fullmatch(question.target) else outside
                ports = place if pod is None else served[pod]
                if kind == "tls":
                    certified[pod].add(question.probe["port"])
                elif kind == "kafka":
                    topics[pod].add(question.probe["topic"])
                elif kind in ("tcp", "udp", "sctp"):
                    ports[kind].add(question.probe["port"])
        spaces = {name: {} for name in {pod.namespace for pod in pods}}
        for case in cases:
            spaces.update(case.spaces)
        self.cluster.add_pods(
            (
                PodSpec(
                    pod.namespace,
                    pod.name,
                    dict(pod.labels),
                    pod.node,
                    " ".join([*_serve(served[pod], pod, zones), *self._tls(certified[pod])]),
                    pod.ports,
                    pod.account,
                    (sys.executable, str(BROKER), str(KAFKA_PORT), *sorted(topics[pod]))
                    if pod.kafka
                    else (),
                )
                for pod in pods
            ),
            spaces,
        )
        self.cluster.ip(
            "world",
            *(
                f"address replace {address}/{128 if ':' in address else 32} dev lo"
                for address in (*self._table.world, *_zone_addresses(self._table.zones))
            ),
        )
        self.cluster.open_world()
        self.cluster.serve_at("world", *_serve(outside, None, zones))
        for node in self.cluster.nodes:
            self.cluster.serve_at(node, *_serve(nodes, None, zones))

    def _tls(self, ports: set[int]) -> list[str]:
        """Options of prober.py to serve TLS, with a certificate that nobody needs to trust."""
        folder = Path(self._folder.name)
        key, certificate = folder / "tls.key", folder / "tls.crt"
        if ports and not key.exists():
            command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"]
            files = ["-keyout", str(key), "-out", str(certificate)]
            subprocess.run([*command, *files], check=True, capture_output=True)
        return ["--tls", ",".join([str(*ports), str(certificate), str(key)])] if ports else []

    def wrong(self, case: Case) -> list[str]:
        """Apply a case's files and ask its questions; answers that are not as the case says."""
        if case.options != self._options:
            defaults = dict.fromkeys(self._options.keys() - case.options.keys())
            self.cluster.configure(defaults | case.options)
            self._options = case.options
        for node, labels in case.nodes.items():
            self.cluster.label_node(node, labels)
        objects = list(self._objects(case))
        if case.refused:
            said = self.cluster.refusal(*objects)
            return [] if case.refused in said else [f"refused with {said!r}"]
        with self.cluster.applied(*objects):
            found = self._ask(case)
        for node in case.nodes:
            self.cluster.label_node(node, {})
        return found

    def _objects(self, case: Case) -> Iterator[dict[str, Any]]:
        texts = [(self._policies / file).read_text() for file in case.files if self._policies]
        written = [obj for text in texts for obj in yaml.safe_load_all(text) if obj is not None]
        for obj in (*case.objects, *written):
            space = {"namespace": case.namespace} if kind_of(obj["kind"]).namespaced else {}
            yield {**obj, "metadata": space | obj["metadata"]}

    def _ask(self, case: Case) -> list[str]:
        orders: dict[str, tuple[list[Probe], list[Probe]]] = {}
        asked: dict[str, tuple[list[Question], list[Question]]] = {}
        for question in case.questions:
            for place, probe in self._resolved(case, question):
                shut = question.expected == ""
                orders.setdefault(place, ([], []))[shut].append(probe)
                asked.setdefault(place, ([], []))[shut].append(question)
        if not orders:
            return ["no probe in this case"]
        found = self._wrong(orders, asked)
        late = all("'then'" in line and line.endswith("expected ok") for line in found)
        if found and (case.nodes or late):
            # Labels of nodes travel without a revision to wait for. An answer about a name leaves
            # after a while, whether the kernel knows of it or not yet: clients send their first
            # packet again, a single echo request does not.
            found = self._wrong(orders, asked)
        return found

    def _wrong(
        self,
        orders: dict[str, tuple[list[Probe], list[Probe]]],
        asked: dict[str, tuple[list[Question], list[Question]]],
    ) -> list[str]:
        """Ask, and say of each answer that is not the expected one what it was."""
        answers = self.cluster.probe(orders)
        return [
            f"{question.text} (asked {probe}): {answer or 'silence'}, "
            f"expected {question.expected or 'silence'}"
            for place, (opened, shut) in orders.items()
            for question, probe, answer in zip(
                itertools.chain(*asked[place]), [*opened, *shut], answers[place], strict=True
            )
            if (answer.split() or [""])[0] != question.expected
        ]

    def _resolved(self, case: Case, question: Question) -> Iterator[tuple[str, Probe]]:
        """The probe in each family, with the place that makes it."""
        for family in (4, 6):
            if question.family not in (None, family):
                continue
            source = self._source(case, question, family)
            if source is None:
                continue
            place, origin = source
            if question.target in self._table.zones:
                server = next(pod for pod in case.pods.values() if pod.dns)
                then = {**question.probe, **origin}
                kind = "A" if family == 4 else "AAAA"
                if not self._table.zones[question.target].get(kind):
                    continue
                at = _address_of(self.cluster, server.full_name, family)
                name = {"kind": "name", "server": at, "name": question.target, "type": kind}
                yield place, {**name, "then": then}
                continue
            address = self._address(case, question.target, question.source, family)
            if address is not None:
                yield place, {**question.probe, **origin, "address": address}

    def _source(
        self, case: Case, question: Question, family: int
    ) -> tuple[str, dict[str, str]] | None:
        """Where a question is asked from, and the source address if it has to be one."""
        if (pod := case.pods.get(question.source)) is not None:
            return pod.full_name, {}
        if _is_address(question.source):
            version = ipaddress.ip_address(question.source).version
            return ("world", {"source": question.source}) if version == family else None
        return self._node(case, question.source, question.target), {}

    def _address(self, case: Case, end: str, other: str, family: int) -> str | None:
        if (pod := case.pods.get(end)) is not None:
            return _address_of(self.cluster, pod.full_name, family)
        if _is_address(end):
            return end if ipaddress.ip_address(end).version == family else None
        layout = self.cluster.layout.node(int(self._node(case, end, other).removeprefix("node")))
        return layout.ipv4 if family == 4 else layout.ipv6

    def _node(self, case: Case, end: str, other: str) -> str:
        if end not in ("host", "remote"):
            return end
        pod = case.pods.get(other)
        node = self.cluster.pods[pod.full_name].node if pod else other
        return node if end == "host" else next(n for n in self.cluster.nodes if n != node)


def _address_of(cluster: Cluster, pod: str, family: int) -> str:
    return cluster.pods[pod].ipv4 if family == 4 else cluster.pods[pod].ipv6


def _serve(ports: dict[str, set[int]], pod: CasePod | None, zones: Path) -> list[str]:
    """Options of prober.py; what a name server or broker serves in its pod is left to it."""
    taken = {53} if pod and pod.dns else set()
    taken |= {KAFKA_PORT} if pod and pod.kafka else set()
    options = []
    for kind in ("tcp", "udp", "sctp"):
        if numbers := ports.get(kind, set()) - taken:
            options += [f"--{kind}", ",".join(map(str, sorted(numbers)))]
    return [*options, "--dns", str(zones)] if pod and pod.dns else options


def _zone_addresses(zones: dict[str, dict[str, Any]]) -> Iterator[str]:
    return (
        address
        for zone in zones.values()
        for kind in ("A", "AAAA")
        for address in zone.get(kind, ())
    )


def main() -> int:
    """Play a table, print what is wrong; the exit code is 0 when nothing is."""
    parser = argparse.ArgumentParser(prog="meanings")
    parser.add_argument("table", type=Path)
    parser.add_argument("--policies", type=Path)
    parser.add_argument("--only", default="", help="cases whose names contain this text")
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    given = parser.parse_args()
    table = read(given.table)
    chosen = tuple(case for case in table.cases if given.only in case.name)
    lab = Lab("meanings")
    failed = 0
    try:
        lab.cilium("lab", "up", "--name", lab.name, "--nodes", "2", "--quiet")
        with Cluster(lab, 2) as cluster:
            stage = Stage(cluster, Table(chosen, table.world, table.zones), given.policies)
            for case in chosen:
                wrong = [] if case.skip else stage.wrong(case)
                failed += bool(wrong)
                print(f"{'skip' if case.skip else 'WRONG' if wrong else 'ok'}  {case.name}")
                for line in [case.skip] if case.skip else wrong:
                    print(f"      {line}", flush=True)
            stage.close()
    finally:
        if not given.keep:
            lab.cilium("lab", "down", "--name", lab.name, exit_code=None)
    print(f"{len(chosen)} cases, {failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
