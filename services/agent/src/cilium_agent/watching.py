"""Which kinds of objects the agent watches, and who is told of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cilium_core.objects.checking import check
from cilium_core.policy import POLICY_KINDS, PolicyError, PolicyRef
from cilium_core.policy.groups import KIND as CIDR_GROUP_KIND
from cilium_core.policy.local_redirects import KIND as LOCAL_REDIRECT_KIND
from cilium_core.policy.services import SERVICE_KIND, SLICE_KIND
from cilium_core.resources.keys import kind_of

from cilium_agent.stores import Handler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cilium_agent.nodes import Nodes
    from cilium_agent.pods import PodTable
    from cilium_agent.policies import Policies
    from cilium_agent.proxies import Secrets
    from cilium_agent.services import Services

    Object = Mapping[str, Any]


def handlers(
    *,
    pods: PodTable,
    policies: Policies,
    nodes: Nodes,
    secrets: Secrets,
    services: Services,
) -> dict[str, Handler]:
    """The handler of every kind that is watched."""
    references = policies.references
    found = {name: _policy_handler(policies, name) for name in (*POLICY_KINDS, CIDR_GROUP_KIND)}
    found[LOCAL_REDIRECT_KIND] = _local_redirect_handler(policies, services)
    found["Pod"] = Handler(
        lambda item: _tell(item, pods.upsert_pod, services.pods.upsert),
        lambda item: _tell(item, lambda gone: pods.delete_pod(*_name(gone)), services.pods.delete),
        lambda item, _error: pods.doubt_pod(*_name(item)),
    )
    found["Namespace"] = _namespace_handler(pods, policies)
    found[SERVICE_KIND] = Handler(
        lambda item: _tell(item, references.upsert_service, services.upsert_service),
        lambda item: _tell(item, references.delete_service, services.delete_service),
    )
    found[SLICE_KIND] = Handler(
        lambda item: _tell(item, references.upsert_slice, services.upsert_slice),
        lambda item: _tell(item, references.delete_slice, services.delete_slice),
    )
    found["Node"] = Handler(nodes.upsert_object, nodes.delete_object)
    found["Secret"] = Handler(
        secrets.upsert, lambda item: secrets.delete(*_name(item)), synced=secrets.finish
    )
    return found


def _policy_handler(policies: Policies, kind: str) -> Handler:
    namespaced = kind_of(kind).namespaced

    def ref(item: Object) -> PolicyRef:
        namespace, name = _name(item)
        return PolicyRef(kind, namespace if namespaced else "", name)

    return Handler(
        lambda item: policies.upsert_object(ref(item), item),
        lambda item: policies.delete_object(ref(item)),
        lambda item, error: policies.doubt_object(ref(item), item, error),
    )


def _tell(item: Object, *listeners: Callable[[Object], None]) -> None:
    for listener in listeners:
        listener(item)


def _local_redirect_handler(policies: Policies, services: Services) -> Handler:
    def ref(item: Object) -> PolicyRef:
        return PolicyRef(LOCAL_REDIRECT_KIND, *_name(item))

    def upsert(item: Object) -> None:
        services.upsert_redirect_policy(item)
        try:
            check(item)
        except PolicyError as error:
            policies.disregard_object(ref(item), item, str(error))
        else:
            policies.forget_object(ref(item))

    def delete(item: Object) -> None:
        services.delete_redirect_policy(item)
        policies.forget_object(ref(item))

    return Handler(upsert, delete)


def _namespace_handler(pods: PodTable, policies: Policies) -> Handler:
    def upsert(item: Object) -> None:
        pods.upsert_namespace(item)
        policies.references.upsert_namespace(item)

    def delete(item: Object) -> None:
        pods.delete_namespace(_name(item)[1])
        policies.references.delete_namespace(item)

    return Handler(upsert, delete, lambda item, _error: pods.doubt_namespace(_name(item)[1]))


def _name(item: Object) -> tuple[str, str]:
    metadata = item.get("metadata", {})
    return str(metadata.get("namespace", "")), str(metadata.get("name", ""))
