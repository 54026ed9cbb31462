"""Serves and probes from inside a pod, on command; runs as a program (standard library only).

    prober.py SOCKET [--tcp 80,81] [--udp 80] [--sctp 80] [--dns ZONES.json] [--tls 443,CERT,KEY]

TCP ports answer HTTP requests and echo all else, UDP and SCTP ports echo. Whoever asks WHO over
any of them is told the name of the server, which is that of its socket, and the address and port
that it saw the question come from. A client connects to the
unix socket and sends lines of JSON:

    {"open": [PROBE, ...], "shut": [PROBE, ...], "limit_s": 3, "window_s": 0.3}

and gets one line back, the outcomes in order. All probes run at once. Those under `open`, expected
to be answered, get `limit_s`; those under `shut` are given up `window_s` after they began, but not
before the last of the open ones was answered, which tells how slow the machine is right now.

A PROBE is an object with `kind`, `address`, `port`, maybe `source` (the address to ask from), and
what the kind wants; see `PROBES`. Its outcome is what was answered, as text, or "" for nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import itertools
import json
import os
import random
import socket
import ssl
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import names
import queues

if TYPE_CHECKING:
    from collections.abc import Iterator

SCTP = 132
_INIT, _INIT_ACK = 1, 2
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_ECHO = b"hello"
WHO = b"who?"
_METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ", b"PATCH ", b"OPTIONS ")
_SHORTEST_S = 0.02


class Work:
    """What this process has been asked."""

    name = ""
    last = 0.0
    """When something was last asked, by the monotonic clock."""
    open = 0
    """Connections that are served right now."""

    @classmethod
    def told(cls, peer: tuple[Any, ...]) -> bytes:
        """What whoever asks is told."""
        return f"{cls.name} {peer[0].removeprefix('::ffff:')} {peer[1]}".encode()


# ---- serving ----


async def serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer HTTP requests with what they said; send anything else back."""
    Work.open += 1
    Work.last = time.monotonic()
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while data := await reader.read(65536):
            if data == WHO:
                writer.write(Work.told(writer.get_extra_info("peername")))
            elif data.startswith(_METHODS):
                while b"\r\n\r\n" not in data:
                    data += await reader.read(65536)
                writer.write(http_answer(data))
            else:
                writer.write(data)
            await writer.drain()
    writer.close()
    Work.open -= 1


def http_answer(request: bytes) -> bytes:
    """Answer 200 with the request line and headers as JSON."""
    head = request.partition(b"\r\n\r\n")[0].decode(errors="replace").split("\r\n")
    told = {"request": head[0], "headers": dict(line.split(": ", 1) for line in head[1:])}
    body = json.dumps(told).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def serve_datagrams(family: socket.AddressFamily, port: int) -> None:
    """Send every datagram back from the address it came to."""
    loop = asyncio.get_running_loop()
    version6 = family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if version6 else socket.IPPROTO_IP
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    datagrams.setblocking(False)
    if version6:
        datagrams.setsockopt(level, socket.IPV6_V6ONLY, 1)
    datagrams.setsockopt(level, _IPV6_RECVPKTINFO if version6 else _IP_PKTINFO, 1)
    datagrams.bind(("::" if version6 else "0.0.0.0", port))

    def answer() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, peer = datagrams.recvmsg(65536, 200)
                ((_, _, info),) = ancillary
                if version6:
                    reply = (level, _IPV6_PKTINFO, info[:16] + bytes(4))
                else:
                    reply = (level, _IP_PKTINFO, bytes(4) + info[8:12] + bytes(4))
                if data == WHO:
                    data = Work.told(peer)
                with contextlib.suppress(OSError):
                    datagrams.sendmsg([data], [reply], 0, peer)

    loop.add_reader(datagrams, answer)


class Associations:
    """The SCTP that these tests need: INIT is answered by INIT ACK, over raw sockets.

    The kernel has no SCTP here; a raw socket of the protocol gets its packets all the same.
    """

    def __init__(self) -> None:
        self.served: set[int] = set()
        self._waiting: dict[tuple[str, int, int], asyncio.Future[str]] = {}
        self._ports = itertools.count(random.randrange(20000, 40000))
        self._raw: dict[int, socket.socket] = {}

    def open(self) -> None:
        """Start to receive."""
        loop = asyncio.get_running_loop()
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            raw = socket.socket(family, socket.SOCK_RAW, SCTP)
            raw.setblocking(False)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            if version == 4:
                raw.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            self._raw[version] = raw
            loop.add_reader(raw, self._receive, version)

    async def probe(self, address: str, port: int, sender: str | None) -> str:
        """Send INIT until INIT ACK comes, and return what it tells; cancel to give up."""
        source = 20000 + next(self._ports) % 40000
        key = (address, port, source)
        answered = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            while True:
                self._send(address, source, port, _INIT, sender)
                with contextlib.suppress(TimeoutError):
                    return await asyncio.wait_for(asyncio.shield(answered), 0.5)
        finally:
            del self._waiting[key]

    def _send(
        self,
        address: str,
        source: int,
        target: int,
        chunk: int,
        sender: str | None = None,
        told: bytes = b"",
    ) -> None:
        body = struct.pack("!IIHHI", 1, 65536, 1, 1, 1)
        if told:
            # a parameter whose type says that who does not know it shall go on
            body += struct.pack("!HH", 0x8FFF, 4 + len(told)) + told
        packet = struct.pack("!HHIIBBH", source, target, 0, 0, chunk, 0, 4 + len(body)) + body
        packet = packet[:8] + struct.pack("<I", queues.crc32c(packet)) + packet[12:]
        raw = self._raw[6 if ":" in address else 4]
        if sender is None:
            raw.sendto(packet, (address, 0))
            return
        packed = socket.inet_pton(raw.family, sender)
        if raw.family == socket.AF_INET6:
            info = (socket.IPPROTO_IPV6, _IPV6_PKTINFO, packed + bytes(4))
        else:
            info = (socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + packed + bytes(4))
        raw.sendmsg([packet], [info], 0, (address, 0))

    def _receive(self, version: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, peer = self._raw[version].recvmsg(2000, 200)
                ((_, _, info),) = ancillary
                if version == 4:
                    asked = socket.inet_ntop(socket.AF_INET, info[8:12])
                    data = data[(data[0] & 15) * 4 :]
                else:
                    asked = socket.inet_ntop(socket.AF_INET6, info[:16])
                source, target, _, _, chunk = struct.unpack_from("!HHIIB", data)
                if chunk == _INIT and target in self.served:
                    with contextlib.suppress(OSError):
                        told = Work.told((peer[0], source))
                        self._send(peer[0], target, source, _INIT_ACK, asked, told)
                elif chunk == _INIT_ACK:
                    waiting = self._waiting.get((peer[0], source, target))
                    if waiting is not None and not waiting.done():
                        waiting.set_result(data[36:].decode())


associations = Associations()


# ---- probing ----


async def connect(
    probe: dict[str, Any], **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open the connection that a probe wants."""
    source = (probe["source"], 0) if "source" in probe else None
    return await asyncio.open_connection(
        probe["address"], probe["port"], local_addr=source, **options
    )


@contextlib.contextmanager
def datagrams_to(probe: dict[str, Any]) -> Iterator[socket.socket]:
    """A socket that sends datagrams where a probe wants them."""
    family = socket.AF_INET6 if ":" in probe["address"] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.setblocking(False)
        if "source" in probe:
            datagrams.bind((probe["source"], 0))
        datagrams.connect((probe["address"], probe["port"]))
        yield datagrams


async def probe_tcp(probe: dict[str, Any]) -> str:
    """Whether a connection echoes."""
    reader, writer = await connect(probe)
    try:
        writer.write(_ECHO)
        return "ok" if await reader.readexactly(len(_ECHO)) == _ECHO else "garbled"
    finally:
        writer.close()


async def probe_udp(probe: dict[str, Any]) -> str:
    """Whether a datagram comes back; it is sent again now and then."""
    loop = asyncio.get_running_loop()
    with datagrams_to(probe) as datagrams:
        while True:
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                await loop.sock_sendall(datagrams, _ECHO)
                data = await asyncio.wait_for(loop.sock_recv(datagrams, 100), 0.5)
                return "ok" if data == _ECHO else "garbled"


async def probe_sctp(probe: dict[str, Any]) -> str:
    """Whether an INIT is answered."""
    await associations.probe(probe["address"], probe["port"], probe.get("source"))
    return "ok"


async def probe_who(probe: dict[str, Any]) -> str:
    """Who answers `over` tcp, udp or sctp, and who it thinks asked, without its port.

    `udp` is a connected socket and `udp-each` one that is not. An answer that does not come from
    where the question went is told as "answer from …", and "unreachable" is what it says.
    """
    loop = asyncio.get_running_loop()
    over, at = probe["over"], (probe["address"], probe["port"])
    try:
        if over == "tcp":
            reader, writer = await connect(probe)
            try:
                writer.write(WHO)
                peer, told = writer.get_extra_info("peername"), await reader.read(1000)
            finally:
                writer.close()
        elif over == "sctp":
            peer = at
            told = (await associations.probe(*at, probe.get("source"))).encode()
        else:
            peer, told = await ask_datagram(loop, probe, over == "udp")
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        if error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM}:
            return "unreachable"
        raise
    if tuple(peer[:2]) != at:
        return f"answer from {peer[0]} {peer[1]}"
    return told.decode().rpartition(" ")[0]


async def ask_datagram(
    loop: asyncio.AbstractEventLoop, probe: dict[str, Any], connected: bool
) -> tuple[Any, bytes]:
    """Whom an answer comes from, as the socket knows, and what it is; asked again now and then."""
    at = (probe["address"], probe["port"])
    family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.setblocking(False)
        if "source" in probe:
            datagrams.bind((probe["source"], 0))
        if connected:
            datagrams.connect(at)
        while True:
            with contextlib.suppress(TimeoutError):
                if connected:
                    await loop.sock_sendall(datagrams, WHO)
                    told = await asyncio.wait_for(loop.sock_recv(datagrams, 1000), 0.5)
                    return datagrams.getpeername(), told
                await loop.sock_sendto(datagrams, WHO, at)
                told, peer = await asyncio.wait_for(loop.sock_recvfrom(datagrams, 1000), 0.5)
                return peer, told


async def probe_quiet(probe: dict[str, Any]) -> str:
    """Whether this process has served nobody for `seconds`; waits until it has."""
    while True:
        left = Work.last + probe["seconds"] - time.monotonic()
        if not Work.open and left <= 0:
            return "ok"
        await asyncio.sleep(max(left, 0.01))


async def probe_icmp(probe: dict[str, Any]) -> str:
    """Whether an echo request is answered."""
    loop = asyncio.get_running_loop()
    version6 = ":" in probe["address"]
    family = socket.AF_INET6 if version6 else socket.AF_INET
    protocol = socket.getprotobyname("ipv6-icmp" if version6 else "icmp")
    identifier = os.urandom(2)
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.setblocking(False)
        head = bytes([128 if version6 else 8, 0, 0, 0]) + identifier + b"\0\1"
        if not version6:
            total = sum(struct.unpack("!6H", head + b"ping"))
            total = (total & 0xFFFF) + (total >> 16)
            head = head[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[4:]
        if "source" in probe:
            raw.bind((probe["source"], 0))
        raw.connect((probe["address"], 0))
        await loop.sock_sendall(raw, head + b"ping")
        while True:
            data = await loop.sock_recv(raw, 2000)
            reply = data if version6 else data[(data[0] & 15) * 4 :]
            if reply[0] == (129 if version6 else 0) and reply[4:6] == identifier:
                return "ok"


async def probe_http(probe: dict[str, Any]) -> str:
    """Status of a request: `method`, `path`, `host` and `headers` are as given."""
    address = probe["address"]
    reader, writer = await connect(probe)
    try:
        host = probe.get("host") or (f"[{address}]" if ":" in address else address)
        lines = [f"{probe.get('method', 'GET')} {probe.get('path', '/')} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in probe.get("headers", {}).items()]
        writer.write("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        return head.split()[1].decode()
    finally:
        writer.close()


async def probe_tls(probe: dict[str, Any]) -> str:
    """Whether a TLS connection with the server name `sni` echoes; certificates are not checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await connect(probe, ssl=context, server_hostname=probe.get("sni") or "")
    try:
        writer.write(_ECHO)
        return "ok" if await reader.readexactly(len(_ECHO)) == _ECHO else "garbled"
    finally:
        writer.close()


async def probe_dns(probe: dict[str, Any]) -> str:
    """Answer of a name server: the code's name, and the addresses behind a blank.

    `name` and `type` (A or AAAA) are asked over UDP, or TCP with `over`.
    """
    probe = {"port": 53, **probe}
    question = names.query(probe["name"], probe.get("type", "A"))
    if probe.get("over") == "tcp":
        reader, writer = await connect(probe)
        try:
            writer.write(struct.pack("!H", len(question)) + question)
            (size,) = struct.unpack("!H", await reader.readexactly(2))
            return names.told(question, await reader.readexactly(size))
        finally:
            writer.close()
    loop = asyncio.get_running_loop()
    with datagrams_to(probe) as datagrams:
        while True:
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                await loop.sock_sendall(datagrams, question)
                answer = await asyncio.wait_for(loop.sock_recv(datagrams, 4096), 1)
                return names.told(question, answer)


async def probe_kafka(probe: dict[str, Any]) -> str:
    """Outcome of a request to `act` (produce, consume) on a `topic`: "ok" or the error's number."""
    reader, writer = await connect(probe)
    try:
        writer.write(queues.request(probe["act"], probe["topic"]))
        (size,) = struct.unpack("!i", await reader.readexactly(4))
        return queues.outcome(probe["act"], await reader.readexactly(size))
    finally:
        writer.close()


async def probe_name(probe: dict[str, Any]) -> str:
    """Look a `name` up at `server`, and probe the first address with what `then` says."""
    asked = {"address": probe["server"], "name": probe["name"], "type": probe.get("type", "A")}
    code, *addresses = (await probe_dns(asked)).split()
    if not addresses:
        return code
    then = {**probe["then"], "address": addresses[0]}
    return await PROBES[then["kind"]](then)


PROBES = {
    "who": probe_who,
    "quiet": probe_quiet,
    "tcp": probe_tcp,
    "udp": probe_udp,
    "sctp": probe_sctp,
    "icmp": probe_icmp,
    "http": probe_http,
    "tls": probe_tls,
    "dns": probe_dns,
    "kafka": probe_kafka,
    "name": probe_name,
}


async def attempt(probe: dict[str, Any], limit_s: float) -> str:
    """Outcome of one probe: an answer, "refused", "reset", or "" for silence."""
    try:
        return await asyncio.wait_for(PROBES[probe["kind"]](probe), limit_s)
    except ConnectionRefusedError:
        return "refused"
    except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
        return "reset"
    except (OSError, TimeoutError):
        return ""


async def run(order: dict[str, Any]) -> list[str]:
    """Run all probes of an order at once."""
    loop = asyncio.get_running_loop()
    end = loop.time() + order.get("window_s", 0.3)
    limit_s = order.get("limit_s", 3.0)
    shut = [loop.create_task(attempt(probe, limit_s * 2)) for probe in order.get("shut", ())]
    opened = await asyncio.gather(*(attempt(probe, limit_s) for probe in order.get("open", ())))
    if shut:
        await asyncio.wait(shut, timeout=max(end - loop.time(), _SHORTEST_S))
    quiet = []
    for task in shut:
        quiet.append(task.result() if task.done() else "")
        task.cancel()
    await asyncio.gather(*shut, return_exceptions=True)
    return [*opened, *quiet]


async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take orders, one a line, until the client hangs up."""
    while line := await reader.readline():
        writer.write(json.dumps(await run(json.loads(line))).encode() + b"\n")
        await writer.drain()
    writer.close()


async def serve(given: argparse.Namespace) -> None:
    """Serve until killed; the control socket comes last, so that it tells that all is ready."""
    for port in given.tcp:
        await asyncio.start_server(serve_stream, "::", port, backlog=512)
        await asyncio.start_server(serve_stream, "0.0.0.0", port, backlog=512)
    for port in given.udp:
        serve_datagrams(socket.AF_INET, port)
        serve_datagrams(socket.AF_INET6, port)
    if given.tls:
        port, certificate, key = given.tls.split(",")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        for host in ("::", "0.0.0.0"):
            await asyncio.start_server(serve_stream, host, int(port), ssl=context)
    if given.dns:
        await names.serve(given.dns)
    associations.served.update(given.sctp)
    associations.open()
    server = await asyncio.start_unix_server(control, given.socket, limit=1 << 24)
    await server.serve_forever()


def ports(text: str) -> list[int]:
    """Read `80,81`."""
    return [int(word) for word in text.split(",") if word]


def zones(path: str) -> names.Zones:
    """Read a file of zones."""
    found: names.Zones = json.loads(Path(path).read_text())
    return found


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    for kind in ("tcp", "udp", "sctp"):
        parser.add_argument(f"--{kind}", type=ports, default=[])
    parser.add_argument("--dns", type=zones)
    parser.add_argument("--tls")
    given = parser.parse_args()
    Work.name = Path(given.socket).stem
    asyncio.run(serve(given))


if __name__ == "__main__":
    sys.exit(main())
