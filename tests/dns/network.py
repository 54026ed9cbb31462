"""A client, a node with the DNS proxy, and a DNS server, in network namespaces of their own.

What the data plane does in eBPF, nftables does here: datagrams and connections of the client to
port 53 are handed to the proxy's sockets, and so is what the server answers to the client's
address, which the proxy speaks under. Only packets are steered; all else is the real thing: the
proxy is the installed program, and the agent's end of its socket is the agent's code.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
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
from cilium.proxy.v1 import proxy_pb2, proxy_pb2_grpc
from cilium_agent.proxies.serving import SERVICE, ProxyServicer, RedirectBoard
from cilium_core.policy.l7 import L7Kind, Redirect
from cilium_core.serving.grpc_server import GrpcServer

from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CLIENT = {4: "10.92.1.2", 6: "fd92:1::2"}
SERVER = {4: "10.92.2.2", 6: "fd92:2::2"}
NODE = {4: "10.92.1.1", 6: "fd92:1::1"}
PROXY_PORT = 10053

_CLONE_NEWNET = 0x40000000
_SETUP = """
ip -n {node} link add c0 type veth peer name eth0 netns {client}
ip -n {node} link add s0 type veth peer name eth0 netns {server}
ip -n {node} link set lo up
ip -n {client} link set lo up
ip -n {server} link set lo up
ip -n {node} addr add 10.92.1.1/24 dev c0
ip -n {node} addr add 10.92.2.1/24 dev s0
ip -n {node} -6 addr add fd92:1::1/64 dev c0 nodad
ip -n {node} -6 addr add fd92:2::1/64 dev s0 nodad
ip -n {client} addr add 10.92.1.2/24 dev eth0
ip -n {client} -6 addr add fd92:1::2/64 dev eth0 nodad
ip -n {server} addr add 10.92.2.2/24 dev eth0
ip -n {server} -6 addr add fd92:2::2/64 dev eth0 nodad
ip -n {node} link set c0 up
ip -n {node} link set s0 up
ip -n {client} link set eth0 up
ip -n {server} link set eth0 up
ip -n {client} route add default via 10.92.1.1
ip -n {client} -6 route add default via fd92:1::1
ip -n {server} route add default via 10.92.2.1
ip -n {server} -6 route add default via fd92:2::1
ip -n {node} rule add fwmark 0x200/0xf00 lookup 2004
ip -n {node} -6 rule add fwmark 0x200/0xf00 lookup 2004
ip -n {node} route add local default dev lo table 2004
ip -n {node} -6 route add local default dev lo table 2004
"""
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


class Namespaces:
    """Three namespaces."""

    def __init__(self, name: str) -> None:
        self.client, self.node, self.server = (f"{name}-{part}" for part in "cns")
        for namespace in (self.client, self.node, self.server):
            subprocess.run(["ip", "netns", "add", namespace], check=True)
        try:
            self._connect()
        except subprocess.CalledProcessError:
            self.close()
            raise

    def _connect(self) -> None:
        for line in _SETUP.strip().splitlines():
            command = line.format(client=self.client, node=self.node, server=self.server)
            subprocess.run(command.split(), check=True)
        nft = ["ip", "netns", "exec", self.node, "nft", "-f", "-"]
        subprocess.run(nft, input=_RULES, text=True, check=True)

    def close(self) -> None:
        """Remove the namespaces."""
        for namespace in (self.client, self.node, self.server):
            subprocess.run(["ip", "netns", "del", namespace], check=False)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """What this thread makes belongs to a namespace. No await inside."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as own:
        with Path(f"/run/netns/{namespace}").open("rb") as other:
            if libc.setns(other.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(own.fileno(), _CLONE_NEWNET)


def udp(namespace: str, family: int, address: tuple[str, int] | None = None) -> socket.socket:
    """A datagram socket in a namespace, bound if an address is given."""
    with inside(namespace):
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        made = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind)
        if address is not None:
            made.bind(address)
    return made


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
            with inside(self._namespace):
                kind = socket.AF_INET6 if family == 6 else socket.AF_INET
                listener = socket.socket(kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            if family == 6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, self._port))
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


class Agent:
    """The agent's end of the proxy's socket; may be stopped and started again."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self.board = RedirectBoard()
        self.names = Names()
        self.records: list[proxy_pb2.Record] = []
        self.lost = 0
        self._server: GrpcServer | None = None

    async def start(self) -> None:
        server = self._server = GrpcServer()
        boards = {L7Kind.DNS: self.board}
        server.add(
            SERVICE,
            proxy_pb2_grpc.add_ProxyServiceServicer_to_server,
            ProxyServicer(boards, self.names, self._take),
        )
        server.listen_unix(self._state_dir / "proxies.sock")
        await server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def _take(self, kind: L7Kind, records: Sequence[proxy_pb2.Record], lost: int) -> None:
        assert kind is L7Kind.DNS
        self.records.extend(records)
        self.lost += lost


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
        with inside(self.namespaces.client):
            kind = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
            sock = socket.socket(kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        await asyncio.get_running_loop().sock_connect(sock, target)
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
