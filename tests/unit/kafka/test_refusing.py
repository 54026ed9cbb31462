"""What is refused is answered as a broker would, and versions are kept readable."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka_proxy.encoding import write
from kafka_proxy.errors import ProtocolError
from kafka_proxy.negotiating import limited
from kafka_proxy.refusing import refusal
from kafka_proxy.requests import parse
from kafka_proxy.responses import error_of
from kio.index import load_response_schema
from kio.serial import entity_reader

from tests.unit.kafka.messages import (
    API_VERSIONS,
    ENVELOPE,
    FETCH,
    METADATA,
    OFFSET_FETCH,
    PRODUCE,
    VERSIONS,
    metadata,
    parse_response,
    produce,
    request,
    request_form,
    response,
    response_form,
    values,
)


def answer(key: int, version: int, **value: Any) -> dict[str, Any]:
    """The content of the answer to a request that is refused."""
    made = refusal(parse(request(key, version, 5, **value)))
    assert made is not None
    correlation_id, content = parse_response(key, version, made)
    assert correlation_id == 5
    return content


@pytest.mark.parametrize("version", range(3, 13))
def test_a_refused_write_fails_each_of_its_partitions(version: int) -> None:
    made = refusal(parse(produce("a", "b", version=version)))
    assert made is not None
    _, content = parse_response(PRODUCE, version, made)
    assert [
        (one["name"], [(p["index"], p["error_code"]) for p in one["partition_responses"]])
        for one in content["responses"]
    ] == [("a", [(0, 29)]), ("b", [(0, 29)])]


def test_a_refused_question_for_metadata_fails_each_topic_and_names_no_broker() -> None:
    made = refusal(parse(metadata("a", "b")))
    assert made is not None
    _, content = parse_response(METADATA, 9, made)
    assert [(t["name"], t["error_code"]) for t in content["topics"]] == [("a", 29), ("b", 29)]
    assert content["brokers"] == []


def test_a_refused_read_fails_its_partitions_and_not_the_session() -> None:
    partition = {
        "partition": 4, "current_leader_epoch": -1, "fetch_offset": 0, "last_fetched_epoch": -1,
        "log_start_offset": 0, "partition_max_bytes": 1,
    }  # fmt: skip
    content = answer(FETCH, 12, topics=[{"topic": "a", "partitions": [partition]}])
    (topic,) = content["responses"]
    (failed,) = topic["partitions"]
    assert (
        topic["topic"], failed["partition_index"], failed["error_code"], content["error_code"],
    ) == ("a", 4, 29, 0)  # fmt: skip
    assert not failed["records"]


def test_refused_offsets_fail_within_their_groups() -> None:
    asked = {
        "group_id": "g", "member_id": None, "member_epoch": -1,
        "topics": [{"name": "a", "partition_indexes": [7]}],
    }  # fmt: skip
    (group,) = answer(OFFSET_FETCH, 9, groups=[asked])["groups"]
    (topic,) = group["topics"]
    (failed,) = topic["partitions"]
    assert (
        group["group_id"], topic["name"], failed["partition_index"], failed["error_code"],
    ) == ("g", "a", 7, 29)  # fmt: skip


@pytest.mark.parametrize("key", [10, 11, 12, 13, 14, 16, 17, 18, 22, 25, 26])
def test_a_refused_request_without_elements_fails_as_a_whole(key: int) -> None:
    assert answer(key, 1)["error_code"] == 29


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data(), which=st.sampled_from([v for v in VERSIONS if v[0] != ENVELOPE]))
def test_any_refusal_is_a_response_that_another_reader_understands(
    data: st.DataObject, which: tuple[int, int]
) -> None:
    form, answered = request_form(*which), response_form(*which)
    whole = request(*which, **data.draw(values(form)))
    parsed = parse(whole)
    if parsed.body is None:
        return
    made = refusal(parsed)
    assert made is not None
    body = made[8 + answered.flexible_header :]
    _, size = entity_reader(load_response_schema(*which))(body, 0)
    assert size == len(body)
    assert error_of(answered, made[8:]) in (0, 29)


def test_a_request_that_cannot_be_read_has_no_answer() -> None:
    for whole in (b"\0\0\0\2\0\0\0\1\xff\xff", request(ENVELOPE, 0), metadata("a") + b"\0"):
        assert refusal(parse(whole)) is None


def test_a_question_for_versions_in_a_version_to_come_is_told_which_are_known() -> None:
    made = refusal(parse(b"\0\x12\0\x09\0\0\0\5\xff\xff"))
    assert made is not None
    correlation_id, content = parse_response(API_VERSIONS, 0, made)
    assert (correlation_id, content["error_code"]) == (5, 35)
    assert [one["api_key"] for one in content["api_keys"]] == [18]


def told(version: int, *ranges: tuple[int, int, int], error: int = 0) -> list[tuple[int, int, int]]:
    """What a client hears when a broker tells of these ranges of versions."""
    keys = [{"api_key": key, "min_version": low, "max_version": high} for key, low, high in ranges]
    form_version = 0 if error == 35 else version
    said = response(API_VERSIONS, form_version, 9, error_code=error, api_keys=keys)
    correlation_id, content = parse_response(API_VERSIONS, form_version, limited(version, said[4:]))
    assert (9, error) == (correlation_id, content["error_code"])
    return [(one["api_key"], one["min_version"], one["max_version"]) for one in content["api_keys"]]


@pytest.mark.parametrize("version", range(5))
def test_clients_are_kept_on_versions_that_name_topics(version: int) -> None:
    ranges = [(0, 0, 99), (1, 0, 17), (3, 0, 12), (8, 0, 5), (9, 0, 99), (20, 0, 6)]
    expected = [(0, 3, 12), (1, 4, 12), (3, 0, 12), (8, 2, 5), (9, 1, 9), (20, 1, 5)]
    assert expected == told(version, *ranges)


def test_requests_that_cannot_be_read_are_not_offered() -> None:
    assert told(3, (4, 0, 7), (58, 0, 0), (999, 0, 1), (0, 0, 2), (17, 0, 0)) == []
    assert told(3, (17, 0, 1)) == [(17, 1, 1)]


def test_a_broker_that_knows_no_such_version_is_understood_in_the_oldest() -> None:
    assert told(4, (18, 0, 3), error=35) == [(18, 0, 3)]


def test_a_broker_that_says_so_in_another_form_sends_clients_to_the_lowest_version() -> None:
    said = bytes.fromhex("0000000100230100120000000200000000")
    correlation_id, content = parse_response(API_VERSIONS, 0, limited(3, said))
    assert (correlation_id, content["error_code"], content["api_keys"]) == (1, 35, [])


@pytest.mark.parametrize("cut", [3, 5, 7, 20])
def test_versions_that_cannot_be_read_are_refused(cut: int) -> None:
    keys = [{"api_key": 3, "min_version": 0, "max_version": 9}]
    said = response(API_VERSIONS, 3, api_keys=keys)[4:]
    with pytest.raises(ProtocolError):
        limited(3, said[: min(cut, len(said) - 1)])


def test_what_else_brokers_say_about_versions_stays() -> None:
    form = response_form(API_VERSIONS, 3)
    feature = {"name": "metadata.version", "min_version": 1, "max_version": 7}
    value = {
        "error_code": 0, "api_keys": [], "throttle_time": 3, "supported_features": [feature],
        "finalized_features_epoch": 12, "?": [(40, b"new")],
    }  # fmt: skip
    said = b"\0\0\0\5" + write(form, value)
    _, content = parse_response(API_VERSIONS, 3, limited(3, said))
    assert {**value, "supported_features": [{**feature}]} == content
