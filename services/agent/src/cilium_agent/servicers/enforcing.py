"""Calls about policies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cilium.agent.v1 import agent_pb2

from cilium_agent.hostendpoint import host_labels
from cilium_agent.servicers.calls import Calls
from cilium_agent.servicers.explaining import Explainer
from cilium_agent.servicers.verifying import Verifier

if TYPE_CHECKING:
    from cilium_core.labels import LabelSet
    from cilium_core.policy import PolicyRef

    from cilium_agent.servicers.calls import Context


class PolicyCalls(Calls):
    """Shows, awaits and explains policies."""

    async def GetPolicy(  # noqa: N802
        self, request: agent_pb2.GetPolicyRequest, context: Context
    ) -> agent_pb2.GetPolicyResponse:
        """Policies in force, and those that are not as written with why."""
        del request, context
        policies = self._agent.policies
        shown: dict[PolicyRef, agent_pb2.Policy] = {
            policy.ref: _policy(policy.ref, policy.source, "")
            for policy in policies.engine.repository
        }
        for ref, refused in policies.refused.items():
            shown[ref] = _policy(ref, refused.object, refused.error)
        return agent_pb2.GetPolicyResponse(
            policies=[shown[ref] for ref in sorted(shown)], revision=policies.engine.revision
        )

    async def WaitForPolicy(  # noqa: N802
        self, request: agent_pb2.WaitForPolicyRequest, context: Context
    ) -> agent_pb2.WaitForPolicyResponse:
        """Wait until every endpoint enforces a revision."""
        del context
        revision = await self._agent.policies.wait_for(request.revision)
        return agent_pb2.WaitForPolicyResponse(revision=revision)

    async def ExplainPolicy(  # noqa: N802
        self, request: agent_pb2.ExplainPolicyRequest, context: Context
    ) -> agent_pb2.ExplainPolicyResponse:
        """Why traffic would pass or not."""
        del context
        agent = self._agent
        node = agent.settings.node_name
        secret = agent.proxies.secrets.value
        explainer = Explainer(
            agent.policies.engine, agent.ipcache, agent.pods, node, secret, self._host_labels
        )
        question = explainer.ask(request)
        answer = explainer.tell(request, question)
        if request.verify:
            await self._run(
                lambda datapath: Verifier(datapath, agent.table, self._cookies()).verify(
                    question, answer
                )
            )
        return answer

    def _host_labels(self, address: str) -> LabelSet | None:
        """The labels that policies select the node with an address by; of this node without."""
        nodes = self._agent.nodes
        if not address:
            return host_labels(nodes.labels)
        for record in nodes.all():
            if any(str(known.ip) == address for known in record.addresses):
                return host_labels(record.labels)
        return None

    async def ListSelectors(  # noqa: N802
        self, request: agent_pb2.ListSelectorsRequest, context: Context
    ) -> agent_pb2.ListSelectorsResponse:
        """Every peer selector with who has it and whom it selects."""
        del request, context
        users = self._agent.policies.engine.selector_users()
        selectors = [
            agent_pb2.Selector(
                selector=str(selector),
                users=sorted(str(ref) for ref in refs),
                identities=sorted(int(number) for number in identities),
            )
            for selector, (refs, identities) in users.items()
        ]
        selectors.sort(key=_text)
        return agent_pb2.ListSelectorsResponse(selectors=selectors)


def _text(selector: agent_pb2.Selector) -> str:
    return selector.selector


def _policy(ref: PolicyRef, document: Any, error: str) -> agent_pb2.Policy:
    return agent_pb2.Policy(
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        json=json.dumps(document, separators=(",", ":"), sort_keys=True),
        error=error,
    )
