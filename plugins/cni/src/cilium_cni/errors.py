# SPDX-License-Identifier: Apache-2.0
"""What the plugin can fail with, as the CNI specification numbers it.

CNIError            printed to the runtime as JSON, exit code 1
└── AgentUnreachable    nobody listens on the agent's socket, or it went away while answering
"""

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
INTERNAL = 999


class CNIError(Exception):
    """An error with a CNI code, one line for people and, where it helps, details."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class AgentUnreachable(CNIError):  # noqa: N818 - says what happened, as the specification does
    """The agent does not answer; a runtime may try again."""

    def __init__(self, socket_path: str, reason: str) -> None:
        super().__init__(
            TRY_AGAIN_LATER,
            f"the agent does not answer on {socket_path}: {reason}",
            "is cilium-agent running on this node? `cilium status` tells more",
        )
