"""What proxies saw, from the agent's word to the user's terminal, by way of server and relay."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cilium.metadata.v1 import metadata_pb2
from cilium_core import abi
from flow import flow_pb2
from hubble_relay.app import Relay
from hubble_relay.settings import RelaySettings

from tests.unit.hubble.conftest import Server, running
from tests.unit.hubble.loads import address_of, event, record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Layer7 = flow_pb2.Layer7
HUBBLE = Path(sys.executable).with_name("hubble")

LINES = {
    "dns": [
        (
            "ns0/pod-0:40000 (ID:1000) -> ns1/pod-1:53 (ID:1001) dns-request proxy FORWARDED"
            " (DNS Query web.test. A)"
        ),
        (
            "ns0/pod-0:40000 (ID:1000) <- ns1/pod-1:53 (ID:1001) dns-response proxy FORWARDED"
            ' (DNS Answer "192.0.2.1" TTL: 9 (Proxy web.test. A))'
        ),
    ],
    "http": [
        (
            "ns0/pod-0:40000 (ID:1000) -> ns1/pod-1:80 (ID:1001) http-request DROPPED"
            " (HTTP/1.1 GET http://web/secret)"
        ),
        (
            "ns0/pod-0:40000 (ID:1000) <- ns1/pod-1:80 (ID:1001) http-response FORWARDED"
            " (HTTP/1.1 403 3ms (GET http://web/secret))"
        ),
    ],
    "kafka": [
        (
            "ns0/pod-0:40000 (ID:1000) -> ns1/pod-1:9092 (ID:1001) kafka-request DROPPED"
            " (Kafka request produce correlation id 9 topic 'orders')"
        ),
        (
            "ns0/pod-0:40000 (ID:1000) -> ns1/pod-1:9092 (ID:1001) kafka-request AUDIT"
            " (Kafka request fetch correlation id 10 topic 'orders')"
        ),
    ],
}


QUESTIONS = [
    (("--http-status", "4+"), 1),
    (("--http-status", "404"), 0),
    (("--http-method", "get"), 2),
    (("--http-path", "^/secret$"), 2),
    (("--http-url", "web/s"), 2),
    (("--verdict", "DROPPED"), 2),
    (("--verdict", "AUDIT"), 1),
    (("--protocol", "kafka", "--not", "--verdict", "AUDIT"), 1),
    (("--to-port", "9092", "-t", "l7"), 2),
    (("--pod", "ns0/pod-0", "-t", "l7"), 6),
    (("--from-pod", "ns1/", "-t", "l7"), 2),
    (("-t", "l7", "--last", "2"), 2),
    (("-t", "l7", "--first", "3"), 3),
    (("-t", "l7", "--since", "1h"), 6),
    (("-t", "l7", "--until", "1h"), 0),
]
"""Options of `hubble observe`, and how many flows they find."""


def exchanges() -> list[metadata_pb2.Update]:
    """What an agent tells of three protocols."""
    asked = flow_pb2.DNS(query="web.test.", qtypes=["A"], observation_source="proxy")
    told = flow_pb2.DNS(ips=["192.0.2.1"], ttl=9)
    told.MergeFrom(asked)
    get = flow_pb2.HTTP(method="GET", url="http://web/secret", protocol="HTTP/1.1")
    forbidden = flow_pb2.HTTP(code=403)
    forbidden.MergeFrom(get)
    write = flow_pb2.Kafka(api_key="produce", correlation_id=9, topic="orders", error_code=29)
    read = flow_pb2.Kafka(api_key="fetch", correlation_id=10, topic="orders")
    there, back = (address_of(0), address_of(1)), (address_of(1), address_of(0))
    request, response = flow_pb2.REQUEST, flow_pb2.RESPONSE
    dropped, audit = flow_pb2.DROPPED, flow_pb2.AUDIT
    return [
        record(Layer7(type=request, dns=asked), *there, ports=(40000, 53), udp=True),
        record(Layer7(type=response, dns=told), *back, ports=(53, 40000), udp=True),
        record(Layer7(type=request, http=get), *there, verdict=dropped),
        record(
            Layer7(type=response, http=forbidden, latency_ns=3_700_000), *back, ports=(80, 40000)
        ),
        record(Layer7(type=request, kafka=write), *there, ports=(40000, 9092), verdict=dropped),
        record(Layer7(type=request, kafka=read), *there, ports=(40000, 9092), verdict=audit),
    ]


@asynccontextmanager
async def observed(tmp_path: Path) -> AsyncIterator[Server]:
    """A server that saw the exchanges between two packets, and a relay before it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with running(tmp_path, hubble_listen_address=f"127.0.0.1:{port}") as server:
        node = metadata_pb2.LocalNode(name="node1", cluster="default", addresses=["127.0.0.1"])
        server.app.update(metadata_pb2.Update(local_node=node))
        relay = Relay(
            RelaySettings(
                peer_service=(f"unix://{tmp_path}/hubble.sock",),
                listen_address=(f"unix://{tmp_path}/relay.sock",),
                health_listen_address="",
                disable_client_tls=True,
            )
        )
        await relay.start()
        try:
            packet = event(type=4, saddr=address_of(0), daddr=address_of(1), sport=1, dport=80)
            await server.feed_flows(packet)
            for update in exchanges():
                server.app.update(update)
            await server.until(lambda: server.app.store.head == 7)
            await server.feed_flows(packet)
            yield server
        finally:
            await relay.stop()


async def observe(where: Path, *options: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *(str(HUBBLE), "observe", "--server", f"unix://{where}", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


async def test_lines_of_each_protocol_come_through_server_and_relay(tmp_path: Path) -> None:
    async with observed(tmp_path):
        for where in (tmp_path / "hubble.sock", tmp_path / "relay.sock"):
            for protocol, expected in LINES.items():
                lines = await observe(where, "--protocol", protocol)
                assert expected == [re.sub(r"^.{19}: ", "", line) for line in lines]
            every = await observe(where, "-t", "l7", "--last", "100")
            assert len(every) == 6
            whole = await observe(where)
            assert ["to-endpoint" in line for line in whole] == [True, *[False] * 6, True]


async def test_filters_find_records(tmp_path: Path) -> None:
    async with observed(tmp_path):
        found = [len(await observe(tmp_path / "relay.sock", *one)) for one, _ in QUESTIONS]
    assert [(one, count) for (one, _), count in zip(QUESTIONS, found, strict=True)] == QUESTIONS


async def test_all_formats_show_records(tmp_path: Path) -> None:
    async with observed(tmp_path):
        where = tmp_path / "relay.sock"
        only = ("--protocol", "http", "--first", "1")
        (line,) = await observe(where, *only, "-o", "json")
        flow = json.loads(line)["flow"]
        assert flow["l7"] == {"type": "REQUEST", "http": {"method": "GET", "url": "http://web/secret",
                "protocol": "HTTP/1.1"}}  # fmt: skip
        assert (
            flow["Type"], flow["event_type"], flow["verdict"],
        ) == ("L7", {"type": 129}, "DROPPED")  # fmt: skip
        table = await observe(where, *only, "-o", "table")
        assert "http-request   DROPPED   HTTP/1.1 GET http://web/secret" in table[1]
        assert "       TYPE: http-request" in await observe(where, *only, "-o", "dict")


async def test_records_are_followed_live(tmp_path: Path) -> None:
    async with observed(tmp_path) as server:
        process = await asyncio.create_subprocess_exec(
            *(str(HUBBLE), "observe", "--server", f"unix://{tmp_path}/relay.sock"),
            *("--follow", "--protocol", "kafka", "--last", "1"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                assert b"correlation id 10" in await process.stdout.readline()
                kafka = flow_pb2.Kafka(api_key="fetch", correlation_id=77, topic="orders")
                server.app.update(record(Layer7(type=flow_pb2.REQUEST, kafka=kafka)))
                assert b"correlation id 77" in await process.stdout.readline()
        finally:
            process.terminate()
            await process.wait()


async def test_verdicts_name_match_direction_and_policies_without_further_options(
    tmp_path: Path,
) -> None:
    async with observed(tmp_path) as server:
        ends = {"saddr": address_of(0), "daddr": address_of(1), "sport": 1, "dport": 80}
        flags, proto = abi.constants["EVENT_INGRESS"], {"proto": 6, "tcp_flags": 2}
        for number, match, flag in ((15001, 2, 0), (-133, 0, 0), (0, 1, 16)):
            told = event(type=5, verdict=number, match=match, cookie=1, **ends, **proto)
            told["flags"] |= flags | flag
            await server.feed_flows(told)
        lines = await observe(tmp_path / "relay.sock", "--print-policy-names", "--last", "3")
        assert [re.sub(r"^.*\) (policy.*) \(.*$", r"\1", line) for line in lines] == [
            "policy-verdict:L3-L4 INGRESS ALLOWED BY rule1 (CiliumNetworkPolicy)",
            "policy-verdict:none INGRESS DENIED BY rule1 (CiliumNetworkPolicy)",
            "policy-verdict:L3-Only INGRESS AUDITED BY rule1 (CiliumNetworkPolicy)",
        ]
