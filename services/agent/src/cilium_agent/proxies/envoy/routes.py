"""Rules as routes: what is allowed goes on to its cluster, everything else is answered with 403.

The route that took a request tells the access log what was decided: `ALLOWED`, `REFUSED` or
`AUDITED`. Envoy's own path matching leaves the query out, so that rules compare the header `:path`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from google.protobuf.duration_pb2 import Duration

from cilium_agent.proxies.envoy.matching import Comparison, Form, header_matcher, string_matcher
from cilium_agent.proxies.envoy.rules import SERVER_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cilium_core.policy.l7 import Redirect

    from cilium_agent.proxies.envoy.options import EnvoyOptions
    from cilium_agent.proxies.envoy.rules import Condition

ALLOWED = "allowed"
REFUSED = "refused"
AUDITED = "audited"

SERVER_NAME_STATE = "cilium.server_name"
"""Where a listener keeps the server name of a connection, for rules that are limited to some."""

DENIED_BODY = "Access denied\r\n"

_DISGUISES = (
    (Comparison(Form.CONTAINS, ";"), Comparison(Form.REGEX, r"[^?]*/\.\.?;.*")),
    (
        Comparison(Form.CONTAINS, "%"),
        Comparison(Form.REGEX, r"[^?]*(?:/\.\.?%3[bB]|%[cC][01]).*"),
    ),
)
"""Paths that some servers read as others and Envoy does not: dot segments with parameters, and
characters in an encoding that is longer than it may be. The first of each pair spares most requests
the second."""


def duration(seconds: float) -> Duration:
    """Seconds as a message; 0 is "none" in most of Envoy's fields."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def denied_body(options: EnvoyOptions) -> str:
    """The text of a refusal."""
    return f"{options.denied_body}\r\n" if options.denied_body else DENIED_BODY


def restricts_path(conditions: Iterable[Condition]) -> bool:
    """Whether some rule accepts paths of a certain form."""
    return any(name == ":path" for one in conditions for name, _ in one.comparisons)


def route_configuration(
    redirect: Redirect,
    conditions: Sequence[Condition],
    clusters: Sequence[tuple[Sequence[tuple[str, Comparison]], str]],
    options: EnvoyOptions,
) -> route_pb2.RouteConfiguration:
    """The routes of a redirect.

    `clusters` says where a request goes on: the first one whose comparisons hold.
    """
    routes: list[route_components_pb2.Route] = []

    def forward(name: str, comparisons: Sequence[tuple[str, Comparison]] = ()) -> None:
        for further, cluster in clusters:
            match = _match((*comparisons, *further))
            action = _action(cluster, options)
            routes.append(route_components_pb2.Route(name=name, match=match, route=action))

    if redirect.allow_all:  # rules change headers, and refuse nothing
        forward(ALLOWED)
    else:
        if restricts_path(conditions) and not redirect.audit:
            for quick, exact in _DISGUISES:
                routes.append(_refusal(options, [(":path", quick), (":path", exact)]))
        for condition in conditions:
            forward(ALLOWED, condition.comparisons)
        if redirect.audit:
            forward(AUDITED)
        else:
            routes.append(_refusal(options))
    host = route_components_pb2.VirtualHost(name="all", domains=["*"], routes=routes)
    configuration = route_pb2.RouteConfiguration(name="rules", virtual_hosts=[host])
    configuration.max_direct_response_body_size_bytes.value = 65536
    return configuration


def _match(
    comparisons: Iterable[tuple[str, Comparison]],
) -> route_components_pb2.RouteMatch:
    match = route_components_pb2.RouteMatch(prefix="")
    for name, comparison in comparisons:
        if name == SERVER_NAME:
            match.filter_state.add(key=SERVER_NAME_STATE, string_match=string_matcher(comparison))
        else:
            match.headers.append(header_matcher(name, comparison))
    return match


def _refusal(
    options: EnvoyOptions, comparisons: Iterable[tuple[str, Comparison]] = ()
) -> route_components_pb2.Route:
    body = base_pb2.DataSource(inline_string=denied_body(options))
    response = route_components_pb2.DirectResponseAction(status=403, body=body)
    return route_components_pb2.Route(
        name=REFUSED, match=_match(comparisons), direct_response=response
    )


def _action(cluster: str, options: EnvoyOptions) -> route_components_pb2.RouteAction:
    action = route_components_pb2.RouteAction(
        cluster=cluster, timeout=duration(options.request_timeout_s)
    )
    if options.idle_timeout_s:
        action.idle_timeout.CopyFrom(duration(options.idle_timeout_s))
    if options.max_grpc_timeout_s:
        action.max_stream_duration.grpc_timeout_header_max.CopyFrom(
            duration(options.max_grpc_timeout_s)
        )
    if options.retry_count:
        action.retry_policy.retry_on = "5xx"
        action.retry_policy.num_retries.value = options.retry_count
        if options.retry_timeout_s:
            action.retry_policy.per_try_timeout.CopyFrom(duration(options.retry_timeout_s))
    return action
