import json

import pytest
from cilium_agent.cni.requests import parse
from cilium_agent.errors import RequestError

GOOD = {
    "containerID": "c0ffee",
    "netns": "/run/netns/x",
    "ifname": "eth0",
    "args": {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "cart-0.x"},
    "config": {"prevResult": {"ips": []}},
}


def test_a_request_is_read():
    request = parse(json.dumps(GOOD).encode(), pod_required=True)
    assert (
        request.pod,
        request.attachment.container_id,
        request.previous,
    ) == ("shop/cart-0.x", "c0ffee", {"ips": []})


def test_a_delete_needs_no_pod_and_no_namespace():
    request = parse(b'{"containerID": "c", "ifname": "eth0", "args": null}', pod_required=False)
    assert (request.attachment.netns, request.namespace, request.pod_name) == ("", "", "")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"containerID": "../x"}, "containerID"),
        ({"containerID": 5}, "containerID"),
        ({"ifname": "a" * 16}, "ifname"),
        ({"ifname": ".."}, "ifname"),
        ({"ifname": "a/b"}, "ifname"),
        ({"netns": "relative"}, "netns"),
        ({"args": []}, "args"),
        ({"args": {"K8S_POD_NAMESPACE": "shop"}}, "K8S_POD_NAME"),
        ({"args": {"K8S_POD_NAMESPACE": "A b", "K8S_POD_NAME": "x"}}, "K8S_POD_NAMESPACE"),
        ({"config": "x"}, "config"),
    ],
)
def test_a_wrong_field_is_named(change, named):
    with pytest.raises(RequestError, match=named):
        parse(json.dumps({**GOOD, **change}).encode(), pod_required=True)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"null", b'"x"'])
def test_what_is_no_object_is_refused(body):
    with pytest.raises(RequestError):
        parse(body, pod_required=False)
