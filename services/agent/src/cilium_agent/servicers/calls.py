"""What the calls of the agent's API have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cilium_agent.errors import NotStartedError

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc.aio
    from cilium_core.labels import LabelSet
    from cilium_core.policy import CookieTable
    from cilium_core.policy.l7 import Redirect

    from cilium_agent.app import Agent
    from cilium_agent.datapath import Datapath

    Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """A group of calls about one agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def _run(self, call: Callable[[Datapath], Any]) -> Any:
        """Run a call in the data plane's thread, once it is up."""
        if not self._agent.ready:
            raise NotStartedError(f"the agent is {self._agent.phase}")
        plane = self._agent.plane
        return await plane.run(call, plane.datapath)

    def _labels(self) -> dict[int, LabelSet]:
        identities = self._agent.policies.engine.selectors.identities
        return {int(number): labels for number, labels in identities.items()}

    def _cookies(self) -> CookieTable:
        return self._agent.policies.engine.cookies

    def _redirects(self) -> dict[int, Redirect]:
        """What is enforced on each port."""
        return {one.port: one.redirect for one in self._agent.proxies.status().redirects}

    def _audit(self) -> bool:
        return self._agent.ready and self._agent.plane.datapath.config.audit
