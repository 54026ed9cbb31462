"""xDS conversations: what is sent when, and that no answer of a peer does harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cilium_agent.proxies.envoy.discovery import Conversation, Offers
from cilium_agent.proxies.envoy.options import EnvoyOptions
from cilium_agent.proxies.envoy.resources import (
    CLUSTER,
    LISTENER,
    SECRET,
    Builder,
    Resources,
    version,
)
from cilium_agent.proxies.secrets import Secrets
from cilium_core.policy.l7 import HttpRule, L7Kind, Redirect, SecretRef, TlsContext
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterable

A, B = (Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(path=path),)) for path in "ab")


def resources(*redirects: Redirect) -> Resources:
    builder = Builder(Secrets(), EnvoyOptions())
    return builder.build({one: 10000 + number for number, one in enumerate(redirects)})


def offers(*redirects: Redirect) -> Offers:
    made = Offers()
    made.replace(resources(*redirects))
    made.ready = True
    return made


def request(
    type_url: str = LISTENER,
    *,
    answer: discovery_pb2.DiscoveryResponse | None = None,
    known: str = "",
    names: Iterable[str] = (),
    error: str = "",
) -> discovery_pb2.DiscoveryRequest:
    made = discovery_pb2.DiscoveryRequest(
        type_url=type_url, version_info=known, resource_names=names
    )
    if answer is not None:
        made.response_nonce = answer.nonce
        made.version_info = known or answer.version_info
    if error:
        made.error_detail.message = error
    return made


def test_a_subscription_is_answered_with_everything() -> None:
    offered = offers(A, B)
    (response,) = Conversation(offered).request(request())
    assert len(response.resources) == 2
    assert response.version_info == version(offered.by_type[LISTENER])


def test_an_acknowledgement_is_not_answered() -> None:
    offered = offers(A)
    conversation = Conversation(offered)
    (response,) = conversation.request(request())
    assert conversation.request(request(answer=response)) == []
    assert all(map(offered.has, offered.by_type[LISTENER]))


def test_what_changes_is_sent_at_once_and_only_that() -> None:
    offered = offers(A)
    conversation = Conversation(offered)
    (clusters,) = conversation.request(request(CLUSTER))
    (listeners,) = conversation.request(request())
    conversation.request(request(CLUSTER, answer=clusters))
    conversation.request(request(answer=listeners))
    assert conversation.push() == []
    offered.replace(resources(A, B))
    (pushed,) = conversation.push()
    assert (pushed.type_url, len(pushed.resources)) == (LISTENER, 2)


def test_an_envoy_that_knows_everything_is_told_nothing() -> None:
    offered = offers(A)
    known = version(offers(A).by_type[LISTENER])
    assert Conversation(offered).request(request(known=known)) == []
    assert all(map(offered.has, offered.by_type[LISTENER]))


def test_nothing_is_said_before_everything_is_known() -> None:
    offered = offers(A)
    offered.ready = False
    conversation = Conversation(offered)
    assert conversation.request(request()) == []
    offered.ready = True
    assert len(conversation.push()) == 1


def test_a_rejection_counts_for_the_listeners_that_it_names() -> None:
    offered = offers(A, B)
    conversation = Conversation(offered)
    (response,) = conversation.request(request())
    bad, good = sorted(offered.by_type[LISTENER])
    text = f"Error adding/updating listener(s) {bad}: cannot bind '127.0.0.1:1': in use\n"
    assert conversation.request(request(answer=response, error=text)) == []
    assert offered.rejected == {bad: "cannot bind '127.0.0.1:1': in use"}
    assert offered.has(good)
    assert not offered.has(bad)


def test_a_rejection_that_names_nothing_counts_for_all_that_was_new() -> None:
    offered = offers(A)
    conversation = Conversation(offered)
    (response,) = conversation.request(request())
    conversation.request(request(answer=response))
    (old,) = offered.by_type[LISTENER]
    offered.replace(resources(A, B))
    (response,) = conversation.push()
    conversation.request(request(answer=response, error="malformed"))
    assert offered.has(old)
    assert list(offered.rejected.values()) == ["malformed"]


def test_what_was_rejected_is_sent_again_on_demand_only() -> None:
    offered = offers(A)
    conversation = Conversation(offered)
    (response,) = conversation.request(request())
    conversation.request(request(answer=response, error="no"))
    assert conversation.push() == []
    (again,) = conversation.push(again=True)
    assert again.nonce != response.nonce
    conversation.request(request(answer=again))
    assert offered.rejected == {}
    assert conversation.push(again=True) == []


def test_an_answer_to_something_older_is_ignored() -> None:
    offered = offers(A)
    conversation = Conversation(offered)
    (old,) = conversation.request(request())
    offered.replace(resources(A, B))
    (new,) = conversation.push()
    assert conversation.request(request(answer=old, error="stale")) == []
    assert offered.rejected == {}
    conversation.request(request(answer=new))
    assert all(map(offered.has, offered.by_type[LISTENER]))


def test_secrets_are_sent_to_those_who_ask_by_name() -> None:
    secrets = Secrets()
    builder = Builder(secrets, EnvoyOptions())
    context = TlsContext(SecretRef("default", "pair"))
    redirect = Redirect(ingress=False, kind=L7Kind.HTTP, terminating=context, allow_all=True)
    made = Offers()
    made.replace(builder.build({redirect: 10000}))
    made.ready = True
    conversation = Conversation(made)
    name = "default/pair:tls.crt+tls.key"
    assert conversation.request(request(SECRET, names=[name])) == []
    data = {"tls.crt": "Yw==", "tls.key": "aw=="}
    secrets.upsert({"metadata": {"namespace": "default", "name": "pair"}, "data": data})
    builder.secrets_changed()
    made.replace(builder.build({redirect: 10000}))
    (response,) = [one for one in conversation.push() if one.type_url == SECRET]
    assert len(response.resources) == 1


def test_unknown_types_are_ignored() -> None:
    assert Conversation(offers(A)).request(request("type.googleapis.com/nonsense")) == []


def test_equal_redirects_have_equal_versions_whatever_came_before() -> None:
    builder = Builder(Secrets(), EnvoyOptions())
    builder.build({B: 10007})
    later = builder.build({A: 10000})
    assert version(later.by_type[LISTENER]) == version(resources(A).by_type[LISTENER])


_TYPES = st.sampled_from([LISTENER, CLUSTER, SECRET, "", "x"])
_TEXTS = st.one_of(st.sampled_from(["", "1", "2", "3", "999"]), st.text(max_size=20))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(_TYPES, _TEXTS, _TEXTS, st.lists(_TEXTS, max_size=3), st.none() | _TEXTS),
        max_size=12,
    )
)
def test_no_sequence_of_requests_breaks_a_conversation(
    odd: list[tuple[str, str, str, list[str], str | None]],
) -> None:
    offered = offers(A)
    conversation = Conversation(offered)
    sent = 0
    for type_url, known, nonce, names, error in odd:
        message = discovery_pb2.DiscoveryRequest(
            type_url=type_url, version_info=known, response_nonce=nonce, resource_names=names
        )
        if error is not None:
            message.error_detail.message = error
        sent += len(conversation.request(message))
    assert sent <= len(odd)  # nobody can make it send more than was asked
    fresh = Conversation(offered)
    (response,) = fresh.request(request())
    fresh.request(request(answer=response))
    assert all(map(offered.has, offered.by_type[LISTENER]))


@pytest.mark.parametrize("error", ["", "\x00", "x" * 100_000, "listener(s) : :"])
def test_odd_error_texts_are_taken_as_they_come(error: str) -> None:
    offered = offers(A)
    conversation = Conversation(offered)
    (response,) = conversation.request(request())
    message = request(answer=response)
    message.error_detail.message = error
    conversation.request(message)
    (text,) = offered.rejected.values()
    assert len(text) <= 2000
