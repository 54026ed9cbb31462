"""Errors of the proxies.

::

    ProxyError
    ├── PortsExhaustedError     no port of the range is free
    └── RedirectRejectedError   a proxy refuses to enforce a redirect
"""

from __future__ import annotations

from cilium_core.errors import ExhaustedError, InvalidError

from cilium_agent.errors import AgentError


class ProxyError(AgentError):
    """Anything about the proxies of a node."""


class PortsExhaustedError(ProxyError, ExhaustedError):
    """Every port of the range is in use."""


class RedirectRejectedError(ProxyError, InvalidError):
    """A proxy says that it cannot enforce a redirect."""
