"""The agent's errors, each under the one of `cilium_core.errors` whose meaning fits.

::

    AgentError
    ├── AgentBusyError          another agent already runs on this state directory
    ├── NotStartedError         the agent is still starting, or stopping
    ├── OptionError             an option that does not exist, cannot change now, or has a bad value
    ├── EndpointError
    │   ├── EndpointNotFoundError
    │   ├── EndpointFileError   ep_config.json cannot be read; the endpoint stays closed
    │   └── IllegalTransitionError
    ├── PodNotFoundError        the Pod object did not appear in time
    ├── ServiceNotFoundError    no service is asked at an address
    ├── AddressError            no address is free, or one is already taken
    ├── PodLinkError            the pod's interface could not be made, or is not as it should be
    ├── RequestError            a CNI request that makes no sense
    └── SlowWatcherError        a reader of metadata fell too far behind
"""

from __future__ import annotations

from cilium_core.errors import (
    CiliumError,
    ConflictError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
    NotReadyError,
    UnavailableError,
)


class AgentError(CiliumError):
    """Anything the agent can say about what went wrong."""


class AgentBusyError(AgentError, ConflictError):
    """Another agent holds this state directory."""


class NotStartedError(AgentError, UnavailableError):
    """The agent cannot serve this yet, or no longer."""


class OptionError(AgentError, InvalidError):
    """An option that does not exist, cannot change at run time, or was given a bad value."""


class EndpointError(AgentError):
    """Something about one endpoint."""


class EndpointNotFoundError(EndpointError, NotFoundError):
    """No endpoint matches."""


class EndpointFileError(EndpointError, InvalidError):
    """The state file of an endpoint cannot be used."""


class IllegalTransitionError(EndpointError, NotReadyError):
    """An endpoint was asked to enter a state that its present one does not lead to."""


class PodNotFoundError(AgentError, NotFoundError):
    """A Pod object is missing."""


class ServiceNotFoundError(AgentError, NotFoundError):
    """Nothing is served at an address."""


class AddressError(AgentError, ExhaustedError):
    """An address cannot be given out."""


class PodLinkError(AgentError, ConflictError):
    """A pod's interface could not be made, or is not what the agent made."""


class RequestError(AgentError, InvalidError):
    """A request of the container runtime that cannot be understood."""


class SlowWatcherError(AgentError, ExhaustedError):
    """A reader of metadata fell too far behind and must start over."""
