"""Random flows, and random filters that ask for what is in them.

A filter that is made of values alone would hardly ever hold, so most values of a filter are taken
from one of the flows, some of those a little changed, and the rest from values at the edge of what
each field may say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from flow import flow_pb2

Flow = flow_pb2.Flow
Filter = flow_pb2.FlowFilter

_NAMES = ("cart-1", "cart-2", "db-0", "web", "Web", "a.b", "")
_NAMESPACES = ("shop", "default", "kube-system", "")
_LABELS = (
    "k8s:app=cart", "k8s:app=db", "any:tier=1", "reserved:host", "reserved:world", "app=plain",
    "k8s:io.kubernetes.pod.namespace=shop", "container:x=y", "k8s:n=5", "k8s:empty", "k8s:a/b=c.d",
    "cidr:10.0.0.0/8=", "k8s:app=", "fqdn:*.example.com",
)  # fmt: skip
_ADDRESSES = (
    "10.0.0.1", "10.0.1.5", "192.168.7.255", "172.16.0.0", "0.0.0.0", "255.255.255.255", "",
    "fd00::1", "FD00::1", "fd00:0::1", "fe80::abcd", "2001:db8::1:0:1", "::", "::1", "bad",
    "::ffff:10.0.0.1", "fe80::1%eth0",
)  # fmt: skip
_NODES = ("n1", "N1", "kind-a/worker1", "kind-a/w.x_y", "default/n1", "c/d/e", "worker-10", "")
_DOMAINS = (
    "example.com",
    "www.example.com",
    "a_b.c",
    "A.B",
    "x-1.y",
    "com",
    "deep.www.example.com",
)
_URLS = (
    "http://x/a/b?c=d", "/rel/path", "", "http://x/%41b", "http://[bad", "relative", "http://h",
    "*", "http://x/a%zz", "mailto:a@b", "http://x/a b", "https://x:8443/v1/items/42#top", "//x/y",
    "http://[::1]:80/six", "/a?b=%zz", "http://x/\u00e9", "http://u:p@h:8/p%2Fq",
    "http://a:b:c/d", "ftp://a:b:80/d", "http://a b/c", "http://[fe80::1%25e]/z", "://x", "1a:/b",
    "http://[1.2.3.4]/q", "http://h:x/p", "http://%41/p", "http://h%C3%A9/p", "a:b", "/p%2", "x:/y",
    "http://u v@h/p", "http://h|/p", "/a#b", "http:///p", "/\tp", "http://h?q=/n",
)  # fmt: skip
_QUERIES = ("example.com.", "a.b.", "www.example.com.", "x-1.y.", "")
_PORTS = (0, 53, 80, 443, 1000, 8080, 40000, 65535)
_IDENTITIES = (0, 1, 2, 6, 300, 4567, 16777217)
_REGEXES = (
    "^/", "b$", ".*", "", "Ab", "%41", "path", "^$", "a{1,2}", r"\d+", "(?i)REL", "[a-c]+", "x|y",
    "(?P<n>a)", r"\pL", r"^[^/]*$", r"\.com\.$", "^www", "(a", "[", "a{2,1}", "*", "(?=x)", "x**",
)  # fmt: skip
_SELECTORS = (
    "app=cart", "k8s:app=cart", "any:app", "app!=cart", "app in (cart,db)", "app notin (cart)",
    "!app", "!k8s:app", "reserved:host", "app=cart,!x", "app==db", "", "n>4", "n<4", "tier=1",
    "io.kubernetes.pod.namespace=shop", "k8s:io.kubernetes.pod.namespace in (shop,web)", "app=",
    "app in ()", "app,empty", "kubernetes.io/os=linux", "zone in (a,b)", "role", "!role", "x y",
    "app in (cart", "=x", "a:b:c", "n>x", "app in (cart),tier", "any.app", "app notin (,db)",
)  # fmt: skip
_ODD: dict[str, tuple[Any, ...]] = {
    "address": (
        "10.0.0.0/8", "10.0.0.1/8", "0.0.0.0/0", "::/0", "fd00::/16", "::ffff:10.0.0.0/104",
        "fe80::/10", "192.168.7.0/25", "10.0.0.1/32", "fd00::1/128", "10.0.0.01", "1.1.1", "",
        "1.1.1.1/33", "10.0.0.0/08", "a/b", "fe80::1%eth0", "::ffff:10.0.0.1",
    ),
    "name": ("shop/", "/cart", "cart", "/", "default/", "shop/cart-1/x", "shop/car", "db", ""),
    "fqdn": (
        "*.example.com", "*", "*example*", "EXAMPLE.com.", "a..", "", "  com ", "a_b.c", "a b",
        "*.", ".", "x-1.*", "*.*.example.com", "\u00e9",
    ),
    "node": (
        "*", "default/", "kind-a/", "kind-a/*", "/n1", "a/b/c", "", "kind-*/w*", "worker*", "N1",
        "/", "*/*", "n1.", "n 1", "w.x_y",
    ),
    "port": ("80", "0", "53", "65535", "65536", "-1", "x", "", "+80", "080", "0x50", " 80"),
    "protocol": (
        "tcp", "TCP", "udp", "icmp", "ICMPv4", "icmpv6", "sctp", "vrrp", "igmp", "dns", "http",
        "Kafka", "foo", "",
    ),
    "status": ("200", "404", "4+", "40+", "5+", "6+", "+", "4", "20x", "0+", "200+", ""),
}  # fmt: skip
_MUTATED = 0.1
_LETTERS = "aZ09 .,:;/=!*+-_()[]{}<>%#@&|^$?'\"~\\\t\u00e9"
_EXPRESSIONS: tuple[str, ...] = (
    "_flow.verdict == Verdict.{verdict}", "_flow.verdict != Verdict.DROPPED",
    "_flow.verdict in [Verdict.DROPPED, Verdict.AUDIT]", "int(_flow.verdict) >= {small}",
    "has(_flow.l4.TCP)", "has(_flow.l7)", "has(_flow.is_reply)", "_flow.is_reply == true",
    "_flow.is_reply == null", "_flow.is_reply.value", "_flow.reply", "has(_flow.source.identity)",
    "_flow.l4.TCP.destination_port == {port}u", "_flow.l4.UDP.source_port < {port}u",
    "_flow.l4.TCP.flags.SYN && !_flow.l4.TCP.flags.ACK", "_flow.source.identity > {identity}u",
    "_flow.destination.identity % 2u == {small}u", "_flow.IP.source.startsWith('10.')",
    "_flow.IP.destination.contains(':')", "_flow.IP.source.matches('^(10|fd00)')",
    "_flow.IP.ipVersion == IPVersion.IPv6", "_flow.IP.encrypted", "_flow.node_name == '{node}'",
    "_flow.node_name.endsWith('1')", "_flow.node_name in ['n1', '{node}']",
    "_flow.source.labels.exists(l, l == '{label}')", "_flow.source.labels.all(l, l.size() > {n})",
    "_flow.destination.labels.exists_one(l, l.startsWith('k8s:'))",
    "size(_flow.source.labels) > {small}", "_flow.source.labels[0] == '{label}'",
    "'{label}' in _flow.destination.labels", "'{domain}' in _flow.destination_names",
    "_flow.source_names.filter(n, n.contains('.')).size() == {small}",
    "_flow.source_names.map(n, n + '.').exists(n, n == '{domain}.')",
    "_flow.l7.http.code >= 400u", "_flow.l7.http.method == 'GET'", "_flow.l7.dns.query != ''",
    "_flow.l7.http.headers.exists(h, h.key == 'a' && h.value == 'b')", "_flow.l7.kafka.topic > 'o'",
    "_flow.event_type.type == {event}", "_flow.event_type.type in [4, 129]",
    "_flow.traffic_direction == TrafficDirection.INGRESS", "_flow.source.pod_name != ''",
    "_flow.source.namespace == _flow.destination.namespace", "_flow.source == _flow.destination",
    "1 / int(_flow.event_type.type) > 0", "_flow.source.pod_name < _flow.destination.pod_name",
    "_flow.source.workloads.exists(w, w.kind == 'Deployment')", "_flow.interface.index != 0u",
    "(_flow.uuid == '{uuid}' ? 1 : 2) == 1", "string(_flow.source.identity).size() == {small}",
    "double(_flow.event_type.type) * 0.5 == 2.0", "dyn(_flow.uuid) == 5", "_flow.uuid == 5",
    "_flow.nothing", "_flow.uuid", "type(_flow.uuid) == string", "_flow.uuid =~ 'x'", "true", "!",
    "_flow.Type == FlowType.L7", "_flow.trace_context.parent.trace_id == 'abc'",
    "_flow.ip_trace_id.trace_id == 5u", "_flow.drop_reason_desc == DropReason.POLICY_DENIED",
    "_flow.source.cluster_name == 'c1' || _flow.destination.cluster_name == 'c1'",
)  # fmt: skip


def random_flow(chance: Random) -> Flow:
    """A flow that no node ever saw."""
    flow = Flow(
        uuid=f"u{chance.randrange(7)}",
        verdict=chance.choice(flow_pb2.Verdict.values()),
        drop_reason_desc=chance.choice(
            [0, flow_pb2.POLICY_DENIED, flow_pb2.POLICY_DENY, flow_pb2.INVALID_SOURCE_MAC]
        ),
        node_name=chance.choice(_NODES),
        node_labels=_some(chance, ("kubernetes.io/os=linux", "zone=a", "zone=b", "role")),
        source_names=_some(chance, _DOMAINS),
        destination_names=_some(chance, _DOMAINS),
        traffic_direction=chance.choice(flow_pb2.TrafficDirection.values()),
        Type=chance.choice(flow_pb2.FlowType.values()),
    )
    for end in (flow.source, flow.destination):
        _random_end(chance, end)
    for service in (flow.source_service, flow.destination_service):
        if chance.random() < 0.3:
            service.name, service.namespace = chance.choice(_NAMES), chance.choice(_NAMESPACES)
    if chance.random() < 0.85:
        flow.IP.source, flow.IP.destination = (chance.choice(_ADDRESSES) for _ in range(2))
        flow.IP.source_xlated = chance.choice(("", "", *_ADDRESSES))
        flow.IP.ipVersion = chance.choice(flow_pb2.IPVersion.values())
        flow.IP.encrypted = chance.random() < 0.3
    _random_l4(chance, flow)
    _random_l7(chance, flow)
    if chance.random() < 0.85:
        flow.event_type.type = chance.choice([0, 1, 3, 4, 4, 5, 7, 129])
        flow.event_type.sub_type = chance.choice([0, 1, 5, 11, 133])
    if chance.random() < 0.6:
        flow.is_reply.value = chance.random() < 0.5
        flow.reply = flow.is_reply.value
    if chance.random() < 0.4:
        flow.interface.index = chance.choice([0, 2, 3])
        flow.interface.name = chance.choice(["eth0", "lxc1", ""])
    if chance.random() < 0.3:
        flow.trace_context.parent.trace_id = chance.choice(["abc", "", "ab" * 16])
    if chance.random() < 0.3:
        flow.ip_trace_id.trace_id = chance.choice([0, 5, 1 << 63])
    return flow


def _some(chance: Random, values: Sequence[str]) -> list[str]:
    return chance.sample(values, chance.choice([0, 0, 1, 2, 3]))


def _random_end(chance: Random, end: flow_pb2.Endpoint) -> None:
    if chance.random() < 0.1:
        return
    end.identity = chance.choice(_IDENTITIES)
    end.namespace, end.pod_name = chance.choice(_NAMESPACES), chance.choice(_NAMES)
    end.labels.extend(sorted(_some(chance, _LABELS)))
    end.cluster_name = chance.choice(["", "c1", "default"])
    for _ in range(chance.choice([0, 0, 1, 2])):
        end.workloads.add(
            name=chance.choice(["cart", "db", ""]), kind=chance.choice(["Deployment", "Job", ""])
        )


def _random_l4(chance: Random, flow: Flow) -> None:
    kind = chance.choice(
        ["TCP", "TCP", "TCP", "UDP", "SCTP", "ICMPv4", "ICMPv6", "VRRP", "IGMP", ""]
    )
    if not kind:
        return
    transport = getattr(flow.l4, kind)
    transport.SetInParent()
    if kind in ("TCP", "UDP", "SCTP"):
        transport.source_port, transport.destination_port = (
            chance.choice(_PORTS) for _ in range(2)
        )
    if kind == "TCP" and chance.random() < 0.85:
        transport.flags.SetInParent()
        for field in transport.flags.DESCRIPTOR.fields:
            setattr(transport.flags, field.name, chance.random() < 0.3)


def _random_l7(chance: Random, flow: Flow) -> None:
    kind = chance.choice(["", "", "", "http", "http", "dns", "kafka", "none"])
    if not kind:
        return
    flow.l7.type = chance.choice(flow_pb2.L7FlowType.values())
    if kind == "http":
        http = flow.l7.http
        http.SetInParent()
        http.code = chance.choice([0, 200, 204, 404, 503, 99, 1000])
        http.method = chance.choice(["GET", "get", "POST", "gEt", "\u00df", ""])
        http.url = chance.choice(_URLS)
        for _ in range(chance.choice([0, 0, 1, 2])):
            http.headers.add(key=chance.choice("aAb"), value=chance.choice(["b", "D", ""]))
    elif kind == "dns":
        flow.l7.dns.SetInParent()
        flow.l7.dns.query = chance.choice(_QUERIES)
    elif kind == "kafka":
        flow.l7.kafka.api_key, flow.l7.kafka.topic = "fetch", "orders"


# ---- filters ----

Pick = Callable[[Random, Flow], Sequence[Any]]
"""Values of a field that would let one flow pass."""


def random_filters(chance: Random, flows: Sequence[Flow]) -> list[Filter]:
    """One to three entries of a list of filters; all hold of some flows now and then."""
    return [random_filter(chance, flows) for _ in range(chance.choice([1, 1, 1, 2, 3]))]


def random_filter(chance: Random, flows: Sequence[Flow]) -> Filter:
    """An entry with up to four fields, most of them as one and the same flow has them."""
    entry, like = Filter(), chance.choice(flows)
    for name in chance.sample(sorted(FIELDS), chance.choice([0, 1, 1, 1, 2, 2, 3, 4])):
        own, odd = FIELDS[name]
        mutated = chance.random() < _MUTATED
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            taken = own(chance, like) if chance.random() < 0.7 else ()
            value = chance.choice(taken or odd)
            getattr(entry, name).append(_mutated(chance, value) if mutated else value)
    if chance.random() < 0.12:
        for _ in range(chance.choice([1, 1, 2])):
            entry.experimental.cel_expression.append(random_expression(chance, like))
    return entry


def _mutated(chance: Random, value: Any) -> Any:
    """A text with a letter more, less or different; other values as they are."""
    if not isinstance(value, str):
        return value
    at, letter = chance.randint(0, len(value)), chance.choice(_LETTERS)
    return value[:at] + chance.choice([letter, letter, ""]) + value[at + chance.choice([0, 1]) :]


def random_expression(chance: Random, like: Flow) -> str:
    """An expression of CEL about flows; some are none."""
    parts = [
        chance.choice(_EXPRESSIONS).format(
            verdict=chance.choice(flow_pb2.Verdict.keys()),
            port=chance.choice(_PORTS),
            identity=chance.choice([like.source.identity, *_IDENTITIES]),
            node=like.node_name,
            label=chance.choice([*like.source.labels, *like.destination.labels, "k8s:app=cart"]),
            domain=chance.choice([*like.destination_names, *like.source_names, "a"]),
            event=like.event_type.type,
            uuid=like.uuid,
            small=chance.randrange(4),
            n=chance.randrange(14),
        )
        for _ in range(chance.choice([1, 1, 2, 3]))
    ]
    text = parts[0]
    for part in parts[1:]:
        text = f"{text} {chance.choice(['&&', '||'])} {part}"
    return f"!({text})" if chance.random() < 0.2 else text


def _as_is(path: str) -> Pick:
    def pick(_: Random, flow: Flow) -> Sequence[Any]:
        value: Any = flow
        for name in path.split("."):
            value = getattr(value, name)
        return [value]

    return pick


def _address(path: str) -> Pick:
    get = _as_is(path)

    def pick(chance: Random, flow: Flow) -> Sequence[str]:
        (address,) = get(chance, flow)
        if address and address != "bad" and "%" not in address and chance.random() < 0.4:
            address += f"/{chance.randrange(0, 129 if ':' in address else 33)}"
        return [address]

    return pick


def _name(end: str, name: str) -> Pick:
    def pick(chance: Random, flow: Flow) -> Sequence[str]:
        found = getattr(flow, end)
        text = getattr(found, name)
        text = text[: chance.randint(0, len(text))] if chance.random() < 0.5 else text
        namespace = chance.choice([found.namespace, found.namespace, ""])
        return [chance.choice([f"{namespace}/{text}", f"{namespace}/{text}", text])]

    return pick


def _label(path: str) -> Pick:
    get = _as_is(path)

    def pick(chance: Random, flow: Flow) -> Sequence[str]:
        (labels,) = get(chance, flow)
        if not labels:
            return ()
        label = chance.choice(list(labels))
        key, _, value = label.partition("=")
        bare = label.partition(":")[2] or label
        texts = [label, key, f"!{key}", f"{key}!={value}", f"{key} in ({value},x)", bare]
        return [chance.choice([*texts, f"{key} notin ({value})", f"{label},{bare}"])]

    return pick


def _workload(end: str) -> Pick:
    def pick(chance: Random, flow: Flow) -> Sequence[flow_pb2.Workload]:
        return [
            flow_pb2.Workload(
                name=chance.choice([one.name, ""]), kind=chance.choice([one.kind, "", "Job"])
            )
            for one in getattr(flow, end).workloads
        ]

    return pick


def _pattern(path: str) -> Pick:
    get = _as_is(path)

    def pick(chance: Random, flow: Flow) -> Sequence[str]:
        (found,) = get(chance, flow)
        names = [found] if isinstance(found, str) else list(found)
        return [
            chance.choice([name, name, f"*{name[1:]}", f"{name[:-1]}*", name.upper(), f"{name}."])
            for name in names
        ]

    return pick


def _regex(path: str) -> Pick:
    get = _as_is(path)

    def pick(chance: Random, flow: Flow) -> Sequence[str]:
        (text,) = get(chance, flow)
        if "[" in text or not text:
            return ()
        start = chance.randrange(len(text))
        part = text[start : start + chance.randint(1, 6)].replace("?", r"\?")
        return [chance.choice([part, f"^{part}", f"{part}$", f"(?i){part.upper()}"])]

    return pick


def _port(end: str) -> Pick:
    def pick(_: Random, flow: Flow) -> Sequence[str]:
        kind = flow.l4.WhichOneof("protocol")
        found = getattr(flow.l4, kind) if kind else None
        return [str(getattr(found, f"{end}_port"))] if hasattr(found, f"{end}_port") else ()

    return pick


def _flags(chance: Random, flow: Flow) -> Sequence[flow_pb2.TCPFlags]:
    wanted = flow_pb2.TCPFlags()
    for field, _ in flow.l4.TCP.flags.ListFields():
        setattr(wanted, field.name, chance.random() < 0.6)
    return [wanted]


def _event(chance: Random, flow: Flow) -> Sequence[flow_pb2.EventTypeFilter]:
    return [
        flow_pb2.EventTypeFilter(
            type=chance.choice([flow.event_type.type, 0]),
            match_sub_type=chance.random() < 0.5,
            sub_type=flow.event_type.sub_type,
        )
    ]


def _interface(chance: Random, flow: Flow) -> Sequence[flow_pb2.NetworkInterface]:
    found = flow.interface
    return [
        flow_pb2.NetworkInterface(
            index=chance.choice([found.index, 0]), name=chance.choice([found.name, "", "eth0"])
        )
    ]


def _protocol(chance: Random, flow: Flow) -> Sequence[str]:
    kinds = [flow.l4.WhichOneof("protocol"), flow.l7.WhichOneof("record")]
    return [chance.choice([kind.lower(), kind]) for kind in kinds if kind]


def _status(chance: Random, flow: Flow) -> Sequence[str]:
    code = f"{flow.l7.http.code:03d}"
    return [chance.choice([code, f"{code[:1]}+", f"{code[:2]}+"])] if flow.l7.http.code else ()


def _method(chance: Random, flow: Flow) -> Sequence[str]:
    method = flow.l7.http.method
    return [chance.choice([method, method.lower(), method.upper()])] if method else ()


def _headers(_: Random, flow: Flow) -> Sequence[flow_pb2.HTTPHeader]:
    return list(flow.l7.http.headers)


def _ends(name: str, pick: Callable[[str], Pick], odd: Sequence[Any]) -> dict[str, Any]:
    return {f"{end}_{name}": (pick(end), odd) for end in ("source", "destination")}


FIELDS: dict[str, tuple[Pick, Sequence[Any]]] = {
    "uuid": (_as_is("uuid"), ("", "nope")),
    "source_ip": (_address("IP.source"), _ODD["address"]),
    "destination_ip": (_address("IP.destination"), _ODD["address"]),
    "source_ip_xlated": (_address("IP.source_xlated"), _ODD["address"]),
    **_ends("pod", lambda end: _name(end, "pod_name"), _ODD["name"]),
    **_ends("service", lambda end: _name(f"{end}_service", "name"), _ODD["name"]),
    **_ends("fqdn", lambda end: _pattern(f"{end}_names"), _ODD["fqdn"]),
    **_ends("label", lambda end: _label(f"{end}.labels"), _SELECTORS),
    **_ends(
        "workload", _workload, (flow_pb2.Workload(), flow_pb2.Workload(name="car", kind="Job"))
    ),
    **_ends("cluster_name", lambda end: _as_is(f"{end}.cluster_name"), ("c1", "c*", "x", "")),
    **_ends("identity", lambda end: _as_is(f"{end}.identity"), _IDENTITIES),
    **_ends("port", _port, _ODD["port"]),
    "traffic_direction": (_as_is("traffic_direction"), flow_pb2.TrafficDirection.values()),
    "verdict": (_as_is("verdict"), flow_pb2.Verdict.values()),
    "drop_reason_desc": (_as_is("drop_reason_desc"), (0, flow_pb2.POLICY_DENIED)),
    "interface": (_interface, (flow_pb2.NetworkInterface(),)),
    "event_type": (_event, (flow_pb2.EventTypeFilter(), flow_pb2.EventTypeFilter(type=129))),
    "http_status_code": (_status, _ODD["status"]),
    "protocol": (_protocol, _ODD["protocol"]),
    "reply": (_as_is("is_reply.value"), (True, False)),
    "dns_query": (_regex("l7.dns.query"), _REGEXES),
    "http_method": (_method, ("GET", "post", "\u1e9e", "")),
    "http_path": (_regex("l7.http.url"), _REGEXES),
    "http_url": (_regex("l7.http.url"), _REGEXES),
    "http_header": (_headers, (flow_pb2.HTTPHeader(), flow_pb2.HTTPHeader(key="a", value="b"))),
    "tcp_flags": (_flags, (flow_pb2.TCPFlags(), flow_pb2.TCPFlags(SYN=True))),
    "node_name": (_pattern("node_name"), _ODD["node"]),
    "node_labels": (_label("node_labels"), _SELECTORS),
    "ip_version": (_as_is("IP.ipVersion"), flow_pb2.IPVersion.values()),
    "trace_id": (_as_is("trace_context.parent.trace_id"), ("", "abc")),
    "ip_trace_id": (_as_is("ip_trace_id.trace_id"), (0, 5)),
    "encrypted": (_as_is("IP.encrypted"), (True, False)),
}
"""How values of a field are taken from a flow, and other values that it may have."""
