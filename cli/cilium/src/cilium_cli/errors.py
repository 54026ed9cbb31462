# SPDX-License-Identifier: Apache-2.0
"""What a command can fail with, and the exit code a shell sees.

CommandError            1  the request was understood and could not be carried out
├── InputError          1  a document, name or value the user gave is wrong
├── UnreachableError    2  the service a command needs does not answer
├── NotFoundError       3  the object asked for does not exist
└── DeadlineError       4  something did not come about in time

Wrong options and arguments end with click's own exit code, 2. Errors are printed in one place,
`cilium_cli.__main__`; gRPC status codes become these in one place, `cilium_cli.connecting`.
"""

from __future__ import annotations


class CommandError(Exception):
    """A failure with a line that names the object and its trouble, and a remedy if one is known."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class InputError(CommandError):
    """What the user gave is wrong."""


class UnreachableError(CommandError):
    """A service does not answer."""

    exit_code = 2


class NotFoundError(CommandError):
    """There is no such object."""

    exit_code = 3


class DeadlineError(CommandError):
    """Something did not come about in time."""

    exit_code = 4
