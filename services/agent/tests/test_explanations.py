"""Who the ends of an explained packet are, and what the answer says."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
from cilium.agent.v1 import agent_pb2
from cilium_agent.errors import PodNotFoundError, RequestError
from cilium_agent.hostendpoint import host_labels
from cilium_agent.ipcaches import Entry, IPCache, Source
from cilium_agent.pods import PodTable
from cilium_agent.servicers.explaining import Explainer
from cilium_core.labels import LabelFilter
from cilium_core.policy import PolicyEngine, PolicyOptions

POLICY = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNetworkPolicy",
    "metadata": {"name": "p", "namespace": "shop"},
    "spec": {
        "endpointSelector": {"matchLabels": {"app": "web"}},
        "ingress": [
            {
                "fromEndpoints": [{"matchLabels": {"app": "client"}}],
                "toPorts": [{"ports": [{"port": "http", "protocol": "TCP"}]}],
            }
        ],
    },
}


async def nothing(upserts, deletes):
    del upserts, deletes


def pod(name, **spec):
    return {
        "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": "node1",
            "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}],
            **spec,
        },
    }


@pytest.fixture
def explainer():
    pods = PodTable("default", LabelFilter())
    for name in ("web", "client", "stranger"):
        pods.upsert_pod(pod(name))
    pods.upsert_pod(pod("node-exporter", hostNetwork=True))
    engine = PolicyEngine()
    for number, name in enumerate(("web", "client"), 300):
        engine.upsert_identity(number, pods.identity_labels(pods.get("shop", name)))
    engine.upsert_policy(POLICY)
    ipcache = IPCache(nothing)
    ipcache.upsert("0.0.0.0/0", Source.GENERATED, Entry(9))
    ipcache.upsert("10.0.0.7/32", Source.KVSTORE, Entry(300, namespace="shop", pod_name="web"))
    ipcache.upsert("10.0.0.8/32", Source.KVSTORE, Entry(999))
    return Explainer(engine, ipcache, pods, "node1")


def ask(explainer, source, destination, port=8080, protocol=6, **request):
    asked = agent_pb2.ExplainPolicyRequest(
        source=source, destination=destination, protocol=protocol, port=port, **request
    )
    return explainer.tell(asked, explainer.ask(asked))


def test_pods_are_found_by_name_with_identity_and_ports(explainer):
    answer = ask(explainer, "shop/client", "shop/web")
    assert (answer.source.identity, answer.destination.identity) == (301, 300)
    assert answer.allowed
    (rule,) = answer.ingress.rules
    assert (rule.kind, rule.namespace, rule.name) == ("CiliumNetworkPolicy", "shop", "p")
    assert (rule.path, rule.decides, rule.verdict) == ("spec.ingress[0]", True, "allow")
    assert (answer.ingress.entry.port, answer.ingress.entry.identity) == (8080, 301)


def test_an_address_is_who_the_address_table_says(explainer):
    answer = ask(explainer, "198.51.100.7", "10.0.0.7")
    assert (answer.source.identity, answer.destination.identity) == (9, 300)
    assert answer.destination.origin == "address table: 10.0.0.7/32 is pod shop/web"
    assert (answer.allowed, answer.ingress.reason) == (False, "default-deny")
    wanted = json.loads(answer.ingress.suggestion)
    assert wanted["spec"]["ingress"][0]["fromCIDR"] == ["198.51.100.7/32"]


def test_an_address_of_an_unused_family_is_the_world(explainer):
    assert ask(explainer, "2001:db8::1", "shop/web").source.labels == ["reserved:world-ipv6"]


def test_labels_need_not_be_any_pods(explainer):
    answer = ask(explainer, "app=client,io.kubernetes.pod.namespace=shop,extra=1", "shop/web")
    assert (answer.source.identity, answer.allowed) == (0, True)
    assert not answer.ingress.HasField("entry")


def test_a_pod_without_an_identity_yet_is_judged_by_its_labels(explainer):
    answer = ask(explainer, "shop/stranger", "shop/web")
    assert (answer.source.identity, answer.allowed) == (0, False)


def test_labels_of_known_identities_get_their_number(explainer):
    assert ask(explainer, "reserved:host", "shop/web").source.identity == 1


def test_a_pod_in_the_network_of_a_node_is_that_node(explainer):
    answer = ask(explainer, "shop/node-exporter", "shop/web")
    assert (answer.source.identity, answer.ingress.reason) == (1, "local-host")


def test_a_node_is_to_a_pod_what_it_is_on_the_pods_own_node(explainer):
    host, far, third = "172.30.0.11", "172.30.0.12", "172.30.0.13"
    table = explainer._ipcache
    table.upsert(f"{host}/32", Source.LOCAL, Entry(1, host_ip=host))
    table.upsert(f"{far}/32", Source.KVSTORE, Entry(6, None, far))
    table.upsert("fd00:30::12/128", Source.KVSTORE, Entry(6, None, far))
    table.upsert(f"{third}/32", Source.KVSTORE, Entry(6, None, third))
    client = Entry(301, far, far, namespace="shop", pod_name="client")
    table.upsert("10.0.1.9/32", Source.KVSTORE, client)
    only_host = deepcopy(POLICY)
    only_host["metadata"]["name"] = "host"
    only_host["spec"] = {
        "endpointSelector": {"matchLabels": {"app": "client"}},
        "egress": [{"toEntities": ["host"]}],
    }
    explainer._engine.upsert_policy(only_host)

    def reached(source):
        ends = (host, far, "fd00:30::12", third)
        return [ask(explainer, source, end).egress.allowed for end in ends]

    assert reached("10.0.1.9") == reached("shop/client") == [False, True, True, False]
    table.upsert("10.0.1.9/32", Source.KVSTORE, replace(client, tunnel_ipv4=None, host_ip=host))
    assert reached("10.0.1.9") == [True, False, False, False]


def test_a_nodes_own_policy_goes_by_the_labels_of_that_node(explainer):
    guarded = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "guard"},
        "spec": {
            "nodeSelector": {"matchLabels": {"role": "db"}},
            "ingress": [{"fromEntities": ["health"]}],
        },
    }
    engine = PolicyEngine(PolicyOptions(host_firewall=True))
    engine.upsert_policy(guarded)
    near, far = "172.30.0.11", "172.30.0.12"
    roles = {"": "web", near: "web", far: "db"}
    guard = Explainer(
        engine,
        explainer._ipcache,
        explainer._pods,
        "node1",
        host_labels=lambda address: host_labels({"role": roles[address]}),
    )
    guard._ipcache.upsert(f"{near}/32", Source.LOCAL, Entry(1, host_ip=near))
    guard._ipcache.upsert(f"{far}/32", Source.KVSTORE, Entry(6, None, far))

    assert [ask(guard, "198.51.100.7", end).allowed for end in (near, far)] == [True, False]
    roles.update({"": "db", near: "db", far: "web"})
    assert [ask(guard, "198.51.100.7", end).allowed for end in (near, far)] == [False, True]
    assert not ask(guard, "198.51.100.7", "reserved:host").allowed


def test_the_value_of_a_secret_counts(explainer):
    wanted = deepcopy(POLICY)
    secret = {"name": "token", "namespace": "shop"}
    wanted["spec"]["ingress"][0]["toPorts"][0]["rules"] = {
        "http": [{"headerMatches": [{"name": "X-Token", "secret": secret}]}]
    }
    explainer._engine.upsert_policy(wanted)
    values = {"token": "right"}
    explainer._secret = lambda reference: values.get(reference.name)

    def passes(value):
        request = agent_pb2.HttpQuestion(method="GET", path="/", headers={"x-token": value})
        return ask(explainer, "shop/client", "shop/web", http=request).allowed

    assert (passes("right"), passes("wrong")) == (True, False)
    values.clear()
    assert not passes("right")


def test_misses_are_told_in_words(explainer):
    answer = ask(explainer, "shop/client", "shop/web", 80)
    assert list(answer.ingress.rules[0].misses) == ["port: its ports are http/TCP"]
    assert list(answer.ingress.default_deny) == ["CiliumNetworkPolicy shop/p"]


def test_an_unknown_pod_is_named(explainer):
    with pytest.raises(PodNotFoundError, match="default/nosuch"):
        ask(explainer, "nosuch", "shop/web")


@pytest.mark.parametrize("text", ["", "a/b/c", "/", "=x", "cidr:10.0.0.0/8", "10.0.0.8"])
def test_what_names_no_end_is_refused_by_field(explainer, text):
    with pytest.raises(RequestError, match=r"source|identity 999"):
        ask(explainer, text, "shop/web")


@pytest.mark.parametrize(("protocol", "port"), [(0, 80), (256, 80), (6, 65536)])
def test_numbers_out_of_range_are_refused(explainer, protocol, port):
    with pytest.raises(RequestError, match="is not a number"):
        ask(explainer, "shop/client", "shop/web", port, protocol)


def test_a_request_is_held_against_the_rules_about_requests(explainer):
    policy = deepcopy(POLICY)
    policy["spec"]["ingress"][0]["toPorts"][0]["rules"] = {"http": [{"path": "/public/.*"}]}
    explainer._engine.upsert_policy(policy)
    for path, allowed in (("/public/1", True), ("/private", False)):
        http = agent_pb2.HttpQuestion(method="GET", path=path)
        answer = ask(explainer, "shop/client", "shop/web", http=http)
        assert answer.allowed is allowed
        assert answer.ingress.redirect.kind == "http"
    assert answer.ingress.reason == "request-refused"
    assert "/private" in answer.ingress.suggestion
