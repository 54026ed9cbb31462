"""The requests of Kafka's protocol by name, and the roles that stand for several of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES: Final = (
    "produce fetch offsets metadata leaderandisr stopreplica updatemetadata controlledshutdown "
    "offsetcommit offsetfetch findcoordinator joingroup heartbeat leavegroup syncgroup "
    "describegroups listgroups saslhandshake apiversions createtopics deletetopics deleterecords "
    "initproducerid offsetforleaderepoch addpartitionstotxn addoffsetstotxn endtxn "
    "writetxnmarkers txnoffsetcommit describeacls createacls deleteacls describeconfigs "
    "alterconfigs"
)

API_KEYS: Final[Mapping[str, int]] = {name: key for key, name in enumerate(_NAMES.split())}
"""The number of each request by its name in lower case."""


def _keys(names: str) -> frozenset[int]:
    return frozenset(API_KEYS[name] for name in names.split())


ROLES: Final[Mapping[str, frozenset[int]]] = {
    "produce": _keys("produce metadata apiversions"),
    "consume": _keys(
        "fetch offsets metadata offsetcommit offsetfetch findcoordinator joingroup heartbeat "
        "leavegroup syncgroup apiversions"
    ),
}
"""What a client of each role has to ask."""
