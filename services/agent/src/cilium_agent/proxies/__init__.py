"""Proxies: programs that enforce what policy says above the transport layer.

The data plane sends a connection to a port of the node; `Proxies` says which port enforces which
`Redirect`, keeps the programs running and tells them what to enforce:

    ports.py         redirect → port, kept across restarts of the agent
    facade.py        `Proxies`: what the rest of the agent calls
    backends.py      what a program looks like (Envoy, dns-proxy, kafka-proxy)
    supervising.py   programs that outlive the agent: started, adopted, restarted
    secrets.py       Secret objects for header values, certificates and keys
    records.py       what proxies saw → `L7Record` for hubble-server
    envoy/           Envoy's configuration (xDS), access log and life

Nothing here knows identities: which connection reaches which port is the data plane's business.
"""

from cilium_agent.proxies.backends import Backend, BackendStatus
from cilium_agent.proxies.errors import PortsExhaustedError, ProxyError, RedirectRejectedError
from cilium_agent.proxies.facade import Proxies, ProxyStatus, RedirectStatus
from cilium_agent.proxies.secrets import Secrets
from cilium_agent.proxies.supervising import Program, ProgramStatus, Supervisor

__all__ = [
    "Backend",
    "BackendStatus",
    "PortsExhaustedError",
    "Program",
    "ProgramStatus",
    "Proxies",
    "ProxyError",
    "ProxyStatus",
    "RedirectRejectedError",
    "RedirectStatus",
    "Secrets",
    "Supervisor",
]
