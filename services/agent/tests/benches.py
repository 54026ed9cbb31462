"""A node's policy with everything around it in memory, for tests of what happens to policies."""

from cilium_agent.accepted import AcceptedObjects
from cilium_agent.endpoints.records import Attachment, Endpoint, EndpointID, Link
from cilium_agent.endpoints.states import State
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.feeds import Feed
from cilium_agent.ipcaches import IPCache
from cilium_agent.metadata import MetadataHub
from cilium_agent.policies import Policies
from cilium_core.identities import LocalIdentityAllocator
from cilium_core.labels import LabelSet
from cilium_core.policy import PolicyOptions, PolicyRef

WEB = LabelSet.parse(["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"])
REF = PolicyRef("CiliumNetworkPolicy", "shop", "p")


def policy(**rule):
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, "ingress": [rule]},
    }


FROM_CIDR = policy(fromCIDR=["192.0.2.0/24"])
FROM_ALL = policy(fromEntities=["all"])


class FakeProxies:
    """Gives every redirect a port, in rising order, unless told to give none."""

    def __init__(self, bench):
        self.bench = bench
        self.ports = {}
        self.closed = False
        self.released = []

    async def realise(self, redirects):
        self.bench.log.append(("proxies", len(redirects)))
        if self.closed:
            return {}
        for redirect in redirects:
            self.ports.setdefault(redirect, 10_000 + len(self.ports))
        return {redirect: self.ports[redirect] for redirect in redirects}

    def release(self, redirects):
        self.released.extend(redirects)


class Bench:
    """A node's policy with everything around it in memory; `log` has what the kernel was told."""

    def __init__(self, folder, lockdown=False):
        self.proxies = FakeProxies(self)
        self.log = []
        self.maps = {}
        self.rows = {}
        self.error = None
        self.overflows = {}
        self.table = EndpointTable()
        self.ipcache = IPCache(self.write_addresses)
        self.feed = Feed(MetadataHub(), self.table)
        self.allocator = LocalIdentityAllocator()
        self.policies = Policies(
            PolicyOptions(),
            table=self.table,
            ipcache=self.ipcache,
            write=self._write,
            proxies=self.proxies,
            lockdown=lockdown,
            feed=self.feed,
            allocator=self.allocator,
            accepted=AcceptedObjects(folder),
        )

    async def _write(self, changes, rows):
        return await self.write(changes, rows)

    async def write(self, changes, rows):
        if self.error:
            raise self.error
        for number, change in changes.items():
            held = {} if change.replace else dict(self.maps.get(number, {}))
            for key in change.remove:
                held.pop(key, None)
            self.maps[number] = {**held, **change.add}
            self.log.append(("map", {key.identity for key in change.add}))
        for row in rows:
            self.rows[row.id] = row
        return [self.overflows[number] for number in changes if number in self.overflows]

    async def write_addresses(self, upserts, deletes):
        self.log.extend(("address", prefix) for prefix in [*upserts, *deletes])

    def endpoint(self, number=1):
        endpoint = Endpoint(
            id=EndpointID(number),
            attachment=Attachment(f"c{number}", "/n", "eth0"),
            namespace="shop",
            pod_name=f"web-{number}",
            pod_uid="",
            ipv4=f"10.0.0.{number}",
            ipv6="",
            state=State.RESTORING,
            link=Link(f"lxc{number}", number, "02:00:00:00:00:01", "02:00:00:00:00:02"),
            labels=WEB,
            identity=300,
            created=True,
        )
        self.table.add(endpoint)
        self.policies.upsert_identity(300, WEB)
        return endpoint
