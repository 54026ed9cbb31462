"""Mismatch actions: filters that add, replace or remove a header of requests that rules allow.

Each mending of each rule is a filter of its own that is skipped unless the rule allows the request
and the header differs, so that the actions of all rules that match are carried out. Rules judge a
request before anything is mended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cilium_core.policy.l7 import Mismatch
from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import base_pb2, extension_pb2
from envoy.extensions.common.matching.v3 import extension_matcher_pb2
from envoy.extensions.filters.common.matcher.action.v3 import skip_action_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as manager_pb2,
)
from envoy.extensions.matching.common_inputs.network.v3 import network_inputs_pb2
from envoy.type.matcher.v3 import http_inputs_pb2
from xds.core.v3 import extension_pb2 as xds_extension_pb2
from xds.type.matcher.v3 import matcher_pb2, regex_pb2, string_pb2

from cilium_agent.proxies.envoy.matching import Comparison, Form
from cilium_agent.proxies.envoy.packing import pack
from cilium_agent.proxies.envoy.rules import SERVER_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

    from cilium_agent.proxies.envoy.rules import Condition, Mending

_Predicate: TypeAlias = matcher_pb2.Matcher.MatcherList.Predicate
_Append: TypeAlias = base_pb2.HeaderValueOption


def mutation_filters(conditions: Iterable[Condition]) -> list[manager_pb2.HttpFilter]:
    """The filters that carry out every mending, in the order of the rules."""
    return [
        _filter(condition, mending)
        for condition in conditions
        for mending in condition.mendings
        if mending.action is not Mismatch.LOG
    ]


def _filter(condition: Condition, mending: Mending) -> manager_pb2.HttpFilter:
    wanted = [_holds(name, comparison) for name, comparison in condition.comparisons]
    wanted.append(_not(_holds(mending.header, mending.comparison)))
    if mending.action is Mismatch.DELETE:
        wanted.append(_holds(mending.header, Comparison(Form.ANY, "")))
    applies = (
        wanted[0]
        if len(wanted) == 1
        else _Predicate(and_matcher=_Predicate.PredicateList(predicate=wanted))
    )
    skip = matcher_pb2.Matcher.OnMatch(
        action=xds_extension_pb2.TypedExtensionConfig(
            name="skip", typed_config=pack(skip_action_pb2.SkipFilter())
        )
    )
    field = matcher_pb2.Matcher.MatcherList.FieldMatcher(predicate=_not(applies), on_match=skip)
    matcher = matcher_pb2.Matcher(matcher_list=matcher_pb2.Matcher.MatcherList(matchers=[field]))
    extension = extension_matcher_pb2.ExtensionWithMatcher(
        xds_matcher=matcher,
        extension_config=extension_pb2.TypedExtensionConfig(
            name="envoy.filters.http.header_mutation", typed_config=pack(_mutation(mending))
        ),
    )
    return manager_pb2.HttpFilter(
        name="envoy.filters.http.match_delegate", typed_config=pack(extension)
    )


def _mutation(mending: Mending) -> header_mutation_pb2.HeaderMutation:
    if mending.action is Mismatch.DELETE:
        change = mutation_rules_pb2.HeaderMutation(remove=mending.header)
    else:
        action = (
            _Append.APPEND_IF_EXISTS_OR_ADD
            if mending.action is Mismatch.ADD
            else _Append.OVERWRITE_IF_EXISTS_OR_ADD
        )
        # A percent sign begins a command in Envoy's header values.
        header = base_pb2.HeaderValue(key=mending.header, value=mending.value.replace("%", "%%"))
        change = mutation_rules_pb2.HeaderMutation(
            append=base_pb2.HeaderValueOption(header=header, append_action=action)
        )
    return header_mutation_pb2.HeaderMutation(
        mutations=header_mutation_pb2.Mutations(request_mutations=[change])
    )


def _not(predicate: _Predicate) -> _Predicate:
    return _Predicate(not_matcher=predicate)


def _holds(name: str, comparison: Comparison) -> _Predicate:
    form, text = comparison
    if form is Form.ANY:
        form, text = Form.REGEX, ".*"
    if form is Form.REGEX:
        expression = regex_pb2.RegexMatcher(regex=text)
        expression.google_re2.SetInParent()
        matcher = string_pb2.StringMatcher(safe_regex=expression)
    else:
        matcher = string_pb2.StringMatcher(**{form.value: text})
    source: Message = http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=name)
    if name == SERVER_NAME:
        source = network_inputs_pb2.ServerNameInput()
    single = _Predicate.SinglePredicate(
        input=xds_extension_pb2.TypedExtensionConfig(name="input", typed_config=pack(source)),
        value_match=matcher,
    )
    return _Predicate(single_predicate=single)
