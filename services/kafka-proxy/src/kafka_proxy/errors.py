"""Everything the Kafka proxy raises on purpose.

CiliumError
└── InvalidError
    └── ProtocolError   bytes that are not what Kafka's protocol says
"""

from __future__ import annotations

from cilium_core.errors import InvalidError


class ProtocolError(InvalidError):
    """Bytes that are not what Kafka's protocol says; the text says why."""
