"""`hubble record`: what filters say, and what is wrong with them."""

from __future__ import annotations

import pytest
from hubble_cli.commands.recording import parse_filter, turned
from hubble_cli.errors import UsageError
from recorder import recorder_pb2


def test_a_filter_is_five_words() -> None:
    assert parse_filter("10.0.0.0/8 0 192.168.1.7 80 tcp") == recorder_pb2.Filter(
        source_cidr="10.0.0.0/8",
        destination_cidr="192.168.1.7",
        destination_port=80,
        protocol=recorder_pb2.PROTOCOL_TCP,
    )


def test_zero_star_and_any_fit_all() -> None:
    assert parse_filter("any * 0 0 any") == recorder_pb2.Filter()


def test_the_other_way_has_source_and_destination_changed() -> None:
    assert turned(parse_filter("10.0.0.1 1 10.0.0.2 2 UDP")) == parse_filter(
        "10.0.0.2 2 10.0.0.1 1 UDP"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.0.0.1 80 TCP", "five words"),
        ("any http any 0 TCP", "port 'http'"),
        ("any 0 any 65536 TCP", "port '65536'"),
        ("any 0 any 0 ICMP", "protocol 'ICMP'"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_filter(text)
    assert said in str(caught.value)
    assert text in str(caught.value)
