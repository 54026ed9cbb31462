"""Everything hubble-server raises on purpose, by what it means to the caller.

    CiliumError
    ├── InvalidError
    │   ├── CapacityError       the ring cannot have this size
    │   ├── RequestError        a request that cannot be understood
    │   │   └── MaskError       a field mask that does not fit flow.Flow
    │   ├── ContradictionError  a request whose parts exclude each other
    │   └── RecordingError      a request to record packets that cannot be
    ├── NotFoundError
    │   └── NoSuchFlowError     no flow passes the filters that it was asked by
    ├── UnavailableError
    │   ├── RingError           the kernel's event ring cannot be read
    │   │   └── EventsMapMissingError   the agent has not pinned the events map (yet)
    │   └── CaptureError        packets cannot be captured, or not be kept
    └── ExhaustedError
        ├── RecordingsError     as many recordings or filters as there can be
        ├── BusyError           too many clients ask for what costs the agent much
        └── SlowClientError     a client that does not read what it asked for

`STATUSES` is the one place where those that differ from the usual codes become gRPC codes: clients
of Hubble print the text of an Unknown error as it is.
"""

from __future__ import annotations

from cilium_core.errors import ExhaustedError, InvalidError, NotFoundError, UnavailableError
from cilium_core.flow_filters import FilterError, FilterLimitError
from cilium_core.serving.packed import Status


class CapacityError(InvalidError):
    """The ring cannot have the wanted capacity."""


class RingError(UnavailableError):
    """The kernel refused something that reading its event ring needs."""


class EventsMapMissingError(RingError):
    """The events map is not pinned; the agent pins it when it starts."""


class RequestError(InvalidError):
    """A request that cannot be understood; the text goes to the client as it is."""


class MaskError(RequestError):
    """A field mask that does not fit flow.Flow."""


class ContradictionError(InvalidError):
    """A request whose parts exclude each other."""


class RecordingError(InvalidError):
    """A request to record packets that cannot be understood or fulfilled."""


class CaptureError(UnavailableError):
    """Packets cannot be captured, or the file they go to cannot be written."""


class RecordingsError(ExhaustedError):
    """There are as many recordings, or filters of recordings, as there can be."""


class NoSuchFlowError(NotFoundError):
    """No flow passes the filters that it was asked by."""


class BusyError(ExhaustedError):
    """Too many clients ask for what costs the agent much."""


class SlowClientError(ExhaustedError):
    """A client that does not read what it asked for."""


STATUSES: dict[type[Exception], Status] = {
    FilterError: Status.UNKNOWN,
    FilterLimitError: Status.RESOURCE_EXHAUSTED,
    RequestError: Status.UNKNOWN,
    ContradictionError: Status.INVALID_ARGUMENT,
    SlowClientError: Status.UNKNOWN,
}
