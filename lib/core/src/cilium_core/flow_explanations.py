"""What can be said of one flow's verdict: from the flow itself, and with what policies say now.

Pure. hubble-server, which asks its agent, uses it, and so do relay and clients for flows of servers
that cannot explain any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cilium.flows.v1 import explain_pb2
from flow import flow_pb2

from cilium_core import drops
from cilium_core.drop_meanings import meaning_of, meaning_of_kernel
from cilium_core.flow_counts import counts_of
from cilium_core.flow_questions import sides_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium.agent.v1 import agent_pb2

_TYPE_DROP: Final = 1
_TYPE_VERDICT: Final = 5
_OF_POLICY: Final = frozenset(
    {int(drops.DropReason["POLICY_DENIED"]), int(drops.DropReason["POLICY_DENY"])}
)
_PASSED: Final = frozenset({flow_pb2.FORWARDED, flow_pb2.REDIRECTED})


def describe(flow: flow_pb2.Flow, node_name: str) -> explain_pb2.ExplainFlowResponse:
    """What the flow alone says."""
    answer = explain_pb2.ExplainFlowResponse(
        flow=flow, node_name=node_name, conclusion=conclusion(flow)
    )
    if (counts := counts_of(flow)) is not None:
        answer.counts.packets, answer.counts.bytes = counts
    if flow.verdict == flow_pb2.DROPPED and flow.drop_reason:
        meaning = meaning_of(flow.drop_reason)
        answer.drop.code = flow.drop_reason
        answer.drop.text = drops.text(flow.drop_reason)
        if kernel := kernel_reason(flow):
            meaning = meaning_of_kernel(kernel)
        answer.drop.meaning, answer.drop.remedy = meaning
    return answer


def kernel_reason(flow: flow_pb2.Flow) -> str:
    """Name of the kernel's own reason for a drop, empty where it was not the kernel."""
    if flow.drop_reason != int(drops.DropReason["KERNEL"]):
        return ""
    return flow.file.name.partition(":")[2]


def conclusion(flow: flow_pb2.Flow) -> str:
    """What happened to a flow, in one or two sentences."""
    where = _where(flow)
    deciding = ", ".join(_policies(flow))
    if flow.HasField("l7"):
        return _of_request(flow)
    match flow.verdict:
        case flow_pb2.DROPPED if flow.drop_reason in _OF_POLICY:
            why = f"because of {deciding}" if deciding else _no_rule(flow)
            return f"Policy dropped it{where}, {why}."
        case flow_pb2.DROPPED:
            at = f" ({flow.file.name}:{flow.file.line})" if flow.file.name else ""
            at = f" ({kernel})" if (kernel := kernel_reason(flow)) else at
            return f"It was dropped{where}: {drops.text(flow.drop_reason)}{at}."
        case flow_pb2.AUDIT:
            why = f" because of {deciding}" if deciding else ""
            return f"Policy would have dropped it{where}{why}, but only reports (audit mode)."
        case flow_pb2.REDIRECTED:
            why = f" because of {deciding}" if deciding else ""
            to = f" at port {flow.proxy_port}" if flow.proxy_port else ""
            return f"It passed{where} and went to a proxy{to}{why}, which decides about requests."
        case flow_pb2.FORWARDED if flow.event_type.type == _TYPE_VERDICT:
            why = f"because of {deciding}" if deciding else "as no policy is enforced there"
            return f"Policy let it pass{where}, {why}."
        case flow_pb2.FORWARDED:
            return f"It was forwarded{where}; nothing dropped it up to here."
        case flow_pb2.TRANSLATED:
            return "The address of a service was translated at the socket."
        case flow_pb2.TRACED:
            return "A service was looked for at the socket, before translation."
        case flow_pb2.ERROR:
            return f"Something failed{where} while it was handled."
        case _:
            return "There is no verdict."


def _where(flow: flow_pb2.Flow) -> str:
    """The end that the verdict is about; directions are those of connections, even of answers."""
    client, server = sides_of(flow)
    match flow.traffic_direction:
        case flow_pb2.EGRESS:
            return f" at {client.name} (egress)"
        case flow_pb2.INGRESS:
            return f" at {server.name} (ingress)"
        case _:
            return ""


def _no_rule(flow: flow_pb2.Flow) -> str:
    if flow.drop_reason == int(drops.DropReason["POLICY_DENY"]):
        return "because a rule denies it"
    return "as no rule allows it (default deny)"


def _of_request(flow: flow_pb2.Flow) -> str:
    said = f": {flow.Summary}" if flow.Summary else ""
    if flow.l7.type == flow_pb2.RESPONSE:
        return f"It is the answer to a request that went to a proxy{said}."
    match flow.verdict:
        case flow_pb2.DROPPED:
            return f"A proxy refused the request, as no rule about requests allows it{said}."
        case flow_pb2.ERROR:
            return f"A proxy could not serve the request{said}."
        case flow_pb2.AUDIT:
            return f"A proxy would have refused the request, but only reports it{said}."
        case _:
            return f"A proxy passed it on{said}."


def _policies(flow: flow_pb2.Flow) -> Iterator[str]:
    """The policies that decided when the flow was seen."""
    for field, action in (
        ("egress_denied_by", "denies"),
        ("ingress_denied_by", "denies"),
        ("egress_allowed_by", "allows"),
        ("ingress_allowed_by", "allows"),
    ):
        for policy in getattr(flow, field):
            name = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
            yield f"{policy.kind or 'policy'} {name} ({action})"


def changes(flow: flow_pb2.Flow, policy: agent_pb2.ExplainPolicyResponse) -> Iterator[str]:
    """What differs between the moment of a flow and what is true now, a sentence each."""
    client, server = sides_of(flow)
    for side, party in ((client, policy.source), (server, policy.destination)):
        had, has = set(side.endpoint.labels), set(party.labels)
        if side.endpoint.pod_name and had and has and had != has:
            gone, come = ", ".join(sorted(had - has)), ", ".join(sorted(has - had))
            parts = [
                *([f"it had {gone}"] if gone else []),
                *([f"it now has {come}"] if come else []),
            ]
            yield f"The labels of {side.name} have changed since: {'; '.join(parts)}."
    at_ends = {
        flow_pb2.EGRESS: ("egress", policy.egress),
        flow_pb2.INGRESS: ("ingress", policy.ingress),
    }
    if flow.traffic_direction not in at_ends:
        return
    name, end = at_ends[flow.traffic_direction]
    of_policy = flow.drop_reason in _OF_POLICY or flow.HasField("l7")
    now = f"The policies of now (revision {policy.revision})"
    why = "they, or what is known of the two ends, have changed since"
    if flow.verdict == flow_pb2.DROPPED and of_policy and end.allowed:
        yield f"{now} allow it at {name}: {why}."
    answered = flow.l7.type == flow_pb2.RESPONSE
    if flow.verdict in _PASSED and not end.allowed and not answered:
        yield f"{now} deny it at {name}: {why}."


def withhold(answer: explain_pb2.ExplainFlowResponse, namespaces: frozenset[str]) -> None:
    """Take out what a client may not see that is limited to namespaces: rules of other ones."""
    client, server = sides_of(answer.flow)
    for side, found in ((client, answer.policy.egress), (server, answer.policy.ingress)):
        if not answer.HasField("policy") or side.endpoint.namespace in namespaces:
            continue
        del found.rules[:], found.default_deny[:]
        for field in ("entry", "redirect", "kernel", "suggestion"):
            found.ClearField(field)
        answer.notes.append(
            f"The rules at {side.name} are not shown: its namespace is not one you may see."
        )
    if server.service.namespace not in namespaces:
        del answer.frontends[:]
    if answer.translation.service.partition("/")[0] not in namespaces:
        answer.ClearField("translation")
    if answer.choice.service.namespace not in namespaces:
        answer.ClearField("choice")
