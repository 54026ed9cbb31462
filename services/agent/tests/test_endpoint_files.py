import json

import pytest
from cilium_agent.endpoints.records import Attachment, Endpoint, EndpointID, Link, NamedPort
from cilium_agent.endpoints.states import State
from cilium_agent.endpoints.storing import FILE_NAME, EndpointDirectory, write_atomic
from cilium_core.labels import LabelSet


def endpoint(number=7, *, created=True):
    return Endpoint(
        id=EndpointID(number),
        attachment=Attachment("c0ffee", "/run/netns/x", "eth0"),
        namespace="shop",
        pod_name="cart",
        pod_uid="u-1",
        ipv4="10.244.0.5",
        ipv6="fd00:244::5",
        state=State.RESTORING,
        link=Link("lxc123", 9, "02:00:00:00:00:01", "02:00:00:00:00:02"),
        labels=LabelSet.parse(["k8s:app=cart", "k8s:tier"]),
        identity=41201,
        named_ports=(NamedPort("web", 8080, "TCP"),),
        workloads=(("Deployment", "cart"),),
        created=created,
    )


def test_what_is_saved_is_loaded_again(tmp_path):
    directory = EndpointDirectory(tmp_path)
    directory.save(endpoint())
    assert [endpoint()] == directory.load().endpoints


def test_an_endpoint_whose_creation_was_cut_short_is_told_apart(tmp_path):
    directory = EndpointDirectory(tmp_path)
    directory.save(endpoint(created=False))
    found = directory.load()
    assert (found.endpoints, [e.id for e in found.unfinished]) == ([], [7])


def test_no_prefix_of_a_file_is_taken_for_an_endpoint(tmp_path):
    directory = EndpointDirectory(tmp_path)
    directory.save(endpoint())
    path = tmp_path / "7" / FILE_NAME
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = directory.load()
        assert (found.endpoints, found.unfinished, list(found.broken)) == ([], [], [7])
    assert str(path) in str(found.broken[7])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("id", 8),
        ("id", True),
        ("ipv4", None),
        ("labels", "app"),
        ("labels", [""]),
        ("namedPorts", [1]),
        ("created", "yes"),
        ("ifindex", "9"),
    ],
)
def test_a_bad_field_is_named(tmp_path, field, value):
    path = tmp_path / "7" / FILE_NAME
    path.parent.mkdir()
    path.write_text(json.dumps({**endpoint().stored(), field: value}))
    error = EndpointDirectory(tmp_path).load().broken[7]
    assert f"field '{field}'" in str(error)


def test_foreign_directories_are_left_alone(tmp_path):
    for name in ("0", "65536", "templates", "٣"):
        (tmp_path / name).mkdir()
    found = EndpointDirectory(tmp_path).load()
    assert (found.endpoints, found.unfinished, found.broken) == ([], [], {})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def refuse(_descriptor):
        raise OSError("disk")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="disk"):
        write_atomic(path, b"new")
    assert (b"old", [path]) == (path.read_bytes(), list(tmp_path.iterdir()))
