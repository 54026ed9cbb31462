"""Turns what the agent's parts report into metadata for hubble-server and agent events.

Each function listens to one part; the hub keeps order, drops repetitions and serves the watchers.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from typing import TYPE_CHECKING

from cilium.metadata.v1 import metadata_pb2
from flow import flow_pb2
from google.protobuf import wrappers_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cilium_core.identities import Identity
    from cilium_core.policy import Origin
    from cilium_core.records import PolicyFinding
    from cilium_core.services.models import Frontend, L4Address

    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.ipcaches import Change
    from cilium_agent.metadata import MetadataHub

EventType = flow_pb2.AgentEventType
Update = metadata_pb2.Update


class Feed:
    """Publishes to a hub."""

    def __init__(self, hub: MetadataHub, table: EndpointTable) -> None:
        self._hub = hub
        self._table = table
        self._created: set[int] = set()

    def started(self) -> None:
        """The agent runs."""
        event = flow_pb2.AgentEvent(type=EventType.AGENT_STARTED)
        event.agent_start.time.FromNanoseconds(time.time_ns())
        self._hub.announce(event)

    def local_node(self, name: str, cluster: str, addresses: Iterable[str]) -> None:
        """Which node this is."""
        node = metadata_pb2.LocalNode(name=name, cluster=cluster, addresses=addresses)
        self._hub.publish([Update(local_node=node)])

    def node(self, name: str, cluster: str, addresses: Iterable[str]) -> None:
        """A node of the cluster, this one included."""
        node = metadata_pb2.Node(name=name, cluster=cluster, addresses=addresses)
        self._hub.publish([Update(node=node)])

    def node_deleted(self, name: str, cluster: str) -> None:
        """A node left."""
        self._hub.publish([Update(node_deleted=f"{cluster}/{name}")])

    def interfaces(self) -> None:
        """The devices of the node as they are now."""
        self._hub.publish(
            Update(interface=metadata_pb2.Interface(index=index, name=name))
            for index, name in socket.if_nameindex()
        )

    def endpoint(self, endpoint: Endpoint) -> None:
        """An endpoint changed or went."""
        if endpoint in self._table and endpoint.alive:
            self._upserted(endpoint)
        else:
            self._deleted(endpoint)

    def regenerated(self, endpoint: Endpoint, error: str) -> None:
        """An endpoint's policy was installed, or could not be."""
        kind = (
            EventType.ENDPOINT_REGENERATE_FAILURE
            if error
            else EventType.ENDPOINT_REGENERATE_SUCCESS
        )
        notification = flow_pb2.EndpointRegenNotification(
            id=endpoint.id, labels=endpoint.labels.texts(), error=error
        )
        self._hub.announce(flow_pb2.AgentEvent(type=kind, endpoint_regenerate=notification))

    def identities(self, upserts: Iterable[Identity], deletes: Iterable[int] = ()) -> None:
        """Identities came and went."""
        self._hub.publish(
            Update(identity=metadata_pb2.Identity(id=item.id, labels=item.labels.texts()))
            for item in upserts
        )
        self._hub.publish(Update(identity_deleted=number) for number in deletes)

    def addresses(self, changes: Iterable[Change]) -> None:
        """Addresses changed their identity; the kernel has it."""
        for change in changes:
            self._hub.publish([_ip_update(change)])
            if _peer(change.old) != _peer(change.new):
                self._hub.announce(_ip_event(change))

    def rules(self, cookies: Mapping[int, Iterable[Origin]]) -> None:
        """What cookies of verdicts stand for."""
        self._hub.publish(
            Update(rules=_rules(cookie, origins)) for cookie, origins in cookies.items()
        )

    def rules_deleted(self, cookies: Iterable[int]) -> None:
        """Cookies that no verdict can carry any more."""
        self._hub.publish(Update(rules_deleted=cookie) for cookie in cookies)

    def services(self, upserts: Iterable[Frontend], deletes: Iterable[L4Address] = ()) -> None:
        """Frontends came, changed or went; a deleted one is gone for whoever asks.

        An address as a whole and the NodePorts on no address in particular are nobody's name.
        """
        self._hub.publish(
            Update(
                service=metadata_pb2.Service(
                    frontend=_frontend(one.at),
                    namespace=one.service.namespace,
                    name=one.service.name,
                )
            )
            for one in upserts
            if _has_name(one.at)
        )
        self._hub.publish(Update(frontend_deleted=_frontend(at)) for at in deletes if _has_name(at))

    def finding(self, finding: PolicyFinding, *, over: bool) -> None:
        """A policy is not enforced as written, or is again."""
        notification = {**dataclasses.asdict(finding), "over": over}
        event = flow_pb2.AgentEvent(type=EventType.AGENT_EVENT_UNKNOWN)
        event.unknown.type = "policy-not-enforced"
        event.unknown.notification = json.dumps(notification)
        self._hub.announce(event)

    def l7(self, record: metadata_pb2.L7Record) -> None:
        """A proxy saw a request or an answer."""
        self._hub.publish([Update(l7=record)])

    def policy(self, labels: Iterable[str], revision: int, rules: int, *, deleted: bool) -> None:
        """A policy object was taken up or removed."""
        notification = flow_pb2.PolicyUpdateNotification(
            labels=labels, revision=revision, rule_count=rules
        )
        kind = EventType.POLICY_DELETED if deleted else EventType.POLICY_UPDATED
        self._hub.announce(flow_pb2.AgentEvent(type=kind, policy_update=notification))

    def _upserted(self, endpoint: Endpoint) -> None:
        message = metadata_pb2.Endpoint(
            id=endpoint.id,
            identity=endpoint.identity,
            namespace=endpoint.namespace,
            pod_name=endpoint.pod_name,
            ips=endpoint.addresses,
            workloads=[
                flow_pb2.Workload(kind=kind, name=name) for kind, name in endpoint.workloads
            ],
        )
        updates = [Update(endpoint=message)]
        if endpoint.link is not None:
            interface = metadata_pb2.Interface(
                index=endpoint.link.ifindex, name=endpoint.link.interface
            )
            updates.append(Update(interface=interface))
        self._hub.publish(updates)
        if endpoint.created and endpoint.id not in self._created:
            self._created.add(endpoint.id)
            self._hub.announce(_endpoint_event(EventType.ENDPOINT_CREATED, endpoint))

    def _deleted(self, endpoint: Endpoint) -> None:
        updates = [Update(endpoint_deleted=endpoint.id)]
        if endpoint.link is not None:
            updates.append(Update(interface_deleted=endpoint.link.ifindex))
        self._hub.publish(updates)
        if endpoint.id in self._created:
            self._created.discard(endpoint.id)
            self._hub.announce(_endpoint_event(EventType.ENDPOINT_DELETED, endpoint))


def _frontend(at: L4Address) -> metadata_pb2.Frontend:
    return metadata_pb2.Frontend(ip=str(at.address), port=at.port, protocol=int(at.protocol))


def _has_name(at: L4Address) -> bool:
    return bool(at.port) and not at.address.is_unspecified


def _endpoint_event(kind: flow_pb2.AgentEventType, endpoint: Endpoint) -> flow_pb2.AgentEvent:
    return flow_pb2.AgentEvent(
        type=kind,
        endpoint_update=flow_pb2.EndpointUpdateNotification(
            id=endpoint.id,
            labels=endpoint.labels.texts(),
            pod_name=endpoint.pod_name,
            namespace=endpoint.namespace,
        ),
    )


def _rules(cookie: int, origins: Iterable[Origin]) -> metadata_pb2.Rules:
    ordered = sorted(origins, key=lambda o: (o.kind, o.namespace, o.name, o.labels))
    policies = [
        flow_pb2.Policy(
            name=origin.name,
            namespace=origin.namespace,
            labels=origin.labels,
            revision=origin.revision,
            kind=origin.kind,
        )
        for origin in ordered
    ]
    log = [origin.log for origin in ordered if origin.log]
    return metadata_pb2.Rules(cookie=cookie, policies=policies, log=log)


def _peer(entry: object) -> tuple[object, ...] | None:
    """What an event about an address shows of it; None when it has no identity."""
    if entry is None:
        return None
    return tuple(getattr(entry, name) for name in ("identity", "host_ip", "namespace", "pod_name"))


def _ip_update(change: Change) -> metadata_pb2.Update:
    if change.new is None:
        return Update(ip_deleted=change.prefix)
    entry = metadata_pb2.IPEntry(
        prefix=change.prefix,
        identity=change.new.identity,
        namespace=change.new.namespace,
        pod_name=change.new.pod_name,
    )
    return Update(ip=entry)


def _ip_event(change: Change) -> flow_pb2.AgentEvent:
    now = change.new or change.old
    notification = flow_pb2.IPCacheNotification(cidr=change.prefix)
    if now is not None:
        notification.identity = now.identity
        notification.host_ip = now.host_ip
        notification.namespace = now.namespace
        notification.pod_name = now.pod_name
    if change.old is not None and change.new is not None:
        notification.old_identity.CopyFrom(wrappers_pb2.UInt32Value(value=change.old.identity))
        notification.old_host_ip = change.old.host_ip
    kind = EventType.IPCACHE_DELETED if change.new is None else EventType.IPCACHE_UPSERTED
    return flow_pb2.AgentEvent(type=kind, ipcache_update=notification)
