"""What a policy says above the transport layer, from model to normal form.

Pure functions; what cannot be enforced is reported, and then nothing of the object is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cilium_core.policy.findings import Findings
from cilium_core.policy.kafka_keys import API_KEYS, ROLES
from cilium_core.policy.l7 import (
    DnsRule,
    HeaderMatch,
    HttpRule,
    KafkaRule,
    L7Kind,
    L7Match,
    Mismatch,
    SecretRef,
    TlsContext,
)
from cilium_core.policy.options import HeaderRegex, PolicyOptions
from cilium_core.policy.patterns import compiles, is_expression
from cilium_core.policy.rules import Direction

if TYPE_CHECKING:
    from cilium_core.policy.models_l7 import (
        DnsModel,
        HeaderMatchModel,
        HttpModel,
        KafkaModel,
        L7Rules,
        TlsModel,
    )
    from cilium_core.policy.models_ports import PortProtocol, PortRule
    from cilium_core.policy.models_values import SecretModel

_DEFAULT_NAMESPACE: Final = "default"
_HTTP: Final = HttpRule()
_KAFKA: Final = KafkaRule()


@dataclass(frozen=True, slots=True)
class L7Reader:
    """Reads the L7 parts of one rule of an object.

    `namespace` is that of the policy, empty for a cluster-wide one; `nodes` says that the rule is
    about nodes, not endpoints.
    """

    options: PolicyOptions
    findings: Findings
    namespace: str
    direction: Direction
    nodes: bool

    def read(self, rule: PortRule, path: str) -> L7Match | None:
        """The L7 part of an item of `toPorts`; None when it has none."""
        if rule.listener is not None and self.direction is Direction.INGRESS:
            self.findings.problem(f"{path}.listener", "can only be part of an egress rule")
        elif rule.listener is not None:
            self.findings.unsupported(
                f"{path}.listener",
                "is not available: Envoy has no listeners but those made for rules",
            )
        rules = rule.rules if rule.has_l7_rules else None
        tls = bool(rule.server_names or rule.terminating_tls or rule.originating_tls)
        if rules is None and not tls:
            return None
        kind = _kind(rules)
        self._check_place(kind, path)
        self._check_ports(kind, rule, path, has_rules=rules is not None)
        if kind in {L7Kind.DNS, L7Kind.KAFKA} and tls:
            self.findings.unsupported(
                f"{path}.rules.{kind.value}",
                "cannot be enforced inside TLS; leave the TLS part out",
            )
        http, dns, kafka = self._rules(rules, f"{path}.rules")
        return L7Match(
            kind,
            http,
            dns,
            kafka,
            frozenset(name.lower() for name in rule.server_names or ()),
            self._tls(rule.terminating_tls),
            self._tls(rule.originating_tls),
        )

    def _check_place(self, kind: L7Kind, path: str) -> None:
        if not self.options.l7_proxy:
            self.findings.problem(path, "needs the option enable-l7-proxy")
        if self.direction is Direction.INGRESS:
            if kind is L7Kind.DNS:
                self.findings.problem(f"{path}.rules.dns", "can only be part of an egress rule")
            elif self.nodes:
                self.findings.problem(path, "rules above layer 4 cannot be about traffic to nodes")
        elif self.nodes and kind is not L7Kind.DNS:
            self.findings.problem(path, "of the rules above layer 4, only dns can be about nodes")

    def _check_ports(self, kind: L7Kind, rule: PortRule, path: str, *, has_rules: bool) -> None:
        if kind is L7Kind.DNS and not rule.ports:
            self.findings.problem(f"{path}.rules.dns", "needs ports, such as 53 of protocol ANY")
        if not rule.ports:
            self.findings.warnings.append(f"{path}: has no effect without ports")
        for index, port in enumerate(rule.ports or ()):
            place = f"{path}.ports[{index}]"
            if has_rules and port.port in {None, "0"}:
                self.findings.problem(
                    f"{place}.port", "rules above layer 4 need a port; they cannot apply to all"
                )
            if kind is L7Kind.DNS:
                self._check_dns_port(port, place)
            elif has_rules and port.protocol != "TCP":
                self.findings.problem(
                    f"{place}.protocol", "must be TCP beside these rules (leaving it out means ANY)"
                )
            elif port.protocol not in {"TCP", "ANY"}:
                self.findings.problem(f"{place}.protocol", "must be TCP, which is what TLS runs on")
            elif port.protocol == "ANY":
                self.findings.warnings.append(f"{place}: TLS runs on TCP; only that is allowed")

    def _check_dns_port(self, port: PortProtocol, place: str) -> None:
        first = int(port.port) if port.port and port.port.isdecimal() else None
        if port.end_port and (first is None or port.end_port > first):
            self.findings.problem(f"{place}.endPort", "cannot be part of a rule for DNS")
        if port.protocol not in {"TCP", "UDP", "ANY"}:
            self.findings.problem(f"{place}.protocol", "must be TCP, UDP or ANY beside DNS rules")

    def _rules(
        self, rules: L7Rules | None, path: str
    ) -> tuple[tuple[HttpRule, ...], tuple[DnsRule, ...], tuple[KafkaRule, ...]]:
        if rules is None:
            return (), (), ()
        if rules.l7proto is not None:
            self.findings.unsupported(
                f"{path}.l7proto",
                "is not available: there are parsers for http, dns and kafka only",
            )
        http = tuple(
            self._http(item, f"{path}.http[{index}]") for index, item in enumerate(rules.http or ())
        )
        dns = tuple(rule for item in rules.dns or () for rule in _dns(item))
        kafka = tuple(_kafka(item) for item in rules.kafka or ())
        # An empty rule alone allows everything, and so says nothing.
        return () if http == (_HTTP,) else http, dns, () if kafka == (_KAFKA,) else kafka

    def _http(self, item: HttpModel, path: str) -> HttpRule:
        headers = [
            self._header(text, f"{path}.headers[{index}]")
            for index, text in enumerate(item.headers or ())
        ]
        headers += [self._header_match(match) for match in item.header_matches or ()]
        return HttpRule(item.path, item.method, item.host, tuple(dict.fromkeys(headers)))

    def _header(self, text: str, path: str) -> HeaderMatch:
        """A header written in one string: what follows the first blank is the value."""
        name, blank, value = text.partition(" ")
        if not blank:
            if ":" in text:
                self.findings.warnings.append(
                    f"{path}: matches nothing, since no blank divides name and value; write "
                    "'Name: value'"
                )
            return HeaderMatch(text.lower())
        return HeaderMatch(name.rstrip(":").lower(), value, self._is_pattern(value, path))

    def _is_pattern(self, value: str, path: str) -> bool:
        match self.options.header_regex:
            case HeaderRegex.NEVER:
                return False
            case HeaderRegex.ALWAYS:
                return compiles(value)
            case HeaderRegex.AUTO:
                found = is_expression(value)
                if found:
                    self.findings.warnings.append(
                        f"{path}: the value was read as a regular expression too; the option "
                        "header-regex says when"
                    )
                return found

    def _header_match(self, match: HeaderMatchModel) -> HeaderMatch:
        return HeaderMatch(
            match.name.lower(),
            match.value,
            False,
            self._secret(match.secret) if match.secret is not None else None,
            Mismatch(match.mismatch) if match.mismatch is not None else None,
        )

    def _secret(self, secret: SecretModel) -> SecretRef:
        return SecretRef(secret.namespace or self.namespace or _DEFAULT_NAMESPACE, secret.name)

    def _tls(self, context: TlsModel | None) -> TlsContext | None:
        if context is None:
            return None
        secret = self._secret(context.secret)
        return TlsContext(secret, context.trusted_ca, context.certificate, context.private_key)


def _kind(rules: L7Rules | None) -> L7Kind:
    if rules is None:
        return L7Kind.TLS
    if rules.dns:
        return L7Kind.DNS
    return L7Kind.KAFKA if rules.kafka else L7Kind.HTTP


def _dns(item: DnsModel) -> list[DnsRule]:
    names = [DnsRule(name=item.match_name)] if item.match_name is not None else []
    return names + ([DnsRule(pattern=item.match_pattern)] if item.match_pattern is not None else [])


def _kafka(item: KafkaModel) -> KafkaRule:
    keys: frozenset[int] = frozenset()
    if item.role:
        keys = ROLES[item.role.lower()]
    elif item.api_key:
        keys = frozenset((API_KEYS[item.api_key.lower()],))
    version = int(item.api_version) if item.api_version else None
    return KafkaRule(keys, version, item.client_id, item.topic)
