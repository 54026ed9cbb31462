"""Queries: what is understood, and that nobody else understands it differently."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.tsig
import pytest
from cilium_core.policy.l7 import DnsRule, L7Kind, Redirect
from dns_proxy.gates import Gate
from dns_proxy.messages import (
    Fault,
    MessageError,
    name_text,
    parse_query,
    refusal,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

ALLOWED = DnsRule(name="api.example.com"), DnsRule(pattern="*.allowed.test")
GATE = Gate(10053, Redirect(ingress=False, kind=L7Kind.DNS, dns=ALLOWED))


def wire(name: str = "api.example.com.", kind: str = "A", **options) -> bytes:
    return dns.message.make_query(name, kind, id=4711, **options).to_wire()


def fault(data: bytes) -> Fault:
    with pytest.raises(MessageError) as caught:
        parse_query(data)
    return caught.value.fault


def test_a_plain_query_is_understood():
    query = parse_query(wire("API.Example.COM.", "AAAA"))

    assert (query.name, query.qtype, query.qclass) == ("api.example.com.", 28, 1)
    assert query.question == b"\x03API\x07Example\x03COM\x00\x00\x1c\x00\x01"


def test_extensions_and_signatures_are_understood():
    assert parse_query(wire(use_edns=0, payload=1232, want_dnssec=True)).qtype == 1
    query = dns.message.make_query("api.example.com.", "A", use_edns=0)
    query.use_tsig(dns.tsig.Key("key.test.", "c2VjcmV0c2VjcmV0c2VjcmV0"))
    assert parse_query(query.to_wire()).name == "api.example.com."


def test_the_root_has_a_name():
    assert parse_query(wire(".", "NS")).name == "."


def test_bytes_that_are_no_plain_characters_are_escaped():
    assert name_text([b"a.b", b"\x00\xff", b'q"\\', b"x*"]) == 'a\\.b.\\000\\255.q\\"\\\\.x*.'


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", Fault.SHORT),
        (wire()[:11], Fault.SHORT),
        (dns.message.make_response(dns.message.from_wire(wire())).to_wire(), Fault.RESPONSE),
        (wire()[:2] + b"\x28" + wire()[3:], Fault.OPCODE),
        (wire()[:2] + b"\x03" + wire()[3:], Fault.FLAGS),
        (wire()[:3] + b"\x05" + wire()[4:], Fault.FLAGS),
        (wire()[:5] + b"\x00" + wire()[6:], Fault.COUNTS),
        (wire()[:5] + b"\x02" + wire()[6:] + wire("evil.test.")[12:], Fault.COUNTS),
        (wire()[:7] + b"\x01" + wire()[8:], Fault.COUNTS),
        (wire()[:9] + b"\x01" + wire()[10:], Fault.COUNTS),
        (wire()[:11] + b"\x03" + wire()[12:], Fault.COUNTS),
        (wire()[:11] + b"\x01" + wire()[12:], Fault.RECORD),
        (wire() + b"\x00", Fault.TRAILING),
        (wire(use_edns=0) + b"\x00", Fault.TRAILING),
        (wire(use_edns=0)[:-1], Fault.RECORD),
        (wire()[:-1], Fault.RECORD),
        (wire()[:-5], Fault.NAME),
        (wire()[:12] + b"\xc0\x0c\x00\x01\x00\x01", Fault.NAME),
        (wire()[:12] + b"\x40" + bytes(70), Fault.NAME),
        (wire()[:12] + b"\x01a" * 128 + b"\x00\x00\x01\x00\x01", Fault.NAME),
    ],
)
def test_everything_else_is_refused_and_told_apart(data, expected):
    assert fault(data) is expected


def test_an_option_twice_or_of_the_wrong_size_is_refused():
    opt = wire(use_edns=0)[len(wire()) :]
    twice = wire()[:11] + b"\x02" + wire()[12:] + opt + opt
    crooked = wire()[:11] + b"\x01" + wire()[12:] + opt[:-2] + b"\x00\x03\x00\x0a\x01"

    assert fault(twice) is Fault.RECORD
    assert fault(crooked) is Fault.RECORD


def test_a_record_that_is_no_extension_is_refused():
    update = dns.message.from_wire(wire())
    update.additional.append(
        dns.message.from_text("id 1\n;ANSWER\nx.test. 1 IN A 192.0.2.1").answer[0]
    )
    assert fault(update.to_wire()) is Fault.RECORD


@pytest.mark.parametrize("rcode", [dns.rcode.REFUSED, dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL])
def test_a_refusal_is_a_response_to_the_query(rcode):
    data = wire("www.example.com.", "AAAA")
    response = dns.message.from_wire(refusal(data, parse_query(data).question, rcode))
    query = dns.message.from_wire(data)

    assert query.is_response(response)
    assert response.rcode() == rcode
    assert response.flags & dns.flags.RD


def test_a_message_that_is_not_understood_is_answered_without_a_question():
    response = dns.message.from_wire(refusal(wire(), b"", 1))
    assert (response.rcode(), response.question) == (1, [])


labels = st.lists(st.binary(min_size=1, max_size=63), max_size=6).filter(
    lambda parts: sum(len(part) + 1 for part in parts) < 255
)
friendly = st.sampled_from(
    ["api.example.com.", "x.allowed.test.", "a.b.allowed.test.", "allowed.test.", "evil.test."]
)


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """A query with something changed: bytes replaced, cut out, put in, or sections recounted."""
    options = draw(st.sampled_from([{}, {"use_edns": 0}, {"use_edns": 0, "want_dnssec": True}]))
    data = bytearray(wire(draw(friendly), draw(st.sampled_from(["A", "AAAA", "ANY"])), **options))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["replace", "cut", "insert", "count", "append"])):
            case "replace":
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place : place + draw(st.integers(1, 4))]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=6))
            case "count":
                data[min(5 + 2 * draw(st.integers(0, 3)), len(data) - 1)] = draw(st.integers(0, 3))
            case "append":
                data += draw(
                    st.sampled_from([wire("evil.test.")[12:], b"\xc0\x0c\x00\x01\x00\x01"])
                )
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=80), hostile()))
@example(wire("api.example.com.")[:12] + b"\x03api\x07example\x03com\xc0\x0c\x00\x01\x00\x01")
def test_what_is_understood_is_what_another_reader_understands(data):
    try:
        query = parse_query(data)
    except MessageError:
        return
    try:
        other = dns.message.from_wire(data, keyring=False)
    except dns.exception.DNSException as error:  # stricter about options that do not matter here
        pytest.fail(f"understood {data!r}, which is {error!r}")
    assert len(other.question) == 1
    assert other.question[0].name == dns.name.from_text(query.name)
    assert (other.question[0].rdtype, other.question[0].rdclass) == (query.qtype, query.qclass)
    assert not other.answer
    assert not other.authority
    assert not other.additional


@settings(deadline=None)
@given(hostile())
def test_no_message_that_passes_asks_for_a_name_that_may_not_be_asked_for(data):
    judgement = GATE.judge(data)
    if judgement.allowed:
        name = dns.message.from_wire(data, keyring=False).question[0].name.to_text().lower()
        stem = name.removesuffix(".allowed.test.")
        assert name == "api.example.com." or (stem != name and "." not in stem)


@settings(deadline=None)
@given(labels)
def test_names_of_any_bytes_read_back_as_the_same_name(parts):
    data = bytes(12) + b"".join(bytes([len(p)]) + p for p in parts) + b"\x00\x00\x01\x00\x01"
    query = parse_query(data[:5] + b"\x01" + data[6:])

    assert dns.name.from_text(query.name) == dns.name.Name([*parts, b""])


@settings(deadline=None)
@given(labels)
def test_only_plain_names_match_a_pattern(parts):
    name = name_text(parts)
    if GATE.allows(name):
        assert name == "api.example.com." or (len(parts) == 3 and b"." not in parts[0])
