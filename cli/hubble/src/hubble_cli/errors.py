"""What can go wrong in the `hubble` command line.

    HubbleError             anything a user should read: printed as it is, exit code 1
    ├── UsageError          flags or arguments that do not make sense
    └── RemoteError         a server refused, failed or could not be reached

The one place that catches them is `hubble_cli.__main__`.
"""

from __future__ import annotations


class HubbleError(Exception):
    """Carries the text shown to the user."""


class UsageError(HubbleError):
    """Flags or arguments that do not make sense."""


class RemoteError(HubbleError):
    """A server refused, failed or could not be reached."""
