"""The XDP prefilter: source prefixes that are refused at the device, and a packet rate per source.

The program is on the devices only while there is something to refuse, because native XDP on a veth
costs it its large segments. What is refused lives in pinned maps and outlasts the agent.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import structlog
from cilium_core import abi

from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath import syscalls
from cilium_agent.datapath.errors import DatapathError, DeviceError
from cilium_agent.datapath.models import Network, PrefilterState
from cilium_agent.datapath.netlink import NetlinkError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cilium_agent.datapath.configuring import Configuration
    from cilium_agent.datapath.maps import Map, Maps

_log = structlog.get_logger(__name__)

PROGRAM = "cil_xdp_entry"
_KEYS = {
    4: abi.view("cidr_key4", "prefixlen", "addr"),
    6: abi.view("cidr_key6", "prefixlen", "addr"),
}
_INFO = abi.view("cidr_info", "packets")
_RATE_MAX = 10_000_000


class Prefilter:
    """What is refused, and the program that does it."""

    def __init__(
        self,
        maps: Maps,
        configuration: Configuration,
        devices: Mapping[str, int],
        programs: Mapping[str, int],
        *,
        acceleration: str = "disabled",
    ) -> None:
        """`acceleration` is that of `ServiceConfig`: its work is in the program too."""
        self._acceleration = acceleration
        self._cidrs: dict[int, Map] = {4: maps["CIDR4"], 6: maps["CIDR6"]}
        self._buckets = maps["RATELIMIT"]
        self._configuration = configuration
        self._devices = devices
        self._programs = programs

    def get(self) -> PrefilterState:
        """What is refused now, and how often each prefix has been."""
        config = self._configuration.read()
        return PrefilterState(
            cidrs=self._read(),
            rate_limit_pps=config["rate_limit_pps"],
            rate_limit_burst=config["rate_limit_burst"],
            attached=self._attached(),
        )

    def update(
        self,
        add: Iterable[Network] = (),
        remove: Iterable[Network] = (),
        rate_limit_pps: int | None = None,
        rate_limit_burst: int | None = None,
    ) -> PrefilterState:
        """Refuse some prefixes, accept others again, change the rate limit (0 is off).

        Counts of prefixes that are refused already go on. A limit without a burst may burst for
        one second. Raises DatapathError for a limit out of range or a prefix to remove that is
        not refused, DeviceError when a device has an XDP program of somebody else's.
        """
        for name, value in (("rate limit", rate_limit_pps), ("burst", rate_limit_burst)):
            if value is not None and not 0 <= value <= _RATE_MAX:
                raise DatapathError(f"prefilter {name} {value}: 0 to {_RATE_MAX} packets")
        held = self._read()
        wanted, unwanted = list(add), list(remove)
        for prefix in unwanted:
            if prefix not in held:
                raise DatapathError(f"prefilter: {prefix} is not among the refused prefixes")
        for version, cidrs in self._cidrs.items():
            rows = {
                _key(prefix): _INFO.pack(held.get(prefix, 0))
                for prefix in wanted
                if prefix.version == version
            }
            cidrs.set_many(rows)
            cidrs.delete_many(_key(prefix) for prefix in unwanted if prefix.version == version)
        if rate_limit_pps is not None:
            burst = rate_limit_pps if rate_limit_burst is None else rate_limit_burst
            self._configuration.patch(rate_limit_pps=rate_limit_pps, rate_limit_burst=burst)
            if not rate_limit_pps:
                self._buckets.delete_many([key for key, _ in self._buckets.items()])
        elif rate_limit_burst is not None:
            self._configuration.patch(rate_limit_burst=rate_limit_burst)
        self.apply()
        return self.get()

    def apply(self) -> None:
        """Put the program on the devices if it has something to do, or take it off.

        Raises DeviceError where services must be accelerated and the device does not allow it.
        """
        refuses = bool(self._configuration.read()["rate_limit_pps"]) or bool(self._read())
        wanted = refuses or self._acceleration != "disabled"
        if wanted and PROGRAM not in self._programs:
            raise DatapathError(f"the prefilter's program {PROGRAM} is not loaded")
        with nl.session("XDP prefilter") as netlink:
            for name, index in self._devices.items():
                number, mode = nl.xdp_of(netlink, index)
                if number and not _is_ours(number):
                    if wanted:
                        raise DeviceError(
                            f"device {name} has an XDP program of somebody else's (number"
                            f" {number}); remove it to use the prefilter or the acceleration of"
                            " services there"
                        )
                elif wanted:
                    self._attach(netlink, name, index, mode, refuses=refuses)
                elif number:
                    nl.set_xdp(netlink, index, -1, nl.XDP_FLAGS.get(mode, 0))

    def detach(self) -> None:
        """Take the program off the devices, whatever is refused."""
        with nl.session("XDP prefilter") as netlink:
            for index in self._devices.values():
                number, mode = nl.xdp_of(netlink, index)
                if number and _is_ours(number):
                    nl.set_xdp(netlink, index, -1, nl.XDP_FLAGS.get(mode, 0))

    def _attach(self, netlink: Any, name: str, index: int, mode: str, *, refuses: bool) -> None:
        """Put the program on a device, in the mode that what it does there allows."""
        fd = self._programs[PROGRAM]
        if self._acceleration == "testing-only":
            self._change(netlink, index, fd, mode, "generic")
            return
        if mode == "native" or (mode and self._acceleration == "disabled"):
            nl.set_xdp(netlink, index, fd, nl.XDP_FLAGS.get(mode, 0))
            return
        try:
            self._change(netlink, index, fd, mode, "native")
        except NetlinkError as error:
            if self._acceleration == "native":
                raise DeviceError(
                    f"device {name} takes no native XDP program ({error}); set"
                    " bpf-lb-acceleration to best-effort or disabled"
                ) from error
            if refuses:
                _log.info("no native XDP, using generic", device=name, error=str(error))
                self._change(netlink, index, fd, mode, "generic")
            else:
                _log.info("services are not accelerated", device=name, error=str(error))

    def _change(self, netlink: Any, index: int, fd: int, mode: str, wanted: str) -> None:
        """Have the program on a device in a mode; a device has one mode at a time."""
        if mode and mode != wanted:
            nl.set_xdp(netlink, index, -1, nl.XDP_FLAGS.get(mode, 0))
        nl.set_xdp(netlink, index, fd, nl.XDP_FLAGS[wanted])

    def _attached(self) -> dict[str, str]:
        found = {}
        with nl.session("XDP prefilter") as netlink:
            for name, index in self._devices.items():
                number, mode = nl.xdp_of(netlink, index)
                if number and _is_ours(number):
                    found[name] = mode
        return found

    def _read(self) -> dict[Network, int]:
        found: dict[Network, int] = {}
        for version, cidrs in self._cidrs.items():
            for key, value in cidrs.items():
                bits, address = _KEYS[version].unpack(key)
                (packets,) = _INFO.unpack(value)
                found[_prefix(version, bits, address)] = packets
        return found


def _key(prefix: Network) -> bytes:
    packed = prefix.network_address.packed
    address = int.from_bytes(packed, "little") if prefix.version == 4 else packed
    return _KEYS[prefix.version].pack(prefix.prefixlen, address)


def _prefix(version: int, bits: int, address: int | bytes) -> Network:
    if version == 4 and isinstance(address, int):
        return ipaddress.IPv4Network((address.to_bytes(4, "little"), bits))
    return ipaddress.IPv6Network((address, bits))


def _is_ours(number: int) -> bool:
    return syscalls.prog_name(number) == PROGRAM[:15]
