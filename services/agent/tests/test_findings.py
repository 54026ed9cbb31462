"""What is not enforced as written is told, when it begins and when it ends."""

import json

import pytest
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.feeds import Feed
from cilium_agent.findings import NOT_ENFORCED, Findings
from cilium_agent.intakes import RefusedPolicy
from cilium_agent.metadata import MetadataHub
from cilium_agent.publishing import Publisher
from cilium_core.errors import InvalidError
from cilium_core.labels import LabelSet
from cilium_core.policy import PolicyEngine, PolicyRef, Subject
from cilium_core.records import PolicyFinding, PolicyFindingsRecord

from services.agent.tests.benches import policy

REF = PolicyRef("CiliumNetworkPolicy", "shop", "p")
KEY = "cilium/state/policyfindings/v1/default/node1"


class Bench:
    """Findings over policies in memory; `events` are the agent events, as documents."""

    def __init__(self):
        self.engine = PolicyEngine()
        self.refused = {}
        self.hub = MetadataHub()
        table = EndpointTable()
        self.publisher = Publisher()
        self.findings = Findings(
            self,
            table,
            Feed(self.hub, table),
            self.publisher,
            cluster="default",
            node="node1",
        )

    @property
    def events(self):
        events = [update.agent_event.event.unknown for update in self.hub._events]
        return [(event.type, json.loads(event.notification)) for event in events]


@pytest.fixture
def bench():
    return Bench()


async def test_a_finding_is_announced_counted_and_published(bench):
    bench.refused[REF] = RefusedPolicy({}, "spec: wrong")
    await bench.findings.reconcile()
    await bench.findings.reconcile()
    finding = PolicyFinding(*REF, "refused", "spec: wrong")
    assert bench.findings.present == {finding}
    ((kind, event),) = bench.events
    assert (kind, event["name"], event["over"]) == ("policy-not-enforced", "p", False)
    assert NOT_ENFORCED.value("refused") == 1
    record = PolicyFindingsRecord.from_json(bench.publisher._desired[KEY])
    assert record == PolicyFindingsRecord("default", "node1", (finding,))


async def test_a_rule_that_another_one_outranks_on_some_endpoint_is_a_finding(bench):
    web = LabelSet.parse(["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"])
    bench.engine.upsert_identity(300, web)
    bench.engine.upsert_endpoint(7, Subject(300, web))
    for name, rules, peers in (
        ("strong", {"http": [{"path": "/"}]}, {}),
        ("weak", {"kafka": [{"topic": "t"}]}, {"fromEntities": ["world"]}),
    ):
        port = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": rules}
        made = policy(**peers, toPorts=[port])
        made["metadata"]["name"] = name
        bench.engine.upsert_policy(made)
    bench.engine.flush()
    await bench.findings.reconcile()
    (finding,) = bench.findings.present
    assert (finding.name, finding.reason) == ("weak", "outranked")
    assert finding.message.startswith("endpoint 7: ")
    assert "strong" in finding.message


async def test_the_end_of_a_finding_is_announced_and_unpublished(bench):
    bench.refused[REF] = RefusedPolicy({}, "not enforced", unsupported=True)
    await bench.findings.reconcile()
    bench.refused.clear()
    await bench.findings.reconcile()
    assert [event["over"] for _, event in bench.events] == [False, True]
    assert KEY not in bench.publisher._desired


@pytest.mark.parametrize(
    "value", [b"{", b"[]", b"{}", b'{"Cluster":"c","Node":"n","Findings":[1]}']
)
def test_a_malformed_record_is_refused(value):
    with pytest.raises(InvalidError, match="policy findings"):
        PolicyFindingsRecord.from_json(value)
