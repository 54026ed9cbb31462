"""A client, a node with the DNS proxy, and a DNS server, in network namespaces of their own.

Datagrams and connections of the client to port 53 are steered to the proxy's sockets. The proxy is
the installed program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from cilium_core.policy.l7 import L7Kind

from tests.agent_ends import AgentEnd
from tests.namespaces import SERVER, Namespaces, connected, listening, udp
from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cilium.proxy.v1 import proxy_pb2
    from cilium_core.policy.l7 import Redirect

PROXY_PORT = 10053

_RULES = f"""
table inet steering {{
  chain incoming {{
    type filter hook prerouting priority mangle; policy accept;
    iif "c0" th dport 53 meta mark set 0x200 jump proxy
    iif "s0" socket transparent 1 meta mark set 0x200 accept
  }}
  chain proxy {{
    meta nfproto ipv4 meta l4proto {{ tcp, udp }} tproxy ip to 127.0.0.1:{PROXY_PORT} accept
    meta nfproto ipv6 meta l4proto {{ tcp, udp }} tproxy ip6 to [::1]:{PROXY_PORT} accept
  }}
  chain leaving {{
    type filter hook postrouting priority mangle; policy accept;
    oif "s0" th dport 53 meta mark 0xb00 counter accept
    oif "s0" th dport 53 counter drop
    oif "c0" th sport 53 meta mark 0xb00 counter accept
    oif "c0" th sport 53 counter drop
  }}
}}
"""


class DnsServer:
    """Answers by a function of the query; remembers what it was asked, and from where."""

    def __init__(self, namespace: str, port: int = 53, host: str | None = None) -> None:
        self._namespace, self._port, self._host = namespace, port, host
        self.asked: list[tuple[dns.message.Message, tuple[str, int]]] = []
        self.respond: Callable[[dns.message.Message], Sequence[bytes]] = addresses
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for family, everywhere in ((4, "0.0.0.0"), (6, "::")):
            if self._host is not None and (":" in self._host) != (family == 6):
                continue
            host = self._host or everywhere
            sock = udp(self._namespace, family)
            if family == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, self._port))
            self._sockets.append(sock)
            loop.add_reader(sock, self._readable, sock)
            listener = listening(self._namespace, self._port, family, host)
            self._servers.append(await asyncio.start_server(self._stream, sock=listener))

    def _readable(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            data, sender = sock.recvfrom(65536)
            for response in self._answer(data, sender):
                sock.sendto(response, sender)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                for response in self._answer(await reader.readexactly(size), peer):
                    writer.write(len(response).to_bytes(2, "big") + response)
                await writer.drain()
        writer.close()

    def _answer(self, data: bytes, sender: tuple[str, int]) -> Sequence[bytes]:
        query = dns.message.from_wire(data)
        self.asked.append((query, sender[:2]))
        return self.respond(query)

    async def stop(self) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        for server in self._servers:
            server.close()
        self._sockets.clear()
        self._servers.clear()


def addresses(
    query: dns.message.Message, *texts: str, ttl: int = 60, rcode: int = 0
) -> list[bytes]:
    """One response with addresses; by default one of the type that was asked for."""
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.Rcode(rcode))
    question = query.question[0]
    default = {dns.rdatatype.A: "192.0.2.1", dns.rdatatype.AAAA: "2001:db8::1"}
    wanted = texts or ([default[question.rdtype]] if question.rdtype in default else [])
    if wanted and not rcode:
        kind = "AAAA" if ":" in wanted[0] else "A"
        response.answer.append(dns.rrset.from_text(question.name, ttl, "IN", kind, *wanted))
    return [response.to_wire()]


class Names:
    """The agent's name manager as the proxy sees it: remembers, and answers when told to."""

    def __init__(self) -> None:
        self.observed: list[proxy_pb2.NameObservation] = []
        self.go = asyncio.Event()
        self.go.set()
        self.lifetime_s = 60.0

    async def observe(self, observations: Sequence[proxy_pb2.NameObservation]) -> list[float]:
        self.observed.extend(observations)
        await self.go.wait()
        return [self.lifetime_s] * len(observations)

    def known(self) -> set[tuple[str, str]]:
        """Names and addresses that were told."""
        return {
            (one.name, socket.inet_ntop({4: socket.AF_INET, 16: socket.AF_INET6}[len(ip)], ip))
            for one in self.observed
            for ip in one.addresses
        }


class Agent(AgentEnd):
    """The agent's end of the proxy's socket, with its names."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir, L7Kind.DNS)
        self.names = Names()

    async def observe(self, observations: Sequence[proxy_pb2.NameObservation]) -> list[float]:
        """Learn names, and tell for how many seconds they are known."""
        return await self.names.observe(observations)


class Lab:
    """All of it together."""

    def __init__(self, state_dir: Path, namespaces: Namespaces) -> None:
        self.state_dir = state_dir
        self.namespaces = namespaces
        self.agent = Agent(state_dir)
        self.server = DnsServer(namespaces.server)
        self.process: subprocess.Popen[bytes] | None = None

    async def enforce(self, redirect: Redirect) -> None:
        """Have the proxy enforce a redirect, and wait until it does."""
        self.agent.board.publish({PROXY_PORT: redirect})
        served = await self.agent.board.served([PROXY_PORT], timeout_s=20)
        assert served == {PROXY_PORT}, self.log()

    def start_proxy(self, *words: str) -> None:
        """Start the program in the node's namespace."""
        program = Path(sys.executable).with_name("cilium-dns-proxy")
        log = (self.state_dir / "proxy.log").open("ab")
        prefix = ["ip", "netns", "exec", self.namespaces.node]
        self.process = subprocess.Popen(
            [*prefix, program, "--state-dir", self.state_dir, "--log-level", "debug", *words],
            stdout=log,
            stderr=log,
        )
        log.close()

    async def stop_proxy(self, signal: int = 9) -> int:
        """End the program, and tell how it ended."""
        assert self.process is not None
        self.process.send_signal(signal)
        return await asyncio.to_thread(self.process.wait, 10)

    def log(self) -> str:
        """What the program wrote."""
        path = self.state_dir / "proxy.log"
        return path.read_text() if path.exists() else ""

    async def listening(self) -> None:
        """Wait until the proxy's sockets are open, whether or not there is an agent."""

        def there() -> bool:
            command = ["ip", "netns", "exec", self.namespaces.node, "ss", "-Hlntu"]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            return output.count(f":{PROXY_PORT} ") == 4

        await eventually(there)

    async def ask(
        self,
        name: str,
        kind: str = "A",
        family: int = 4,
        *,
        tcp: bool = False,
        limit_s: float = 5.0,
        server: str | None = None,
        **flags: Any,
    ) -> dns.message.Message:
        """Ask as the client; raises `TimeoutError` when no answer comes."""
        query = dns.message.make_query(name, kind, **flags)
        data = await self.send(query.to_wire(), family, tcp=tcp, limit_s=limit_s, server=server)
        response = dns.message.from_wire(data)
        assert response.id == query.id
        return response

    async def send(
        self,
        data: bytes,
        family: int = 4,
        *,
        tcp: bool = False,
        limit_s: float = 5.0,
        server: str | None = None,
    ) -> bytes:
        """Send bytes as the client, and return what comes from the very address asked."""
        target = (server or SERVER[family], 53)
        async with asyncio.timeout(limit_s):
            if tcp:
                return await self._send_stream(data, target)
            with contextlib.closing(udp(self.namespaces.client, family)) as sock:
                loop = asyncio.get_running_loop()
                await loop.sock_sendto(sock, data, target)
                answer, sender = await loop.sock_recvfrom(sock, 65536)
                assert sender[:2] == target
                return answer

    async def connect(self, family: int = 4) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to the server, as the client."""
        return await self._open((SERVER[family], 53))

    async def _open(
        self, target: tuple[str, int]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = await connected(self.namespaces.client, *target)
        return await asyncio.open_connection(sock=sock)

    async def _send_stream(self, data: bytes, target: tuple[str, int]) -> bytes:
        reader, writer = await self._open(target)
        try:
            writer.write(framed(data))
            return await read_framed(reader)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def framed(data: bytes) -> bytes:
    """A message as it stands in a stream."""
    return len(data).to_bytes(2, "big") + data


async def read_framed(reader: asyncio.StreamReader) -> bytes:
    """The next message of a stream."""
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


@contextlib.asynccontextmanager
async def lab(state_dir: Path, *, agent: bool = True, proxy: bool = True) -> Any:
    """Namespaces, server, agent and proxy; gone afterwards."""
    namespaces = Namespaces(f"tD-{os.getpid()}-{id(state_dir) % 10_000}")
    one = Lab(state_dir, namespaces)
    try:
        namespaces.load(_RULES)
        await one.server.start()
        if agent:
            await one.agent.start()
        if proxy:
            one.start_proxy()
        yield one
    finally:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait(10)
        await one.agent.stop()
        await one.server.stop()
        namespaces.close()
