"""Services on this node: from what is watched to the maps, and what depends on it.

`reconciling` brings the maps up to date, `pods` joins Pod objects with the node's endpoints,
`facts` says what this node is to services, `checks` answers load balancers, `namespaces` tells
programs at sockets whose sockets they are.
"""

from cilium_agent.services.checks import HealthChecks
from cilium_agent.services.namespaces import SocketNamespaces
from cilium_agent.services.pods import LocalPods
from cilium_agent.services.reconciling import Services

__all__ = ["HealthChecks", "LocalPods", "Services", "SocketNamespaces"]
