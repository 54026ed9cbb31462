"""Answers: which addresses a name has by them, and that nothing malformed counts."""

from __future__ import annotations

import ipaddress

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from dns_proxy.answers import NO_TTL, Answer, parse_answer, same_question
from dns_proxy.messages import Fault, MessageError, parse_query
from hypothesis import given, settings
from hypothesis import strategies as st

NAME = "api.example.com."


def query(kind: str = "A", name: str = NAME) -> dns.message.Message:
    return dns.message.make_query(name, kind, use_edns=0)


def answer(*records: str, asked: dns.message.Message | None = None, rcode: int = 0) -> Answer:
    asked = asked or query()
    response = dns.message.make_response(asked)
    response.set_rcode(dns.rcode.Rcode(rcode))
    for record in records:
        name, ttl, kind, value = record.split(" ", 3)
        response.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, value))
    return parse_answer(response.to_wire(), parse_query(asked.to_wire()))


def texts(found: Answer) -> list[str]:
    return found.address_texts


def test_addresses_of_both_families_are_found_once_and_in_order():
    found = answer(
        f"{NAME} 60 A 192.0.2.1", f"{NAME} 30 A 192.0.2.2", f"{NAME} 90 AAAA 2001:db8::1"
    )

    assert texts(found) == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    assert (found.ttl_s, found.rcode, found.types) == (30, 0, ("A", "AAAA"))


def test_aliases_lead_to_addresses_in_whatever_order_and_the_shortest_life_counts():
    found = answer(
        "edge.cdn.test. 300 A 192.0.2.9",
        "cdn.test. 5 CNAME edge.cdn.test.",
        f"{NAME} 60 CNAME cdn.test.",
    )

    assert texts(found) == ["192.0.2.9"]
    assert (found.ttl_s, found.aliases) == (5, ("cdn.test.", "edge.cdn.test."))


def test_an_address_of_another_name_is_not_learned():
    found = answer(f"{NAME} 60 A 192.0.2.1", "bank.test. 60 A 192.0.2.66")

    assert texts(found) == ["192.0.2.1"]


def test_aliases_in_a_circle_lead_nowhere():
    found = answer(f"{NAME} 60 CNAME a.test.", f"a.test. 60 CNAME {NAME}")

    assert (texts(found), found.aliases) == ([], ("a.test.",))


def test_names_are_compared_whatever_their_case():
    assert texts(answer("API.example.COM. 60 A 192.0.2.1")) == ["192.0.2.1"]


@pytest.mark.parametrize("rcode", [2, 3, 5, 16])
def test_an_answer_that_is_no_success_gives_no_addresses(rcode):
    found = answer(f"{NAME} 60 A 192.0.2.1", rcode=rcode)

    assert (texts(found), found.rcode) == ([], rcode)


def test_an_answer_without_records_has_no_life():
    assert answer().lowest_ttl_s == NO_TTL


def test_a_life_beyond_the_limit_counts_as_none():
    data = bytearray(dns.message.make_response(query()).to_wire())
    found = answer(f"{NAME} 60 A 192.0.2.1")
    assert found.ttl_s == 60
    response = dns.message.make_response(query())
    response.answer.append(dns.rrset.from_text(NAME, 60, "IN", "A", "192.0.2.1"))
    data = bytearray(response.to_wire())
    place = data.index(b"\x00\x00\x00\x3c")
    data[place] = 0x80
    assert parse_answer(bytes(data), parse_query(query().to_wire())).ttl_s == 0


def test_a_truncated_answer_teaches_nothing():
    response = dns.message.make_response(query())
    response.answer.append(dns.rrset.from_text(NAME, 60, "IN", "A", "192.0.2.1"))
    response.flags |= dns.flags.TC
    found = parse_answer(response.to_wire(), parse_query(query().to_wire()))

    assert found.truncated
    assert texts(found) == []


def test_a_response_belongs_to_a_question_whatever_the_case_of_its_name():
    asked = query()
    response = dns.message.make_response(asked).to_wire()
    question = parse_query(asked.to_wire()).question

    assert same_question(response, question)
    assert same_question(response.replace(b"example", b"EXAMPLE"), question)
    assert not same_question(response.replace(b"example", b"exbmple"), question)
    assert not same_question(asked.to_wire(), question)
    assert not same_question(dns.message.make_response(query("AAAA")).to_wire(), question)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda data: data[:-1], Fault.RECORD),
        (lambda data: data + b"\0", Fault.TRAILING),
        (lambda data: data.replace(b"\xc0\x0c", b"\xc0\xff"), Fault.NAME),
        (lambda data: data.replace(b"\xc0\x0c", b"\x80\x0c"), Fault.NAME),
        (lambda data: data.replace(b"\x00\x04\xc0\x00", b"\x00\x03\xc0\x00"), None),
    ],
)
def test_a_malformed_answer_is_told_apart(change, fault):
    response = dns.message.make_response(dns.message.make_query(NAME, "A"))
    response.answer.append(dns.rrset.from_text(NAME, 60, "IN", "A", "192.0.2.1"))
    asked = parse_query(dns.message.make_query(NAME, "A").to_wire())
    with pytest.raises(MessageError) as caught:
        parse_answer(change(response.to_wire()), asked)
    assert fault in (None, caught.value.fault)


def test_a_pointer_to_itself_ends():
    asked = parse_query(dns.message.make_query(NAME, "A").to_wire())
    head = dns.message.make_response(dns.message.make_query(NAME, "A")).to_wire()
    place = len(head)
    data = head[:7] + b"\x01" + head[8:] + bytes([0xC0 | place >> 8, place & 0xFF]) + bytes(14)
    with pytest.raises(MessageError):
        parse_answer(data, asked)


names = st.sampled_from([NAME, "a.test.", "b.test.", "c.b.test."])
addresses = st.integers(1, 4).map(lambda n: f"192.0.2.{n}")
record = st.one_of(
    st.builds("{} {} A {}".format, names, st.integers(0, 900), addresses),
    st.builds("{} {} CNAME {}".format, names, st.integers(0, 900), names),
    st.builds("{} {} TXT x".format, names, st.integers(0, 900)),
)


@settings(deadline=None)
@given(st.lists(record, max_size=8))
def test_addresses_are_those_that_the_name_reaches_over_aliases(records):
    reached, grown = {NAME}, True
    while grown:
        targets = {
            r.split()[3] for r in records if r.split()[2] == "CNAME" and r.split()[0] in reached
        }
        grown = not targets <= reached
        reached |= targets
    expected = {r.split()[3] for r in records if r.split()[2] == "A" and r.split()[0] in reached}

    assert set(texts(answer(*records))) == expected


@settings(deadline=None)
@given(st.lists(record, max_size=4), st.data())
def test_no_mutation_of_an_answer_is_more_than_refused(records, data):
    response = dns.message.make_response(query())
    for one in records:
        name, ttl, kind, value = one.split(" ", 3)
        response.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, value))
    wire = bytearray(response.to_wire())
    for _ in range(data.draw(st.integers(1, 5))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    asked = parse_query(query().to_wire())
    try:
        found = parse_answer(bytes(wire), asked)
    except MessageError:
        return
    for address in found.addresses:
        assert address in bytes(wire)
        ipaddress.ip_address(address)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_after_a_question_are_an_answer_or_refused(data):
    asked = query()
    head = dns.message.make_response(asked).to_wire()[: 12 + len(NAME) + 5]
    try:
        parse_answer(head[:6] + data[:6] + head[12:] + data, parse_query(asked.to_wire()))
    except MessageError:
        return
