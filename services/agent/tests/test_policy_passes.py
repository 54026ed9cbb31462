"""The order and the failures of policy passes, with the real engine and a recording kernel."""

import ipaddress

import pytest
from cilium_agent.accepted import AcceptedObjects
from cilium_agent.datapath import NO_PORT, PolicyOverflow
from cilium_agent.endpoints import rows
from cilium_agent.endpoints.states import State
from cilium_agent.ipcaches import Entry, Source
from cilium_core.labels import Label, LabelSet
from cilium_core.policy import PolicyRef

from services.agent.tests.benches import FROM_ALL, FROM_CIDR, REF, Bench, policy


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "policies")


async def restarted(bench, tmp_path):
    """The bench of an agent that starts where another one ended."""
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, FROM_CIDR)
    await bench.policies.reconcile()
    return Bench(tmp_path / "policies")


BROKEN = policy(fromNobody=["knows"])


async def test_a_restarted_agent_enforces_the_accepted_version_of_a_refused_policy(bench, tmp_path):
    again = await restarted(bench, tmp_path)
    again.policies.upsert_object(REF, BROKEN)
    await again.policies.reconcile()
    await again.policies.build(again.endpoint())
    await again.policies.finish_restoring()
    assert again.rows[1].flags == bench.rows[1].flags != 0
    assert "fromNobody" in again.policies.refused[REF].error
    third = Bench(tmp_path / "policies")
    third.policies.upsert_object(REF, BROKEN)
    await third.policies.reconcile()
    await third.policies.build(third.endpoint())
    assert third.rows[1].flags == bench.rows[1].flags


async def test_a_restarted_agent_enforces_the_accepted_version_of_an_unreadable_policy(
    bench, tmp_path
):
    again = await restarted(bench, tmp_path)
    again.policies.doubt_object(REF, {}, "no JSON")
    await again.policies.reconcile()
    await again.policies.build(again.endpoint())
    assert again.rows[1].flags == bench.rows[1].flags != 0
    assert again.policies.refused[REF].error == "no JSON"


async def test_a_policy_deleted_while_the_agent_was_away_does_not_come_back(bench, tmp_path):
    again = await restarted(bench, tmp_path)
    await again.policies.reconcile()
    await again.policies.build(again.endpoint())
    await again.policies.finish_restoring()
    assert again.rows[1].flags == 0
    assert list((tmp_path / "policies").iterdir()) == []


async def test_a_newer_version_replaces_the_one_of_the_earlier_run(bench, tmp_path):
    again = await restarted(bench, tmp_path)
    again.policies.upsert_object(REF, FROM_ALL)
    await again.policies.reconcile()
    again.policies.upsert_object(REF, BROKEN)
    await again.policies.reconcile()
    assert again.ipcache.get("192.0.2.0/24") is None


async def test_a_damaged_file_of_an_accepted_policy_is_left_out(bench, tmp_path):
    await restarted(bench, tmp_path)
    (kept,) = (tmp_path / "policies").iterdir()
    kept.write_text("{")
    assert AcceptedObjects(tmp_path / "policies").load() == {}


async def test_a_built_endpoint_is_ready_and_its_row_open(bench):
    endpoint = bench.endpoint()
    await bench.policies.build(endpoint)
    assert (endpoint.state, bench.rows[1].flags) == (State.READY, 0)


async def test_maps_know_a_new_prefix_before_the_address_table_does(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, FROM_ALL)
    await bench.policies.reconcile()
    bench.log.clear()
    bench.policies.upsert_object(REF, FROM_CIDR)
    await bench.policies.reconcile()
    number = bench.ipcache.get("192.0.2.0/24").identity
    address = bench.log.index(("address", "192.0.2.0/24"))
    allowed = next(i for i, item in enumerate(bench.log) if item[0] == "map" and number in item[1])
    # Under the old rules every peer was allowed by one entry, so no map had to learn the number.
    assert address < allowed


async def test_a_prefix_out_of_use_leaves_the_address_table_before_the_maps(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, FROM_CIDR)
    await bench.policies.reconcile()
    bench.policies.delete_object(REF)
    await bench.policies.reconcile()
    assert bench.ipcache.get("192.0.2.0/24") is None
    assert bench.rows[1].flags == 0


async def test_an_address_waits_until_its_identity_is_known(bench):
    bench.policies.upsert_address("10.9.0.1/32", Source.KVSTORE, Entry(77_777))
    await bench.policies.reconcile()
    before = bench.ipcache.get("10.9.0.1")
    bench.policies.upsert_identity(77_777, LabelSet.parse(["k8s:app=other"]))
    await bench.policies.reconcile()
    assert (before, bench.ipcache.get("10.9.0.1").identity) == (None, 77_777)


def office(*cidrs):
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": "office"},
        "spec": {"externalCIDRs": list(cidrs)},
    }


OFFICE = PolicyRef("CiliumCIDRGroup", "", "office")
FROM_OFFICE = policy(fromCIDRSet=[{"cidrGroupRef": "office"}])


async def test_a_group_that_comes_after_its_policy_opens_what_it_lists(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, FROM_OFFICE)
    await bench.policies.reconcile()
    closed = {key.identity for key in bench.maps[1] if key.direction == 1}
    bench.log.clear()
    bench.policies.upsert_object(OFFICE, office("192.0.2.0/24"))
    await bench.policies.reconcile()
    number = bench.ipcache.get("192.0.2.0/24").identity
    # The address has its identity while the rules are the old ones still.
    assert bench.log == [("address", "192.0.2.0/24"), ("map", {number})]
    assert {key.identity for key in bench.maps[1] if key.direction == 1} - closed == {number}


async def test_a_group_and_its_policy_may_come_together_in_any_order(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, FROM_OFFICE)
    bench.policies.upsert_object(OFFICE, office("192.0.2.0/24"))
    await bench.policies.reconcile()
    number = bench.ipcache.get("192.0.2.0/24").identity
    assert number in {key.identity for key in bench.maps[1]}


async def test_a_deleted_group_closes_and_lets_go_of_its_prefixes(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, FROM_OFFICE)
    bench.policies.upsert_object(OFFICE, office("192.0.2.0/24"))
    await bench.policies.reconcile()
    number = bench.ipcache.get("192.0.2.0/24").identity
    bench.policies.delete_object(OFFICE)
    await bench.policies.reconcile()
    assert number not in {key.identity for key in bench.maps[1]}
    assert bench.ipcache.get("192.0.2.0/24") is None


async def test_a_refused_group_stays_as_it_was_and_says_so(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, FROM_OFFICE)
    bench.policies.upsert_object(OFFICE, office("192.0.2.0/24"))
    await bench.policies.reconcile()
    held = dict(bench.maps[1])
    bench.policies.upsert_object(OFFICE, {**office(), "spec": {"cidrs": []}})
    await bench.policies.reconcile()
    assert held == bench.maps[1]
    assert "externalCIDRs" in bench.policies.refused[OFFICE].error


async def test_a_refused_version_leaves_the_earlier_one_in_force(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, FROM_CIDR)
    await bench.policies.reconcile()
    held, revision = dict(bench.maps[1]), bench.policies.engine.revision
    bench.policies.upsert_object(REF, policy(fromNowhere=[]))
    await bench.policies.reconcile()
    assert (held, revision) == (bench.maps[1], bench.policies.engine.revision)
    assert "fromNowhere" in bench.policies.refused[REF].error


async def test_a_corrected_version_clears_the_refusal(bench):
    bench.policies.upsert_object(REF, policy(fromNowhere=[]))
    await bench.policies.reconcile()
    bench.policies.upsert_object(REF, FROM_ALL)
    await bench.policies.reconcile()
    assert bench.policies.refused == {}


async def test_a_version_that_is_no_object_leaves_the_earlier_one_in_force(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, FROM_ALL)
    await bench.policies.reconcile()
    before = dict(bench.maps[1])
    bench.policies.doubt_object(REF, {"kind": REF.kind}, "not JSON")
    await bench.policies.reconcile()
    assert (bench.maps[1], bench.policies.refused[REF].error) == (before, "not JSON")
    bench.policies.delete_object(REF)
    await bench.policies.reconcile()
    assert not bench.policies.refused


async def test_a_failed_write_is_made_up_for_in_full(bench):
    endpoint = bench.endpoint()
    await bench.policies.build(endpoint)
    bench.error = OSError("no memory")
    bench.policies.upsert_object(REF, FROM_CIDR)
    with pytest.raises(OSError, match="no memory"):
        await bench.policies.reconcile()
    assert "no memory" in endpoint.error
    bench.error = None
    await bench.policies.reconcile()
    wanted = bench.policies.realized(endpoint)
    assert (wanted.entries, "", State.READY) == (bench.maps[1], endpoint.error, endpoint.state)
    assert bench.rows[1].flags


async def overflown(bench):
    first, second = bench.endpoint(1), bench.endpoint(2)
    await bench.policies.build_many([first, second])
    bench.policies.upsert_object(REF, FROM_CIDR)
    await bench.policies.reconcile()
    cookies = frozenset(entry.cookie for entry in bench.maps[1].values())
    bench.overflows[1] = PolicyOverflow(1, 20_000, 16_384, cookies, closed=False)
    bench.policies.upsert_object(REF, FROM_ALL)
    await bench.policies.reconcile()
    return first, second


async def test_an_overflow_names_endpoint_and_policies_and_holds_up_no_other(bench):
    first, second = await overflown(bench)
    assert "20000" in first.error
    assert "CiliumNetworkPolicy shop/p" in first.error
    assert first.overflown == {REF}
    assert first.state is State.WAITING_TO_REGENERATE
    assert ("", bench.policies.engine.revision) == (second.error, second.policy_revision)
    assert first.policy_revision < second.policy_revision


async def test_an_overflow_ends_when_a_policy_fits_that_is_written_in_full(bench):
    first, _ = await overflown(bench)
    bench.maps[1] = {}  # the part that was in place
    bench.overflows.clear()
    bench.policies.upsert_object(REF, FROM_CIDR)
    await bench.policies.reconcile()
    assert bench.maps[1] == bench.policies.realized(first).entries
    assert (first.error, first.state) == ("", State.READY)


async def test_an_endpoint_drops_everything_while_its_policy_does_not_fit(tmp_path):
    bench = Bench(tmp_path, lockdown=True)
    await overflown(bench)
    assert (bench.rows[1].flags, bench.rows[2].flags == rows.NOT_READY) == (rows.NOT_READY, False)
    bench.overflows.clear()
    bench.policies.upsert_object(REF, FROM_CIDR)
    await bench.policies.reconcile()
    assert bench.rows[1].flags != rows.NOT_READY


async def test_an_overflow_stays_known_while_nothing_changes(bench):
    first, second = await overflown(bench)
    bench.log.clear()
    bench.policies.upsert_identity(400, LabelSet.parse(["k8s:app=unrelated"]))
    await bench.policies.reconcile()
    assert first.policy_revision < second.policy_revision
    await bench.policies.build_many([first])
    assert first.error


ONLY_GET = policy(
    toPorts=[{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}]
)


async def test_a_redirect_has_its_port_before_the_map_names_it(bench):
    await bench.policies.build(bench.endpoint())
    bench.log.clear()
    bench.policies.upsert_object(REF, ONLY_GET)
    await bench.policies.reconcile()
    assert [name for name, _ in bench.log if name != "address"] == ["proxies", "map"]
    (port,) = bench.proxies.ports.values()
    assert {entry.redirect for entry in bench.maps[1].values()} >= {port}
    assert all(entry.redirect in (0, port) for entry in bench.maps[1].values())


async def test_a_redirect_that_no_proxy_takes_is_written_without_a_port(bench):
    await bench.policies.build(bench.endpoint())
    bench.proxies.closed = True
    bench.policies.upsert_object(REF, ONLY_GET)
    await bench.policies.reconcile()
    assert NO_PORT in {entry.redirect for entry in bench.maps[1].values()}


async def test_entries_follow_a_redirect_to_its_new_port(bench):
    await bench.policies.build(bench.endpoint())
    bench.proxies.closed = True
    bench.policies.upsert_object(REF, ONLY_GET)
    await bench.policies.reconcile()
    bench.proxies.closed = False
    identity = bench.policies.engine
    redirects = [identity.redirects.get(number) for number in identity.redirects_in_use()]
    bench.policies.redirects_moved(redirects)
    await bench.policies.reconcile()
    assert {10_000} <= {entry.redirect for entry in bench.maps[1].values()} <= {0, 10_000}


async def test_proxies_are_asked_once_for_a_redirect(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, ONLY_GET)
    await bench.policies.reconcile()
    bench.log.clear()
    bench.policies.upsert_identity(400, LabelSet.parse([*DB, "k8s:app=new"]))
    await bench.policies.reconcile()
    assert "proxies" not in {name for name, _ in bench.log}
    redirects = [entry.redirect for entry in bench.maps[1].values() if entry.redirect]
    assert set(redirects) == {10_000}


async def test_a_redirect_that_moves_takes_its_entries_along(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, ONLY_GET)
    await bench.policies.reconcile()
    bench.proxies.ports = dict.fromkeys(bench.proxies.ports, 10_009)
    bench.policies.redirects_moved(list(bench.proxies.ports))
    await bench.policies.reconcile()
    redirects = [entry.redirect for entry in bench.maps[1].values() if entry.redirect]
    assert set(redirects) == {10_009}


async def test_a_redirect_is_released_once_no_policy_names_it(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, ONLY_GET)
    await bench.policies.reconcile()
    await bench.policies.sweep_redirects()
    assert bench.proxies.released == []
    bench.policies.upsert_object(REF, FROM_ALL)
    await bench.policies.reconcile()
    await bench.policies.sweep_redirects()
    assert bench.proxies.released == list(bench.proxies.ports)


async def test_contradicting_policies_leave_the_old_one_in_force_and_are_named(bench):
    endpoint = bench.endpoint()
    await bench.policies.build(endpoint)
    bench.policies.upsert_object(REF, ONLY_GET)
    await bench.policies.reconcile()
    held = dict(bench.maps[1])
    kafka = [
        {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"kafka": [{"role": "produce"}]}}
    ]
    other = policy(toPorts=kafka)
    other["metadata"] = {**other["metadata"], "name": "q"}
    bench.policies.upsert_object(REF._replace(name="q"), other)
    await bench.policies.reconcile()
    assert held == bench.maps[1]
    (conflict,) = endpoint.conflicts
    assert {ref.name for ref in conflict.policies} == {"p", "q"}
    bench.policies.delete_object(REF._replace(name="q"))
    await bench.policies.reconcile()
    assert endpoint.conflicts == ()


async def test_nothing_is_written_for_an_endpoint_that_is_being_removed(bench):
    endpoint = bench.endpoint()
    await bench.policies.build(endpoint)
    held = dict(bench.maps[1])
    endpoint.enter(State.DISCONNECTING, "deleted")
    bench.policies.upsert_object(REF, FROM_CIDR)
    bench.policies.forget(endpoint.id)
    await bench.policies.reconcile()
    assert held == bench.maps[1]


async def test_a_new_endpoint_without_a_policy_stays_closed(bench):
    endpoint = bench.endpoint()
    bench.error = OSError("no memory")
    with pytest.raises(OSError, match="no memory"):
        await bench.policies.build(endpoint)
    assert bench.rows == {}


async def test_waiting_for_a_revision_ends_when_every_endpoint_has_it(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, FROM_CIDR)
    before = bench.policies.enforced_revision()
    await bench.policies.reconcile()
    assert before < await bench.policies.wait_for(bench.policies.engine.revision)


async def test_restored_prefixes_keep_their_numbers(tmp_path):
    labels = LabelSet.parse(["cidr:192.0.2.0/24", "reserved:world-ipv4"])
    bench = Bench(tmp_path)
    bench.allocator.restore({0x01000042: labels})
    bench.policies.restore_identities({0x01000042: labels})
    bench.ipcache.restore({"192.0.2.0/24": Entry(0x01000042), "198.51.100.0/24": Entry(0x01000043)})
    bench.policies.upsert_object(REF, FROM_CIDR)
    await bench.policies.reconcile()
    await bench.policies.finish_restoring()
    assert bench.ipcache.get("192.0.2.0/24").identity == 0x01000042
    assert bench.ipcache.get("198.51.100.0/24") is None


TO_SERVICE = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNetworkPolicy",
    "metadata": {"name": "p", "namespace": "shop"},
    "spec": {
        "endpointSelector": {"matchLabels": {"app": "web"}},
        "egress": [
            {"toServices": [{"k8sService": {"serviceName": "db", "namespace": "shop"}}]},
        ],
    },
}


def service(**spec):
    return {"metadata": {"name": "db", "namespace": "shop"}, "spec": spec}


def backends(*addresses):
    return {
        "metadata": {
            "name": "db-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "db"},
        },
        "endpoints": [{"addresses": list(addresses)}],
    }


async def test_a_policy_follows_the_backends_of_a_service_outside_the_cluster(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(REF, TO_SERVICE)
    await bench.policies.reconcile()
    bench.policies.references.upsert_service(service())
    bench.policies.references.upsert_slice(backends("192.0.2.7"))
    await bench.policies.reconcile()
    number = bench.ipcache.get("192.0.2.7/32").identity
    assert number in {key.identity for key in bench.maps[1]}
    bench.policies.references.delete_slice(backends())
    await bench.policies.reconcile()
    assert number not in {key.identity for key in bench.maps[1]}
    assert bench.ipcache.get("192.0.2.7/32") is None


async def test_a_policy_follows_the_selector_of_a_service(bench):
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_identity(301, LabelSet.parse([*DB, "k8s:app=db"]))
    bench.policies.upsert_object(REF, TO_SERVICE)
    bench.policies.references.upsert_service(service(selector={"app": "db"}))
    await bench.policies.reconcile()
    assert 301 in {key.identity for key in bench.maps[1]}
    bench.policies.references.delete_service(service())
    await bench.policies.reconcile()
    assert 301 not in {key.identity for key in bench.maps[1]}


DB = ["k8s:io.kubernetes.pod.namespace=shop", "k8s:io.cilium.k8s.policy.cluster=default"]


async def test_policies_of_an_audited_namespace_refuse_nothing(bench):
    await bench.policies.build(bench.endpoint())
    deny = policy(fromCIDR=["192.0.2.0/24"])
    deny["spec"]["ingressDeny"] = deny["spec"].pop("ingress")
    bench.policies.upsert_object(REF, deny)
    audited = {"policy.cilium.io/audit-mode": "true"}
    shop = {"metadata": {"name": "shop", "annotations": audited}}
    bench.policies.references.upsert_namespace(shop)
    await bench.policies.reconcile()
    assert all(entry.audit for entry in bench.maps[1].values() if entry.deny)
    bench.policies.references.delete_namespace(shop)
    await bench.policies.reconcile()
    assert any(entry.deny and not entry.audit for entry in bench.maps[1].values())


async def test_proxies_of_an_endpoint_or_a_node_in_audit_mode_refuse_nothing(bench):
    endpoint = bench.endpoint()
    bench.policies.upsert_object(REF, ONLY_GET)
    await bench.policies.reconcile()
    await bench.policies.build(endpoint)

    def audited():
        return {redirect.audit for redirect in bench.proxies.ports if redirect in in_force()}

    def in_force():
        engine = bench.policies.engine
        return {engine.redirects.get(number) for number in engine.redirects_in_use()}

    assert audited() == {False}
    await bench.policies.set_audit(audit=True)
    assert audited() == {True}
    await bench.policies.set_audit(audit=False)
    assert audited() == {False}
    endpoint.audit = True
    await bench.policies.build(endpoint)
    assert audited() == {True}


async def test_names_reach_maps_before_the_address_table(bench):
    await bench.policies.build(bench.endpoint())
    names = policy()
    names["spec"] = {
        "endpointSelector": {},
        "egress": [{"toFQDNs": [{"matchName": "good.test"}]}],
    }
    bench.policies.upsert_object(REF, names)
    await bench.policies.reconcile()
    bench.log.clear()
    address = ipaddress.ip_address("192.0.2.8")
    await bench.policies.apply_names({address: frozenset({Label("fqdn", "good.test", "")})})
    number = bench.ipcache.get("192.0.2.8/32").identity
    assert bench.log == [("map", {number}), ("address", "192.0.2.8/32")]
    await bench.policies.apply_names({address: frozenset()})
    assert bench.ipcache.get("192.0.2.8/32") is None
    assert number not in {key.identity for key in bench.maps[1]}


async def test_names_that_did_not_reach_the_kernel_are_made_up_for(bench):
    await bench.policies.build(bench.endpoint())
    names = policy()
    names["spec"] = {
        "endpointSelector": {},
        "egress": [{"toFQDNs": [{"matchName": "good.test"}]}],
    }
    bench.policies.upsert_object(REF, names)
    await bench.policies.reconcile()
    address = ipaddress.ip_address("192.0.2.8")
    labels = frozenset({Label("fqdn", "good.test", "")})
    bench.error = OSError("no memory")
    with pytest.raises(OSError, match="no memory"):
        await bench.policies.apply_names({address: labels})
    assert bench.ipcache.get("192.0.2.8/32") is None
    bench.error = None
    await bench.policies.apply_names({address: labels})
    number = bench.ipcache.get("192.0.2.8/32").identity
    assert number in {key.identity for key in bench.maps[1]}


async def test_a_new_status_of_a_policy_is_no_new_policy(tmp_path):
    bench = Bench(tmp_path)
    bench.policies.upsert_object(REF, FROM_ALL)
    await bench.policies.reconcile()
    noted = []
    bench.policies._objects._change_policy = lambda ref, policy: noted.append(ref)

    metadata = {**FROM_ALL["metadata"], "resourceVersion": "7"}
    judged = {**FROM_ALL, "metadata": metadata, "status": {"conditions": [{"type": "Valid"}]}}
    bench.policies.upsert_object(REF, judged)
    await bench.policies.reconcile()
    assert noted == []

    bench.policies.upsert_object(REF, {**FROM_CIDR, "status": judged["status"]})
    await bench.policies.reconcile()
    assert noted == [REF]


GUARD = {
    "apiVersion": "policy.networking.k8s.io/v1alpha1",
    "kind": "AdminNetworkPolicy",
    "metadata": {"name": "guard"},
    "spec": {
        "priority": 1,
        "subject": {"namespaces": {}},
        "egress": [{"action": "Deny", "to": [{"networks": ["10.9.0.0/16"]}]}],
    },
}


async def test_a_network_denies_a_pod_before_its_address_is_known_to_the_kernel(tmp_path):
    bench = Bench(tmp_path)
    await bench.policies.build(bench.endpoint())
    bench.policies.upsert_object(PolicyRef("AdminNetworkPolicy", "", "guard"), GUARD)
    await bench.policies.reconcile()
    labels = LabelSet.parse(["k8s:app=db", "k8s:io.kubernetes.pod.namespace=shop"])
    bench.policies.upsert_identity(5000, labels)
    await bench.policies.reconcile()
    bench.log.clear()

    entry = Entry(identity=5000, host_ip="172.30.1.2")
    bench.policies.upsert_address("10.9.0.7/32", Source.KVSTORE, entry)
    await bench.policies.reconcile()

    denied = bench.log.index(("map", {5000}))
    assert denied < bench.log.index(("address", "10.9.0.7/32"))


async def test_a_network_of_pods_does_not_mean_the_nodes_addresses_among_them(tmp_path):
    bench = Bench(tmp_path)
    await bench.policies.build(bench.endpoint())
    node, other = 6, "172.30.1.2"
    bench.policies.upsert_address("10.9.0.0/24", Source.KVSTORE, Entry(3, other, other))
    bench.policies.upsert_address("10.9.0.1/32", Source.KVSTORE, Entry(node, other, other))
    bench.policies.upsert_address(f"{other}/32", Source.KVSTORE, Entry(node, None, other))
    bench.policies.upsert_object(PolicyRef("AdminNetworkPolicy", "", "guard"), GUARD)
    await bench.policies.reconcile()

    assert not any(key.identity == node for key in bench.maps[1])


async def test_a_restored_identity_that_a_node_still_has_keeps_its_meaning(bench):
    nodes = {33554433: LabelSet.parse(["reserved:remote-node", "cidr:172.30.0.12/32"])}
    gone = {33554434: LabelSet.parse(["reserved:remote-node", "cidr:172.30.0.13/32"])}
    bench.policies.restore_identities({**nodes, **gone})
    bench.policies.upsert_address("172.30.0.12/32", Source.KVSTORE, Entry(33554433))
    await bench.policies.reconcile()
    await bench.policies.finish_restoring()
    known = bench.policies.engine.selectors.identities
    assert known[33554433] == nodes[33554433]
    assert 33554434 not in known
