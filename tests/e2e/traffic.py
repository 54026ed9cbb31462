"""Traffic of the end-to-end tests; runs as a program inside pods (standard library only).

traffic.py serve PORT             echo over TCP and UDP on both families, until killed
traffic.py try PROTO:ADDRESS:PORT...          one JSON object: whether each echoed, by target
traffic.py bulk ADDRESS PORT BYTES            send and get back that much; JSON: seconds
traffic.py load SECONDS ADDRESS PORT          steady TCP and UDP echo; JSON: what went wrong
traffic.py hold ADDRESS PORT      one TCP connection that talks until it is cut; JSON: how
traffic.py storm RATE ADDRESS PORT            so many connections a second until SIGTERM; JSON
traffic.py talk PAUSE_S ADDRESS:PORT...       TCP connections that talk until SIGTERM; JSON: how
traffic.py flood udp|syn SOURCE[-LAST] ADDRESS PORT RATE COUNT   crafted packets; JSON

`storm` and `talk` print "going" once traffic flows. A flood comes from all ports of its addresses,
one after the other, as packets of no socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from typing import Any

TRY_LIMIT_S = 1.0
LOAD_INTERVAL_S = 0.01
HOLD_SILENCE_S = 1.0


IPV6_RECVPKTINFO, IPV6_PKTINFO = 49, 50
IP_PKTINFO = 8


def udp_echo(family: socket.AddressFamily, port: int) -> None:
    """Send every datagram back from the address it came to; runs in a thread, for ever."""
    version6 = family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if version6 else socket.IPPROTO_IP
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        if version6:
            datagrams.setsockopt(level, socket.IPV6_V6ONLY, 1)
        datagrams.setsockopt(level, IPV6_RECVPKTINFO if version6 else IP_PKTINFO, 1)
        datagrams.bind(("::" if version6 else "0.0.0.0", port))
        while True:
            data, ancillary, _, peer = datagrams.recvmsg(65536, 200)
            ((_, _, info),) = ancillary
            if version6:
                reply = (level, IPV6_PKTINFO, info[:16] + bytes(4))
            else:
                reply = (level, IP_PKTINFO, bytes(4) + info[8:12] + bytes(4))
            with contextlib.suppress(OSError):
                datagrams.sendmsg([data], [reply], 0, peer)


async def tcp_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what arrives."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(port: int) -> None:
    """Serve until killed."""
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    listener.listen(128)
    for family in (socket.AF_INET, socket.AF_INET6):
        threading.Thread(target=udp_echo, args=(family, port), daemon=True).start()
    server = await asyncio.start_server(tcp_echo, sock=listener)
    await server.serve_forever()


class UdpClient(asyncio.DatagramProtocol):
    """Counts what comes back."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.arrived = asyncio.Event()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.seen.add(int(data))
        self.arrived.set()

    def error_received(self, exc: Exception) -> None:
        """A refusal is like silence here: what counts is what comes back."""


async def try_tcp(address: str, port: int) -> bool:
    """Whether a connection echoes."""
    reader, writer = await asyncio.open_connection(address, port)
    writer.write(b"hello")
    answer = await reader.readexactly(5)
    writer.close()
    return answer == b"hello"


async def try_udp(address: str, port: int) -> bool:
    """Whether a datagram comes back."""
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(UdpClient, remote_addr=(address, port))
    try:
        for number in range(3):
            transport.sendto(str(number).encode())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.arrived.wait(), TRY_LIMIT_S / 4)
                return True
        return False
    finally:
        transport.close()


async def try_icmp(address: str, port: int) -> bool:
    """Whether an echo request is answered; the port serves as its identifier."""
    loop = asyncio.get_running_loop()
    version6 = ":" in address
    family = socket.AF_INET6 if version6 else socket.AF_INET
    protocol = socket.getprotobyname("ipv6-icmp" if version6 else "icmp")
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.setblocking(False)
        header = struct.pack("!BBHHH", 128 if version6 else 8, 0, 0, port, 1)
        checksum = 0 if version6 else internet_checksum(header + b"ping")
        packet = header[:2] + struct.pack("!H", checksum) + header[4:] + b"ping"
        raw.connect((address, 0))
        await loop.sock_sendall(raw, packet)
        while True:
            data = await loop.sock_recv(raw, 2000)
            reply = data if version6 else data[(data[0] & 15) * 4 :]
            if reply[0] == (129 if version6 else 0) and reply[4:6] == port.to_bytes(2, "big"):
                return True


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


async def try_one(target: str) -> bool:
    """Try `tcp:ADDRESS:PORT`, `udp:ADDRESS:PORT` or `icmp:ADDRESS:IDENTIFIER`."""
    protocol, rest = target.split(":", 1)
    address, port = rest.rsplit(":", 1)
    attempt = {"tcp": try_tcp, "udp": try_udp, "icmp": try_icmp}[protocol]
    try:
        return await asyncio.wait_for(attempt(address, int(port)), TRY_LIMIT_S)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False


async def try_all(targets: list[str]) -> dict[str, bool]:
    """Try all targets at once."""
    answers = await asyncio.gather(*(try_one(target) for target in targets))
    return dict(zip(targets, answers, strict=True))


async def load_tcp(address: str, port: int, until: float) -> dict[str, Any]:
    """Echo over one connection at a steady pace, and open a fresh one now and then."""
    found: dict[str, Any] = {"messages": 0, "connections": 0, "errors": [], "longest_gap_s": 0.0}

    async def steady() -> None:
        reader, writer = await asyncio.open_connection(address, port)
        last = time.monotonic()
        while time.monotonic() < until:
            writer.write(b"x" * 100)
            await asyncio.wait_for(reader.readexactly(100), 5)
            found["messages"] += 1
            found["longest_gap_s"] = max(found["longest_gap_s"], time.monotonic() - last)
            last = time.monotonic()
            await asyncio.sleep(LOAD_INTERVAL_S)
        writer.close()

    async def fresh() -> None:
        while time.monotonic() < until:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 5)
            writer.write(b"y")
            await asyncio.wait_for(reader.readexactly(1), 5)
            writer.close()
            found["connections"] += 1
            await asyncio.sleep(LOAD_INTERVAL_S * 5)

    for outcome in await asyncio.gather(steady(), fresh(), return_exceptions=True):
        if outcome is not None:
            found["errors"].append(f"{type(outcome).__name__}: {outcome}")
    return found


async def load_udp(address: str, port: int, until: float) -> dict[str, Any]:
    """Send numbered datagrams at a steady pace and count the echoes."""
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(UdpClient, remote_addr=(address, port))
    sent = 0
    while time.monotonic() < until:
        transport.sendto(str(sent).encode())
        sent += 1
        await asyncio.sleep(LOAD_INTERVAL_S)
    deadline = time.monotonic() + 2
    while len(client.seen) < sent and (left := deadline - time.monotonic()) > 0:
        client.arrived.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(client.arrived.wait(), left)
    transport.close()
    lost = sorted(set(range(sent)) - client.seen)
    return {"sent": sent, "lost": len(lost), "first_lost": lost[:5]}


async def load(seconds: float, address: str, port: int) -> dict[str, Any]:
    """Load one address over TCP and UDP."""
    until = time.monotonic() + seconds
    tcp, udp = await asyncio.gather(load_tcp(address, port, until), load_udp(address, port, until))
    return {"tcp": tcp, "udp": udp}


async def bulk(address: str, port: int, size: int) -> dict[str, Any]:
    """Send `size` bytes to an echo server and read them back."""
    reader, writer = await asyncio.open_connection(address, port)
    began = time.monotonic()
    block = bytes(range(256)) * 256

    async def send() -> None:
        for _ in range(size // len(block)):
            writer.write(block)
            await writer.drain()

    async def receive() -> bool:
        whole = True
        for _ in range(size // len(block)):
            whole &= await reader.readexactly(len(block)) == block
        return whole

    _, whole = await asyncio.wait_for(asyncio.gather(send(), receive()), 20)
    writer.close()
    return {"whole": whole, "seconds": time.monotonic() - began}


async def hold(address: str, port: int) -> dict[str, Any]:
    """Talk over one connection until it falls silent or breaks; told on the way by a line."""
    reader, writer = await asyncio.open_connection(address, port)
    messages = 0
    try:
        while True:
            writer.write(b"z")
            await asyncio.wait_for(reader.readexactly(1), HOLD_SILENCE_S)
            messages += 1
            if messages == 1:
                print("talking", flush=True)
            await asyncio.sleep(LOAD_INTERVAL_S)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        end = time.time()
        if isinstance(error, TimeoutError):
            end -= HOLD_SILENCE_S
        return {"messages": messages, "ended_by": type(error).__name__, "last_talk": end}


STORM_LIMIT_S = 20.0
"""Until a connection counts as failed: machines that are busy with other things accept late."""
STORM_TICK_S = 0.002


def until_told() -> asyncio.Event:
    """An event for SIGTERM."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    return told


def family_of(address: str) -> socket.AddressFamily:
    """IPv4 or IPv6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


async def storm(rate: float, address: str, port: int) -> dict[str, Any]:
    """Connect, ask who it is, close: as many a second, whatever becomes of those before."""
    loop, told = asyncio.get_running_loop(), until_told()
    served: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    slowest = 0.0

    async def once() -> None:
        nonlocal slowest
        began = loop.time()
        with socket.socket(family_of(address)) as connection:
            connection.setblocking(False)
            stage = "connect"
            try:
                async with asyncio.timeout(STORM_LIMIT_S):
                    await loop.sock_connect(connection, (address, port))
                    stage = "answer"
                    await loop.sock_sendall(connection, b"who?")
                    answer = await loop.sock_recv(connection, 1000)
            except (OSError, TimeoutError) as error:
                failed[f"{stage}: {type(error).__name__} {error}"] += 1
                return
        slowest = max(slowest, loop.time() - began)
        if answer:
            served[answer.decode().split(" ")[0]] += 1
        else:
            failed["answer: closed"] += 1

    running: set[asyncio.Task[None]] = set()
    started, begun, going = loop.time(), 0, False
    while not told.is_set():
        while begun < (loop.time() - started) * rate:
            task = loop.create_task(once())
            running.add(task)
            task.add_done_callback(running.discard)
            begun += 1
        if not going and served:
            going = True
            print("going", flush=True)
        await asyncio.sleep(STORM_TICK_S)
    took = loop.time() - started
    await asyncio.gather(*running)
    return {
        "connections": begun,
        "seconds": took,
        "served": dict(served),
        "failed": dict(failed),
        "slowest_s": slowest,
    }


async def talk(pause_s: float, targets: list[str]) -> dict[str, Any]:
    """One connection to each target, over which a byte goes there and back now and then."""
    loop, told = asyncio.get_running_loop(), until_told()
    found: dict[str, dict[str, Any]] = {}

    async def one(number: int, target: str, going: asyncio.Event) -> None:
        address, port = target.rsplit(":", 1)
        mine = found[f"{number} {target}"] = {"messages": 0, "error": "", "longest_s": 0.0}
        try:
            reader, writer = await asyncio.open_connection(address, int(port))
            while not told.is_set():
                began = loop.time()
                writer.write(b"t")
                async with asyncio.timeout(STORM_LIMIT_S):
                    await reader.readexactly(1)
                mine["messages"] += 1
                mine["longest_s"] = max(mine["longest_s"], loop.time() - began)
                going.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(told.wait(), pause_s)
            writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            mine["error"] = f"{type(error).__name__} {error}"
            going.set()

    begun = [asyncio.Event() for _ in targets]
    tasks = [
        loop.create_task(one(number, target, begun[number]))
        for number, target in enumerate(targets)
    ]
    await asyncio.gather(*(going.wait() for going in begun))
    print("going", flush=True)
    await asyncio.gather(*tasks)
    return found


BURST = 100
"""Packets of a flood that go at once."""


def flood(
    kind: str, sources: str, address: str, port: int, rate: float, count: int
) -> dict[str, Any]:
    """Packets from every port of every source address, the next address after all ports."""
    first, _, last = sources.partition("-")
    low, high = int(ipaddress.ip_address(first)), int(ipaddress.ip_address(last or first))
    size = 16 if ":" in address else 4
    family = family_of(address)
    target = socket.inet_pton(family, address)
    number = socket.IPPROTO_UDP if kind == "udp" else socket.IPPROTO_TCP
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        failed = 0
        due = started = time.monotonic()
        for sent in range(count):
            source = (low + sent // 64000 % (high - low + 1)).to_bytes(size, "big")
            packet = crafted(number, source, 1024 + sent % 64000, target, port)
            try:
                raw.sendto(packet, (address, 0))
            except OSError:
                failed += 1
            if sent % BURST == 0:
                now = time.monotonic()  # what is late is not made up for
                time.sleep(max(0.0, due - now))
                due = max(due, now) + BURST / rate
    return {"sent": count, "failed": failed, "seconds": time.monotonic() - started}


def crafted(number: int, source: bytes, sport: int, target: bytes, port: int) -> bytes:
    """An IP packet with a SYN or a datagram of one byte in it."""
    if number == socket.IPPROTO_UDP:
        body = struct.pack("!HHHH", sport, port, 9, 0) + b"f"
        at = 6
    else:
        body = struct.pack("!HHIIBBHHH", sport, port, 1, 0, 5 << 4, 2, 65535, 0, 0)
        at = 16
    pseudo = source + target + struct.pack("!HBBH", 0, 0, number, len(body))
    odd = bytes(len(body) % 2)
    checksum = internet_checksum(pseudo + body + odd) or 0xFFFF
    body = body[:at] + struct.pack("!H", checksum) + body[at + 2 :]
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), number, 64) + source + target + body
    # the kernel fills in the length, the identification and the checksum
    return struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, number, 0) + source + target + body


def main() -> None:
    """Run one of the programs."""
    program, *arguments = sys.argv[1:]
    if program == "serve":
        asyncio.run(serve(int(arguments[0])))
    elif program == "try":
        print(json.dumps(asyncio.run(try_all(arguments))))
    elif program == "bulk":
        address, port, size = arguments
        print(json.dumps(asyncio.run(bulk(address, int(port), int(size)))))
    elif program == "load":
        seconds, address, port = arguments
        print(json.dumps(asyncio.run(load(float(seconds), address, int(port)))))
    elif program == "hold":
        address, port = arguments
        print(json.dumps(asyncio.run(hold(address, int(port)))))
    elif program == "storm":
        rate, address, port = arguments
        print(json.dumps(asyncio.run(storm(float(rate), address, int(port)))))
    elif program == "talk":
        print(json.dumps(asyncio.run(talk(float(arguments[0]), arguments[1:]))))
    elif program == "flood":
        kind, sources, address, port, rate, count = arguments
        told = flood(kind, sources, address, int(port), float(rate), int(count))
        print(json.dumps(told))


if __name__ == "__main__":
    main()
