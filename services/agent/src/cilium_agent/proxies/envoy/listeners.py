"""A redirect and its port → an Envoy listener.

The data plane assigns a client's connection to the listener's socket; its local address stays the
one that the client wanted. Server names are decided on before a byte is answered: a connection
without a listed name (or without TLS) is reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cilium_core.policy.l7 import L7Kind, Redirect
from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, substitution_format_string_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.common.set_filter_state.v3 import value_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.original_src.v3 import original_src_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as manager_pb2,
)
from envoy.extensions.filters.network.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.matching.common_inputs.network.v3 import network_inputs_pb2
from google.protobuf.wrappers_pb2 import StringValue
from xds.core.v3 import extension_pb2 as xds_extension_pb2
from xds.type.matcher.v3 import matcher_pb2, regex_pb2, string_pb2

from cilium_agent.proxies.envoy import tls
from cilium_agent.proxies.envoy.clusters import (
    MARK_EGRESS,
    MARK_INGRESS,
    Speech,
    cluster_name,
    mark,
)
from cilium_agent.proxies.envoy.logging import LogName, connection_log, http_logs
from cilium_agent.proxies.envoy.matching import Comparison, Form, server_name
from cilium_agent.proxies.envoy.mutations import mutation_filters
from cilium_agent.proxies.envoy.packing import pack
from cilium_agent.proxies.envoy.routes import (
    SERVER_NAME_STATE,
    denied_body,
    duration,
    restricts_path,
    route_configuration,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cilium_agent.proxies.envoy.options import EnvoyOptions
    from cilium_agent.proxies.envoy.rules import Condition

_GRPC = (("content-type", Comparison(Form.PREFIX, "application/grpc")),)

_Manager: TypeAlias = manager_pb2.HttpConnectionManager
_OnMatch: TypeAlias = matcher_pb2.Matcher.OnMatch
_Predicate: TypeAlias = matcher_pb2.Matcher.MatcherList.Predicate


def speeches(redirect: Redirect) -> tuple[Speech, ...]:
    """The versions of HTTP that servers of a redirect may have to be spoken to with.

    Where only the client's side is encrypted, the client has negotiated with the proxy and the
    server is not asked; then gRPC goes on as HTTP/2 and the rest as HTTP/1.1.
    """
    if redirect.kind is L7Kind.HTTP and redirect.originating is not None:
        return (Speech.NEGOTIATED,)
    if redirect.kind is L7Kind.HTTP and redirect.terminating is not None:
        return (Speech.HTTP2, Speech.HTTP1)
    return (Speech.AS_CLIENT,)


def listener(
    redirect: Redirect,
    port: int,
    conditions: Sequence[Condition],
    needs: tls.TlsNeeds,
    options: EnvoyOptions,
) -> listener_pb2.Listener:
    """The listener of a redirect; `conditions` are its HTTP rules as they were read."""
    name = LogName.of(redirect, port)
    first, *others = options.listen_addresses
    made = listener_pb2.Listener(
        name=str(name), stat_prefix="redirect", address=_address(first, port)
    )
    for other in others:
        made.additional_addresses.add().address.CopyFrom(_address(other, port))
    made.transparent.value = True
    made.socket_options.append(mark(MARK_INGRESS if redirect.ingress else MARK_EGRESS))
    made.traffic_direction = base_pb2.INBOUND if redirect.ingress else base_pb2.OUTBOUND
    inspected = _looks_at_tls(redirect)
    made.listener_filters.extend(_listener_filters(redirect, inspected=inspected))

    chain = listener_components_pb2.FilterChain(name="allowed")
    if redirect.terminating is not None:
        protocols = ("h2", "http/1.1") if redirect.kind is L7Kind.HTTP else ()
        chain.transport_socket.CopyFrom(tls.server_socket(redirect.terminating, needs, protocols))
    if redirect.kind is L7Kind.HTTP:
        if any(rule.server_names for rule in redirect.http):
            chain.filters.append(_remembering([_state(SERVER_NAME_STATE)]))
        chain.filters.append(_http_manager(name, redirect, conditions, options))
    else:
        chain.filters.extend(_forwarding(name, redirect, options))
    made.filter_chains.append(chain)
    if inspected:
        _limit_names(made, name, redirect, options)
    return made


def _address(host: str, port: int) -> address_pb2.Address:
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=host, port_value=port)
    )


def _looks_at_tls(redirect: Redirect) -> bool:
    return redirect.terminating is not None or bool(redirect.server_names)


def _listener_filters(
    redirect: Redirect, *, inspected: bool
) -> Iterable[listener_components_pb2.ListenerFilter]:
    configs = {"envoy.filters.listener.original_dst": pack(original_dst_pb2.OriginalDst())}
    if inspected:
        inspector = tls_inspector_pb2.TlsInspector()
        configs["envoy.filters.listener.tls_inspector"] = pack(inspector)
    if not redirect.ingress:
        source = original_src_pb2.OriginalSrc(mark=MARK_EGRESS)
        configs["envoy.filters.listener.original_src"] = pack(source)
    return (
        listener_components_pb2.ListenerFilter(name=name, typed_config=config)
        for name, config in configs.items()
    )


# ---- server names ----


def _limit_names(
    made: listener_pb2.Listener, name: LogName, redirect: Redirect, options: EnvoyOptions
) -> None:
    """Let only TLS connections in, and only those with a listed name if there is a list."""
    made.access_log.append(connection_log(name, options, connected=False))
    if not redirect.server_names:
        made.filter_chains[0].filter_chain_match.transport_protocol = "tls"
        return
    matcher = made.filter_chain_matcher
    for listed in sorted(redirect.server_names):
        field = matcher.matcher_list.matchers.add()
        field.predicate.CopyFrom(_has_name(listed))
        field.on_match.CopyFrom(_chain("allowed"))
    if redirect.audit:
        chain = listener_components_pb2.FilterChain(name="audited")
        chain.filters.extend(_forwarding(name, redirect, options, audited=True))
        made.filter_chains.append(chain)
        matcher.on_no_match.CopyFrom(_chain("audited"))


def _chain(name: str) -> _OnMatch:
    action = xds_extension_pb2.TypedExtensionConfig(
        name=name, typed_config=pack(StringValue(value=name))
    )
    return _OnMatch(action=action)


def _has_name(name: str) -> _Predicate:
    form, text = server_name(name)
    if form is Form.EXACT:
        matcher = string_pb2.StringMatcher(exact=text)
    else:
        expression = regex_pb2.RegexMatcher(regex=text)
        expression.google_re2.SetInParent()
        matcher = string_pb2.StringMatcher(safe_regex=expression)
    given = xds_extension_pb2.TypedExtensionConfig(
        name="server name", typed_config=pack(network_inputs_pb2.ServerNameInput())
    )
    single = _Predicate.SinglePredicate(input=given, value_match=matcher)
    return _Predicate(single_predicate=single)


# ---- filters of connections ----


def _forwarding(
    name: LogName, redirect: Redirect, options: EnvoyOptions, *, audited: bool = False
) -> Iterable[listener_components_pb2.Filter]:
    """Bytes as they are. Servers are asked for the name that the client asked the proxy for."""
    originating = None if audited else redirect.originating
    if originating is not None:
        names = ("envoy.network.upstream_server_name", "envoy.network.upstream_subject_alt_names")
        yield _remembering([_state(name) for name in names])
    proxy = tcp_proxy_pb2.TcpProxy(
        stat_prefix="audited" if audited else "allowed",
        cluster=cluster_name(redirect.ingress, Speech.AS_CLIENT, originating),
        access_log=[connection_log(name, options, connected=True)],
    )
    proxy.access_log_options.flush_access_log_on_connected = True
    yield listener_components_pb2.Filter(
        name="envoy.filters.network.tcp_proxy", typed_config=pack(proxy)
    )


def _remembering(values: Iterable[value_pb2.FilterStateValue]) -> listener_components_pb2.Filter:
    state = set_filter_state_pb2.Config(on_new_connection=values)
    return listener_components_pb2.Filter(
        name="envoy.filters.network.set_filter_state", typed_config=pack(state)
    )


def _state(key: str) -> value_pb2.FilterStateValue:
    """Keep the server name of a connection under a key."""
    text = substitution_format_string_pb2.SubstitutionFormatString(
        text_format_source=base_pb2.DataSource(inline_string="%REQUESTED_SERVER_NAME%"),
        omit_empty_values=True,
    )
    value = value_pb2.FilterStateValue(object_key=key, format_string=text, skip_if_empty=True)
    if key == SERVER_NAME_STATE:
        value.factory_key = "envoy.string"
    return value


def _http_manager(
    name: LogName, redirect: Redirect, conditions: Sequence[Condition], options: EnvoyOptions
) -> listener_components_pb2.Filter:
    manager = _Manager(
        stat_prefix="redirect",
        codec_type=_Manager.AUTO,
        server_header_transformation=_Manager.PASS_THROUGH,
        route_config=route_configuration(redirect, conditions, _destinations(redirect), options),
        http_filters=[*mutation_filters(conditions), _router()],
        access_log=http_logs(name, redirect, options),
        stream_idle_timeout=duration(options.stream_idle_timeout_s),
        upgrade_configs=[_Manager.UpgradeConfig(upgrade_type="websocket")],
        local_reply_config=_replies(options),
    )
    # Headers about forwarding stay as the client sent them. Envoy's own are taken from nobody.
    manager.use_remote_address.value = False
    manager.internal_address_config.cidr_ranges.add(
        address_prefix="127.0.0.1"
    ).prefix_len.value = 32
    manager.generate_request_id.value = False
    manager.preserve_external_request_id = True
    manager.http_protocol_options.accept_http_10 = True
    refuses = not (redirect.allow_all or redirect.audit)
    if options.normalize_path and refuses and restricts_path(conditions):
        manager.normalize_path.value = True
        manager.merge_slashes = True
        manager.path_with_escaped_slashes_action = _Manager.UNESCAPE_AND_REDIRECT
    return listener_components_pb2.Filter(
        name="envoy.filters.network.http_connection_manager", typed_config=pack(manager)
    )


def _destinations(
    redirect: Redirect,
) -> list[tuple[Sequence[tuple[str, Comparison]], str]]:
    names = [
        cluster_name(redirect.ingress, one, redirect.originating) for one in speeches(redirect)
    ]
    return [(_GRPC if name is not names[-1] else (), name) for name in names]


def _router() -> manager_pb2.HttpFilter:
    router = router_pb2.Router(suppress_envoy_headers=True)
    return manager_pb2.HttpFilter(name="envoy.filters.http.router", typed_config=pack(router))


def _replies(options: EnvoyOptions) -> manager_pb2.LocalReplyConfig:
    """Requests without a path (CONNECT) have no route: they are refused as others are."""
    comparison = accesslog_pb2.ComparisonFilter(op=accesslog_pb2.ComparisonFilter.EQ)
    comparison.value.default_value = 404
    comparison.value.runtime_key = "proxy.status_without_route"
    mapper = manager_pb2.ResponseMapper(
        body=base_pb2.DataSource(inline_string=denied_body(options))
    )
    mapper.filter.status_code_filter.comparison.CopyFrom(comparison)
    mapper.status_code.value = 403
    return manager_pb2.LocalReplyConfig(mappers=[mapper])
