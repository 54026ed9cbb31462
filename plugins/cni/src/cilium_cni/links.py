# SPDX-License-Identifier: Apache-2.0
"""Removes a pod's device without the agent: one netlink message, sent inside the pod's namespace.

Only used while the agent is down. The process stays in that namespace afterwards, which does no
harm: the plugin reaches everything else over the file system and ends right away.
"""

import ctypes
import errno
import os
import struct
from socket import AF_NETLINK, SOCK_RAW, socket

from cilium_cni.errors import IO_FAILURE, CNIError

_CLONE_NEWNET = 0x40000000
_NETLINK_ROUTE = 0
_RTM_DELLINK = 17
_NLM_F_REQUEST_ACK = 0x1 | 0x4
_IFLA_IFNAME = 3


def remove_link(netns: str, ifname: str) -> bool:
    """Delete the device in the namespace; False when either is already gone."""
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            if number == errno.EINVAL:  # the path is left over from a namespace that is gone
                return False
            raise CNIError(IO_FAILURE, f"cannot enter {netns}", os.strerror(number))
    finally:
        os.close(descriptor)
    return _delete(ifname)


def _delete(ifname: str) -> bool:
    name = ifname.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), _IFLA_IFNAME) + name
    attribute += b"\0" * (-len(attribute) % 4)
    message = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute
    header = struct.pack("=IHHII", 16 + len(message), _RTM_DELLINK, _NLM_F_REQUEST_ACK, 1, 0)
    with socket(AF_NETLINK, SOCK_RAW, _NETLINK_ROUTE) as connection:
        connection.sendto(header + message, (0, 0))
        answer = connection.recv(4096)
    (number,) = struct.unpack_from("=i", answer, 16)
    if number == 0:
        return True
    if -number == errno.ENODEV:
        return False
    raise CNIError(IO_FAILURE, f"cannot delete device {ifname}", os.strerror(-number))
