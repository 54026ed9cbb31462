"""Messages to JSON and back."""

import json

import pytest
from cilium_core.flow_counts import as_json, counts_of
from flow import flow_pb2
from google.protobuf import any_pb2, json_format, struct_pb2, wrappers_pb2
from google.protobuf.descriptor import FieldDescriptor
from hubble_cli import jsonlines
from hubble_cli.parsing import ParseError, Parser
from hypothesis import given, settings
from hypothesis import strategies as some
from observer import observer_pb2

TEXTS = some.text(max_size=6)


@some.composite
def messages(draw, descriptor, depth=0):
    """Keyword arguments of any message of a type."""
    chosen = {}
    for field in descriptor.fields:
        oneof = field.containing_oneof
        if oneof is not None and any(other.name in chosen for other in oneof.fields):
            continue
        if field.name == "extensions" or depth > 3 or not draw(some.booleans()):
            continue
        one = values(field, depth)
        chosen[field.name] = draw(some.lists(one, max_size=2) if field.is_repeated else one)
    return chosen


def values(field, depth):
    kinds = FieldDescriptor
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return some.fixed_dictionaries(
                {"seconds": some.integers(0, 2**33), "nanos": some.integers(0, 10**9 - 1)}
            )
        return messages(field.message_type, depth + 1)
    if field.enum_type is not None:
        return some.sampled_from([value.number for value in field.enum_type.values])
    return {
        kinds.CPPTYPE_BOOL: some.booleans(),
        kinds.CPPTYPE_INT32: some.integers(-(2**31), 2**31 - 1),
        kinds.CPPTYPE_UINT32: some.integers(0, 2**32 - 1),
        kinds.CPPTYPE_INT64: some.integers(-(2**63), 2**63 - 1),
        kinds.CPPTYPE_UINT64: some.integers(0, 2**64 - 1),
        kinds.CPPTYPE_STRING: TEXTS,
        kinds.CPPTYPE_DOUBLE: some.floats(),
    }[field.cpp_type]


RESPONSES = messages(observer_pb2.GetFlowsResponse.DESCRIPTOR).map(
    lambda fields: observer_pb2.GetFlowsResponse(**fields)
)


@settings(max_examples=60, deadline=None)
@given(RESPONSES)
def test_json_says_what_protobufs_own_json_says(response):
    expected = json_format.MessageToDict(response, preserving_proto_field_name=True)

    assert json.loads(jsonlines.encode(response)) == expected


@settings(max_examples=60, deadline=None)
@given(RESPONSES)
def test_what_was_written_is_read(response):
    parser = Parser(observer_pb2.GetFlowsResponse)

    assert parser.parse(json.loads(jsonlines.encode(response))) == response
    assert parser.parse(json_format.MessageToDict(response)) == response
    assert parser.unknown == ""


def test_counts_in_the_extensions_are_written_and_read():
    flow = flow_pb2.Flow(uuid="u")
    flow.extensions.Pack(wrappers_pb2.StringValue(value=as_json(packets=3, octets=1500)))
    written = jsonlines.encode(flow)

    assert written == (
        '{"uuid":"u","extensions":{"@type":"type.googleapis.com/google.protobuf.StringValue",'
        '"value":"{\\"bytes\\":1500,\\"packets\\":3}"}}'
    )
    read = Parser(flow_pb2.Flow).parse(json.loads(written))
    assert counts_of(read) == (3, 1500)


@pytest.mark.parametrize("text", ["", "7", "{}", '{"packets":"many","bytes":1}', "[]"])
def test_extensions_of_others_are_no_counts(text):
    flow = flow_pb2.Flow()
    flow.extensions.Pack(wrappers_pb2.StringValue(value=text))

    assert counts_of(flow) is None


def test_any_json_in_the_extensions_is_written_and_read_as_other_clients_do():
    flow = flow_pb2.Flow(uuid="u")
    anything = struct_pb2.Struct()
    anything.update({"packets": 3, "bytes": 1500.0, "more": [None, True, {"a": "<"}, 0.5]})
    flow.extensions.Pack(anything)
    written = jsonlines.encode(flow)

    assert written == (
        '{"uuid":"u","extensions":{"@type":"type.googleapis.com/google.protobuf.Struct",'
        '"value":{"bytes":1500,"more":[null,true,{"a":"\\u003c"},0.5],"packets":3}}}'
    )
    read = Parser(flow_pb2.Flow).parse(json.loads(written))
    # fields of a Struct are in no order on the wire
    unpacked = struct_pb2.Struct()
    assert read.extensions.Unpack(unpacked)
    assert unpacked == anything


def test_keys_stand_in_the_order_of_declaration():
    flow = flow_pb2.Flow(
        Summary="s",
        uuid="u",
        verdict=flow_pb2.DROPPED,
        source=flow_pb2.Endpoint(ID=1, namespace="n", cluster_name="c"),
    )

    assert jsonlines.encode(flow) == (
        '{"uuid":"u","verdict":"DROPPED",'
        '"source":{"ID":1,"cluster_name":"c","namespace":"n"},"Summary":"s"}'
    )


def test_letters_that_mean_something_in_a_page_are_escaped():
    flow = flow_pb2.Flow(Summary='<a & b>\u2028"\\\n\x07é\x7f')

    assert jsonlines.encode(flow) == (
        r'{"Summary":"\u003ca \u0026 b\u003e\u2028\"\\\n\u0007' + 'é\x7f"}'
    )


def test_numbers_that_have_no_name_stay_numbers():
    flow = flow_pb2.Flow()
    flow.verdict = 99

    assert jsonlines.encode(flow) == '{"verdict":99}'


@pytest.mark.parametrize(
    ("rate", "text"),
    [(2.5, "2.5"), (3.0, "3"), (1e21, "1e+21"), (1.5e-7, "1.5e-7"), (float("inf"), '"Infinity"')],
)
def test_floating_point_numbers(rate, text):
    status = observer_pb2.ServerStatusResponse(flows_rate=rate)

    assert jsonlines.encode(status) == f'{{"flows_rate":{text}}}'


def test_vendors_extensions_are_shown_by_type_or_raw():
    known, unknown = any_pb2.Any(), any_pb2.Any(type_url="x.y/no.Such", value=b"ab")
    known.Pack(flow_pb2.Service(name="s"))

    assert jsonlines.encode(known) == '{"@type":"type.googleapis.com/flow.Service","name":"s"}'
    assert jsonlines.encode(unknown) == '{"@type":"x.y/no.Such","value":"YWI="}'


def test_unknown_fields_are_left_out_and_remembered():
    parser = Parser(flow_pb2.Flow)

    flow = parser.parse({"uuid": "u", "newField": {"a": 1}, "other": 2, "l7": None})

    assert flow == flow_pb2.Flow(uuid="u")
    assert parser.unknown == "newField"


@pytest.mark.parametrize(
    "value",
    [
        [],
        "x",
        {"verdict": "NO_SUCH"},
        {"time": "yesterday"},
        {"time": 5},
        {"IP": []},
        {"node_labels": "a"},
        {"node_labels": [1]},
        {"drop_reason": "x"},
        {"drop_reason": -1},
        {"drop_reason": 1.5},
        {"drop_reason": True},
        {"is_reply": "yes"},
        {"uuid": 5},
        {"extensions": {"@type": "no"}},
    ],
)
def test_what_does_not_fit_is_an_error(value):
    with pytest.raises(ParseError):
        Parser(flow_pb2.Flow).parse(value)
