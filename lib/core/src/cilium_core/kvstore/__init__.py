"""The key-value store: one interface, etcd behind it in clusters and memory behind it in tests.

    Store                 what modules ask for (a Protocol)
    ├── EtcdStore         etcd version 3; import it from `cilium_core.kvstore.etcd`
    └── MemoryStore       the same semantics in this process; from `cilium_core.kvstore.memory`

Errors:

    StoreUnavailableError (UnavailableError)   no member answered in time; a transaction may or
                                               may not have been applied
    StoreError (CiliumError)                   the store refused the request

Importing this package costs nothing; grpc is loaded only with `etcd`.
"""

from __future__ import annotations

from cilium_core.kvstore.leases import Lease
from cilium_core.kvstore.model import (
    Compare,
    Delete,
    Event,
    EventKind,
    KeyValue,
    Listing,
    Put,
    Store,
    StoreError,
    StoreStatus,
    StoreUnavailableError,
    absent,
    absent_prefix,
    exists,
    unchanged,
    value_is,
)

__all__ = [
    "Compare",
    "Delete",
    "Event",
    "EventKind",
    "KeyValue",
    "Lease",
    "Listing",
    "Put",
    "Store",
    "StoreError",
    "StoreStatus",
    "StoreUnavailableError",
    "absent",
    "absent_prefix",
    "exists",
    "unchanged",
    "value_is",
]
