"""Real policy files mean what they should, rule by rule."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from cilium_core.objects.checking import check
from cilium_core.policy import PolicyError, UnsupportedPolicyError, parse
from cilium_core.policy.options import PERMISSIVE
from cilium_core.policy.ports import PORT_MAX, NamedPort, PortMatch

if TYPE_CHECKING:
    from cilium_core.policy.l7 import L7Match
    from cilium_core.policy.rules import Rule

EXAMPLES = Path(
    os.environ.get("CILIUM_EXAMPLE_POLICIES")
    or Path(__file__).parents[4] / "shared" / "data" / "example-policies"
)
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason=f"no example policies at {EXAMPLES}")

# NS, SA and OWN stand for the labels of namespace, service account and own cluster.
MEANING = {
    "kubernetes/servicemesh/policy/default-deny.yaml": [
        (
            "egress allow [any:NS notin (kube-system)] any:NS=kube-system, "
            "any:k8s-app=kube-dns, OWN on 53/UDP dns{*}"
        ),
    ],
    "kubernetes/servicemesh/policy/external-lockdown.yaml": [
        "ingress allow [{}] entity:cluster",
    ],
    "kubernetes-dns/dns-matchname.yaml": [
        "egress allow [any:org=empire, any:class=mediabot, k8s:NS=ns] fqdn:api.github.com",
        (
            "egress allow [any:org=empire, any:class=mediabot, k8s:NS=ns] "
            "k8s:NS=kube-system, k8s:k8s-app=kube-dns, OWN on 53/TCP 53/UDP dns{*}"
        ),
    ],
    "kubernetes-dns/dns-pattern.yaml": [
        "egress allow [any:org=empire, any:class=mediabot, k8s:NS=ns] fqdn:*.github.com",
        (
            "egress allow [any:org=empire, any:class=mediabot, k8s:NS=ns] "
            "k8s:NS=kube-system, k8s:k8s-app=kube-dns, OWN on 53/TCP 53/UDP dns{*}"
        ),
    ],
    "kubernetes-es/es-sw-policy.yaml": [
        (
            "ingress allow [any:component=elasticsearch, k8s:NS=default] any:app=spaceship, "
            "k8s:NS=default, OWN on 9200/TCP http{^PUT$ ^/spaceship_diagnostics/stats/.*$}"
        ),
        (
            "ingress allow [any:component=elasticsearch, k8s:NS=default] any:app=empire-hq, "
            "k8s:NS=default, OWN on 9200/TCP http{^GET$ "
            "^/spaceship_diagnostics/_search/??.*$; ^GET$ ^/troop_logs/_search/??.*$}"
        ),
        (
            "ingress allow [any:component=elasticsearch, k8s:NS=default] any:app=outpost, "
            "k8s:NS=default, OWN on 9200/TCP http{^PUT$ ^/troop_logs/log/.*$}"
        ),
        "ingress allow [k8s:NS=default] nobody",
        "egress allow [k8s:NS=default] k8s:NS, OWN",
        "egress allow [k8s:NS=default] entity:cluster | entity:host",
    ],
    "kubernetes-istio/l4-policy.yaml": [
        "ingress allow [any:app=httpbin, k8s:NS=ns] any:NS in (blue,red), OWN on 80/TCP",
    ],
    "minikube/sw_deny_policy.yaml": [
        "ingress allow [any:org=empire, k8s:NS=ns] nobody",
    ],
    "minikube/sw_l3_l4_policy.yaml": [
        (
            "ingress allow [any:org=empire, any:class=deathstar, k8s:NS=ns] any:org=empire, "
            "k8s:NS=ns, OWN on 80/TCP"
        ),
    ],
    "policies/getting-started/cilium_dkr_demo_l3-l4-policy-170817.yaml": [
        "ingress allow [any:id=app1, k8s:NS=ns] any:id=app2, k8s:NS=ns, OWN on 80/TCP",
    ],
    "policies/getting-started/cilium_dkr_demo_l7-policy-230817.yaml": [
        (
            "ingress allow [any:id=app1, k8s:NS=ns] any:id=app2, k8s:NS=ns, OWN on 80/TCP "
            "http{GET /public}"
        ),
    ],
    "policies/getting-started/kafka.yaml": [
        (
            "ingress allow [any:app=kafka, k8s:NS=ns] any:app=empire-outpost, k8s:NS=ns, OWN "
            "on 9092/TCP kafka{[1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 18] empire-announce}"
        ),
    ],
    "policies/host/demo-host-policy.yaml": [
        "ingress allow [nodes any:node-access=ssh] entity:cluster",
        "ingress allow [nodes any:node-access=ssh] everyone on 22/TCP",
        "ingress allow [nodes any:node-access=ssh] everyone on 8/ICMP",
    ],
    "policies/host/lock-down-ingress.yaml": [
        "ingress allow [nodes any:type=ingress-worker] entity:remote-node | entity:health",
        (
            "ingress allow [nodes any:type=ingress-worker] everyone on 22/TCP 6443/TCP "
            "2379/TCP 4240/TCP 8472/UDP"
        ),
    ],
    "policies/kubernetes/clustermesh/cross-cluster-policy.yaml": [
        (
            "egress allow [any:name=x-wing, any:CLUSTER=cluster1, k8s:NS=ns] "
            "any:name=rebel-base, any:NS=default, any:CLUSTER=cluster2"
        ),
    ],
    "policies/kubernetes/clusterwide/clusterscope-policy.yaml": [
        "ingress allow [any:name=leia] any:name=luke, k8s:NS, OWN",
    ],
    "policies/kubernetes/clusterwide/wildcard-from-endpoints.yaml": [
        "ingress allow [k8s:NS=kube-system, any:k8s-app=kube-dns] k8s:NS, OWN on 53/UDP",
    ],
    "policies/kubernetes/namespace/kubedns-policy.yaml": [
        "egress allow [k8s:NS=public] k8s:NS=kube-system, any:k8s-app=kube-dns, OWN on 53/UDP",
    ],
    "policies/kubernetes/namespace/namespace-policy.yaml": [
        "ingress allow [any:name=leia, k8s:NS=ns1] k8s:NS=ns2, any:name=luke, OWN",
    ],
    "policies/kubernetes/serviceaccount/serviceaccount-policy.yaml": [
        (
            "ingress allow [any:SA=leia, k8s:NS=ns] any:SA=luke, k8s:NS=ns, OWN on 80/TCP "
            "http{GET /public$}"
        ),
    ],
    "policies/l3/cidr/cidr.yaml": [
        "egress allow [any:app=myService, k8s:NS=ns] cidr:20.1.1.1/32",
        "egress allow [any:app=myService, k8s:NS=ns] cidr:10.0.0.0/8 except 10.96.0.0/12",
    ],
    "policies/l3/egress-allow-all/egress-allow-all.yaml": [
        "egress allow [any:role=frontend, k8s:NS=ns] k8s:NS=ns, OWN",
    ],
    "policies/l3/egress-default-deny/egress-default-deny.yaml": [
        "egress allow [any:role=restricted, k8s:NS=ns] nobody",
    ],
    "policies/l3/entities/customnodes.yaml": [
        (
            "ingress allow [any:env=prod, k8s:NS=ns] "
            "any:node-role.kubernetes.io/control-plane=, reserved:remote-node, OWN"
        ),
    ],
    "policies/l3/entities/from_world_deny.yaml": [
        "ingress allow [{}] everyone",
        "ingress deny [{}] entity:world",
    ],
    "policies/l3/entities/world.yaml": [
        "ingress allow [any:role=public, k8s:NS=ns] entity:world",
    ],
    "policies/l3/fqdn/fqdn.yaml": [
        (
            "egress allow [any:app=test-app, k8s:NS=ns] k8s:NS=kube-system, "
            "k8s:k8s-app=kube-dns, OWN on 53/TCP 53/UDP dns{*}"
        ),
        "egress allow [any:app=test-app, k8s:NS=ns] fqdn:my-remote-service.com",
    ],
    "policies/l3/match-expressions/and-statement.yaml": [
        "ingress allow [k8s:NS=ns] k8s:NS=production, k8s:cilium.example.com/policy=strict, OWN",
    ],
    "policies/l3/simple/l3.yaml": [
        "ingress allow [any:role=backend, k8s:NS=ns] any:role=frontend, k8s:NS=ns, OWN",
    ],
    "policies/l4/cidr_l4_combined.yaml": [
        "egress allow [any:role=crawler, k8s:NS=ns] cidr:192.0.2.0/24 on 80/TCP",
    ],
    "policies/l4/icmp.yaml": [
        "egress allow [any:app=myService, k8s:NS=ns] everyone on 8/ICMP 128/ICMPV6",
    ],
    "policies/l4/l4.yaml": [
        "egress allow [any:app=myService, k8s:NS=ns] everyone on 80/TCP",
    ],
    "policies/l4/l4_port_range.yaml": [
        "egress allow [any:app=myService, k8s:NS=ns] everyone on 80-444/TCP",
    ],
    "policies/l4/multi_rule.yaml": [
        "ingress allow [any:role=backend, k8s:NS=ns] any:role=frontend, k8s:NS=ns, OWN",
        "ingress allow [any:role=backend, k8s:NS=ns] everyone on 80/TCP",
    ],
    "policies/l7/dns/dns-visibility.yaml": [
        (
            "egress allow [any:org=alliance, k8s:NS=ns] k8s:NS=kube-system, "
            "k8s:k8s-app=kube-dns, OWN on 53/TCP 53/UDP dns{*}"
        ),
        (
            "egress allow [any:org=alliance, k8s:NS=ns] fqdn:cilium.io | fqdn:sub.cilium.io "
            "| fqdn:*.sub.cilium.io"
        ),
    ],
    "policies/l7/http/http.yaml": [
        (
            "ingress allow [any:app=myService, k8s:NS=ns] everyone on 80/TCP http{GET "
            "/path1$; PUT /path2$ x-my-header=true}"
        ),
    ],
    "policies/l7/http/simple/l7.yaml": [
        (
            "ingress allow [any:app=service, k8s:NS=ns] any:env=prod, k8s:NS=ns, OWN on "
            "80/TCP http{GET /public}"
        ),
    ],
    "policies/l7/kafka/kafka-role.yaml": [
        (
            "ingress allow [any:app=kafka, k8s:NS=ns] any:app=empire-hq, k8s:NS=ns, OWN on "
            "9092/TCP kafka{[0, 3, 18] deathstar-plans; [0, 3, 18] empire-announce}"
        ),
    ],
}
SHORT = {
    "io.kubernetes.pod.namespace": "NS",
    "io.cilium.k8s.policy.serviceaccount": "SA",
    "io.cilium.k8s.policy.cluster": "CLUSTER",
    "k8s:CLUSTER=default": "OWN",
}


def objects(file: str):
    """The objects of an example, applied to the namespace `ns`."""
    for obj in yaml.safe_load_all((EXAMPLES / file).read_text()):
        if obj["kind"] != "CiliumClusterwideNetworkPolicy":
            obj["metadata"].setdefault("namespace", "ns")
        yield obj


def text(rule: Rule) -> str:
    peers = " | ".join(map(str, rule.peers or ())) or "nobody"
    if rule.peers is None:
        peers = "everyone"
    ports = "" if rule.ports is None else f" on {' '.join(map(port_text, rule.ports))}"
    l7 = f" {l7_text(rule.l7)}" if rule.l7 else ""
    subject = f"[{'nodes ' if rule.nodes else ''}{rule.subject}]"
    assert rule.default_deny
    found = f"{rule.direction.name.lower()} {rule.verdict.value} {subject} {peers}{ports}{l7}"
    for long, short in SHORT.items():
        found = found.replace(long, short)
    return found


def port_text(port: PortMatch) -> str:
    if isinstance(port, NamedPort):
        return f"{port.name}/{port.protocol.name}"
    if (port.first, port.last) == (0, PORT_MAX):
        return f"*/{port.protocol.name}"
    last = "" if port.first == port.last else f"-{port.last}"
    return f"{port.first}{last}/{port.protocol.name}"


def l7_text(l7: L7Match) -> str:
    http = (
        [rule.method, rule.path, rule.host, *(f"{h.name}={h.value}" for h in rule.headers)]
        for rule in l7.http
    )
    said = [" ".join(filter(None, parts)) for parts in http]
    said += [rule.name or rule.pattern for rule in l7.dns]
    said += [f"{sorted(rule.api_keys)} {rule.topic}" for rule in l7.kafka]
    return f"{l7.kind.value}{{{'; '.join(said)}}}"


@pytest.mark.parametrize(("file", "meaning"), MEANING.items(), ids=MEANING.keys())
def test_an_example_means_what_it_should(file, meaning):
    rules = [rule for obj in objects(file) for rule in parse(obj, PERMISSIVE).rules]

    assert [text(rule) for rule in rules] == meaning


def test_nodes_are_no_peers_while_their_labels_are_not_known():
    (obj,) = objects("policies/l3/entities/customnodes.yaml")

    with pytest.raises(PolicyError, match="enable-node-selector-labels"):
        parse(obj)


def test_authentication_is_refused_since_nothing_provides_it():
    (obj,) = objects("kubernetes/servicemesh/cnp-with-mutual-auth.yaml")

    with pytest.raises(UnsupportedPolicyError, match="authentication: is not available"):
        parse(obj)


@pytest.mark.parametrize("file", ["lrp-addrmatcher.yaml", "node-local-dns-lrp.yaml"])
def test_local_redirects_are_accepted(file):
    (obj,) = objects(f"kubernetes-local-redirect/{file}")

    assert check(obj).warnings == ()


def test_no_example_is_left_out():
    files = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.yaml")}
    others = {file for file in files if "local-redirect" in file or "mutual-auth" in file}

    assert files - others == MEANING.keys()
