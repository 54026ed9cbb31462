"""Keeps clients on versions that can be read: changes what brokers say that they support.

Clients ask a broker for the versions it knows and use the highest that both know. Above some
version, requests mean topics by ids that only the broker can resolve; a rule could not speak of
them. Clients that do not ask, or do not listen, have their requests refused instead.
"""

from __future__ import annotations

from typing import Final

from kafka_proxy.encoding import Value, read
from kafka_proxy.errors import ProtocolError
from kafka_proxy.refusing import UNSUPPORTED_VERSION, frame
from kafka_proxy.schemas import (
    API_VERSIONS,
    ENVELOPE,
    SASL_HANDSHAKE,
    known_versions,
    response_struct,
)

HIGHEST_BY_NAME: Final = {0: 12, 1: 12, 8: 9, 9: 9, 20: 5}
"""Highest versions of requests that name topics; later ones have ids."""

LOWEST: Final = {SASL_HANDSHAKE: 1}
"""Lowest version of the handshake after which requests still look like requests."""

_WORD: Final = 4


def limited(version: int, response: bytes) -> bytes:
    """The response to a request for versions, limited to what can be read; whole frame.

    `version` is that of the request, `response` what the broker said without its length. Raises
    ProtocolError when it cannot be read.
    """
    correlation_id = int.from_bytes(response[:_WORD], "big", signed=True)
    error = int.from_bytes(response[_WORD : _WORD + 2], "big", signed=True)
    form = response_struct(API_VERSIONS, 0 if error == UNSUPPORTED_VERSION else version)
    if form is None:
        raise ProtocolError(f"versions in a response of version {version} cannot be read")
    try:
        # the header of this response never has tagged fields, whatever its version
        value = read(form, memoryview(response), _WORD)
    except ProtocolError:
        if error != UNSUPPORTED_VERSION:
            raise
        # not all brokers say this in the form they should; clients then try the lowest version
        value = {"error_code": error, "api_keys": []}
    value["api_keys"] = [
        one for told in value["api_keys"] or () if (one := _limited(told)) is not None
    ]
    return frame(correlation_id, form, value)


def _limited(told: Value) -> Value | None:
    key = told["api_key"]
    known = known_versions(key)
    if known is None or key == ENVELOPE:
        return None
    lowest = max(told["min_version"], known[0], LOWEST.get(key, 0))
    highest = min(told["max_version"], known[1], HIGHEST_BY_NAME.get(key, known[1]))
    if lowest > highest:
        return None
    return {**told, "min_version": lowest, "max_version": highest}
