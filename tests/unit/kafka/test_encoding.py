"""Messages are read and written as Kafka's definitions say, whatever the bytes claim."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.varints import varint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka_proxy.encoding import MAX_ELEMENTS, Reader, read, write
from kafka_proxy.errors import ProtocolError
from kafka_proxy.requests import parse
from kafka_proxy.responses import error_of
from kio.index import load_request_schema, load_response_schema
from kio.serial import entity_reader

from tests.unit.kafka.messages import (
    FETCH,
    METADATA,
    PRODUCE,
    VERSIONS,
    metadata,
    produce,
    request,
    request_form,
    response_form,
    values,
)

if TYPE_CHECKING:
    from kafka_proxy.encoding import Value
    from kafka_proxy.schemas import Struct

quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def plain(value: Any) -> Any:
    """A value without views of buffers."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return bytes(value) if isinstance(value, memoryview) else value


@quick
@given(data=st.data(), which=st.sampled_from(VERSIONS), answer=st.booleans())
def test_what_is_written_reads_as_the_same(
    data: st.DataObject, which: tuple[int, int], answer: bool
) -> None:
    form = response_form(*which) if answer else request_form(*which)
    value = data.draw(values(form))
    assert value == plain(read(form, memoryview(write(form, value))))


@quick
@given(data=st.data(), which=st.sampled_from(VERSIONS), answer=st.booleans())
def test_another_reader_understands_what_is_written(
    data: st.DataObject, which: tuple[int, int], answer: bool
) -> None:
    form = response_form(*which) if answer else request_form(*which)
    value = data.draw(values(form))
    encoded = write(form, value)
    entity, size = entity_reader((load_response_schema if answer else load_request_schema)(*which))(
        encoded, 0
    )
    assert size == len(encoded)
    assert_same(form, value, entity)


def assert_same(form: Struct, value: Value, entity: Any) -> None:
    """Compare a message with what kio read, where both have the same kinds of values."""
    for field in form.fields:
        mine, theirs = value[field.name], getattr(entity, field.name)
        if field.struct is not None:
            pairs = zip(mine or (), theirs or (), strict=True) if field.array else [(mine, theirs)]
            for one, other in pairs:
                assert (one is None) == (other is None)
                if one is not None:
                    assert_same(field.struct, one, other)
        elif field.kind in ("string", "int16", "int32", "int64", "bool") and not field.array:
            assert mine == theirs


@pytest.mark.parametrize("which", VERSIONS)
def test_every_request_and_response_has_a_form(which: tuple[int, int]) -> None:
    assert request_form(*which).fields is not None
    assert response_form(*which).fields is not None


@quick
@given(
    which=st.sampled_from(VERSIONS),
    body=st.binary(max_size=120) | st.lists(st.sampled_from(b"\0\1\2\3\x7f\xff")).map(bytes),
)
def test_bytes_of_any_kind_are_read_or_refused(which: tuple[int, int], body: bytes) -> None:
    head = which[0].to_bytes(2, "big") + which[1].to_bytes(2, "big")
    try:
        parsed = parse(head + b"\0\0\0\1" + body)
    except ProtocolError:
        pass
    else:
        assert (parsed.body is None) == bool(parsed.unreadable)
    with contextlib.suppress(ProtocolError):
        error_of(response_form(*which), body)


@quick
@given(data=st.data(), whole=st.sampled_from([produce("a", "b"), metadata("a", version=12)]))
def test_a_request_that_was_tampered_with_is_read_or_refused(
    data: st.DataObject, whole: bytes
) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(8, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        parse(bytes(changed[: data.draw(st.integers(0, len(whole)))]))


@pytest.mark.parametrize("cut", range(len(produce("orders"))))
def test_a_request_that_is_cut_short_is_never_taken_for_whole(cut: int) -> None:
    whole = produce("orders")
    with contextlib.suppress(ProtocolError):
        assert parse(whole[:cut]).body is None


@pytest.mark.parametrize(
    ("key", "version"), [(PRODUCE, 3), (PRODUCE, 9), (METADATA, 1), (METADATA, 9), (FETCH, 12)]
)
@pytest.mark.parametrize(
    "claim", [b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff\x0f", b"\x00\x10\x00\x00"]
)
def test_a_length_beyond_the_message_costs_nothing(key: int, version: int, claim: bytes) -> None:
    head = key.to_bytes(2, "big") + version.to_bytes(2, "big") + b"\0\0\0\1\xff\xff"
    began = time.process_time()
    for filler in (b"", b"\0", b"\0" * 8, b"\1" * 16, b"\xff" * 4):
        assert parse(head + filler + claim).body is None
    assert time.process_time() - began < 1


def test_more_elements_than_allowed_are_refused_though_they_are_there() -> None:
    topics = [{"name": "t"}] * (MAX_ELEMENTS + 1)
    refused = parse(request(METADATA, 9, topics=topics))
    assert "an array of" in refused.unreadable
    assert parse(request(METADATA, 9, topics=topics[1:])).body is not None


def test_elements_within_tagged_fields_count_too() -> None:
    whole = request(METADATA, 9)
    tags = varint(MAX_ELEMENTS + 1) + b"\x40\0" * (MAX_ELEMENTS + 1)
    assert "an array of" in parse(whole[:-1] + tags).unreadable


def test_a_number_of_variable_length_ends_somewhere() -> None:
    for data in (b"\xff" * 5, b"\xff" * 20, b"\xff\xff\xff\xff\x1f"):
        with pytest.raises(ProtocolError, match="variable length"):
            Reader(memoryview(data)).varint()
    for number in (0, 127, 128, 300, (1 << 32) - 1):
        assert number == Reader(memoryview(varint(number))).varint()


def test_tagged_fields_that_are_not_known_survive() -> None:
    form = response_form(18, 3)
    value = {"error_code": 0, "api_keys": [], "throttle_time": 0, "zk_migration_ready": True}
    encoded = write(form, {**value, "?": [(77, b"abc")]})
    assert encoded == write(form, read(form, memoryview(encoded)))
    assert b"abc" in encoded
