"""Drop reasons: one list, known to users by the names and numbers of Hubble's API."""

from __future__ import annotations

from cilium_core import drops
from flow import flow_pb2


def test_every_reason_is_one_of_the_public_api() -> None:
    public = dict(flow_pb2.DropReason.items())

    unknown = {
        reason.name: reason.value
        for reason in drops.DropReason
        if reason is not drops.DropReason.KERNEL
        and public.get(reason.name, public.get(f"DROP_{reason.name}")) != reason.value
    }

    assert unknown == {}


def test_texts_are_those_that_users_read() -> None:
    assert drops.text(133) == "Policy denied"
    assert drops.text(181) == "Policy denied by denylist"
    assert drops.text(0) == "Success"


def test_drops_of_the_kernel_have_a_number_that_the_public_api_leaves_free() -> None:
    assert drops.DropReason.KERNEL not in flow_pb2.DropReason.values()


def test_an_unknown_reason_is_told_by_its_number() -> None:
    assert drops.text(254) == "reason 254"


def test_what_is_counted_without_dropping_is_no_drop_reason() -> None:
    assert {int(reason) for reason in drops.DropReason} == {
        code for code in drops.texts if code >= drops.FIRST_DROP
    }
