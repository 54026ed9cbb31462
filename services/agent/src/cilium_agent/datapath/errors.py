"""What can go wrong in the data plane.

DatapathError
├── BpfError            a bpf() call failed; has errno
├── MapShapeError       a pinned map cannot be used or migrated
├── SourceError         the C sources cannot be read or understood
├── CompileError        the compiler refused the sources; has its messages
├── LoadError           the verifier refused a program; has its log
├── DeviceError         a device, route, filter or sysctl could not be set up
├── KernelTypesError    the kernel does not describe its types, or has others
├── CgroupError         the cgroup of the programs at sockets is not usable
└── NamespaceError      a pod's network namespace is not usable
"""

from __future__ import annotations

import os
from errno import E2BIG


class DatapathError(Exception):
    """Anything of this package that a caller may want to catch."""


class BpfError(DatapathError):
    """A bpf() call failed."""

    def __init__(self, what: str, errno: int) -> None:
        super().__init__(f"{what}: {os.strerror(errno)}")
        self.errno = errno


class MapShapeError(DatapathError):
    """A pinned map does not fit its definition and cannot be migrated."""


class SourceError(DatapathError):
    """The data plane's C sources are missing or not in the agreed form."""


class CompileError(DatapathError):
    """The compiler refused a source file."""

    def __init__(self, file: str, messages: str) -> None:
        super().__init__(f"{file} does not compile:\n{messages.strip()}")
        self.file = file
        self.messages = messages


class LoadError(DatapathError):
    """The verifier refused a program."""

    def __init__(self, program: str, errno: int, log: str) -> None:
        tail = "\n".join(log.strip().splitlines()[-40:])
        if errno == E2BIG and not tail:
            tail = "the verifier gave up on it: a million instructions were not enough to follow it"
        super().__init__(f"program {program} does not load: {os.strerror(errno)}\n{tail}")
        self.program = program
        self.errno = errno
        self.log = log


class DeviceError(DatapathError):
    """A device, route, filter or kernel setting could not be put in place."""


class KernelTypesError(DatapathError):
    """The kernel does not describe its types, or lacks one that is looked for."""


class CgroupError(DatapathError):
    """The cgroup for the programs at sockets is not there or is none."""


class NamespaceError(DatapathError):
    """A pod's network namespace does not exist or lacks the interface."""
