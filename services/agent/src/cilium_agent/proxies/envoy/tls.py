"""TLS contexts: which items of which Secret they use, and their transport sockets.

Keys and certificates travel as xDS secrets of their own. A listener whose secrets are missing is
made all the same, and Envoy accepts nothing on it until they are there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cilium_core.policy.l7 import SecretRef, TlsContext
from envoy.config.core.v3 import base_pb2, config_source_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2

from cilium_agent.proxies.envoy.packing import pack
from cilium_agent.proxies.secrets import Secrets

if TYPE_CHECKING:
    from collections.abc import Iterable


CA_ITEM = "ca.crt"
CERTIFICATE_ITEM = "tls.crt"
KEY_ITEM = "tls.key"


class SecretItem(NamedTuple):
    """What one xDS secret is made of: a certificate with its key, or (`key` empty) a CA."""

    namespace: str
    name: str
    certificate: str
    key: str = ""

    @property
    def text(self) -> str:
        """The name of the xDS secret."""
        items = f"{self.certificate}+{self.key}" if self.key else self.certificate
        return f"{self.namespace}/{self.name}:{items}"


@dataclass
class TlsNeeds:
    """Collects what the contexts of a configuration use, and what is missing."""

    secrets: Secrets
    items: dict[str, SecretItem] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def need(self, item: SecretItem) -> secret_pb2.SdsSecretConfig:
        """A reference to an xDS secret."""
        self.items[item.text] = item
        data = self.secrets.get(SecretRef(item.namespace, item.name))
        wanted = [name for name in (item.certificate, item.key) if name]
        if data is None:
            self.problems.append(f"secret {item.namespace}/{item.name} does not exist")
        else:
            self.problems += [
                f"secret {item.namespace}/{item.name} has no item {name}"
                for name in wanted
                if name not in data
            ]
        source = config_source_pb2.ConfigSource(resource_api_version=config_source_pb2.V3)
        source.initial_fetch_timeout.seconds = 1  # one that is missing holds up no other
        source.ads.SetInParent()
        return secret_pb2.SdsSecretConfig(name=item.text, sds_config=source)

    def has(self, context: TlsContext, item: str) -> bool:
        """Whether a context's Secret has an item."""
        return item in (self.secrets.get(context.secret) or {})


def server_socket(
    context: TlsContext, needs: TlsNeeds, protocols: Iterable[str]
) -> base_pb2.TransportSocket:
    """The clients' side: the proxy shows the context's certificate.

    Clients must show one themselves only where the policy names a CA to check it with.
    """
    common = _common(context, needs, certificate=True, authority=context.trusted_ca)
    common.alpn_protocols.extend(protocols)
    tls = tls_pb2.DownstreamTlsContext(common_tls_context=common)
    tls.require_client_certificate.value = bool(context.trusted_ca)
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(tls))


def client_socket(context: TlsContext, needs: TlsNeeds) -> base_pb2.TransportSocket:
    """The servers' side: the proxy checks the server with the context's CA, if it has one."""
    authority = context.trusted_ca or (CA_ITEM if needs.has(context, CA_ITEM) else "")
    own = bool(context.certificate or context.private_key) or (
        needs.has(context, CERTIFICATE_ITEM) and needs.has(context, KEY_ITEM)
    )
    common = _common(context, needs, certificate=own, authority=authority)
    tls = tls_pb2.UpstreamTlsContext(common_tls_context=common)
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(tls))


def checks_server(context: TlsContext, secrets: Secrets) -> bool:
    """Whether servers must show a certificate of a known CA, with the name that was asked for."""
    return bool(context.trusted_ca) or CA_ITEM in (secrets.get(context.secret) or {})


def xds_secret(item: SecretItem, secrets: Secrets) -> secret_pb2.Secret | None:
    """The xDS secret; None while the Secret object lacks something."""
    data = secrets.get(SecretRef(item.namespace, item.name)) or {}
    certificate, key = data.get(item.certificate), data.get(item.key)
    if certificate is None or (item.key and key is None):
        return None
    source = base_pb2.DataSource(inline_bytes=certificate)
    if not item.key:
        validation = common_pb2.CertificateValidationContext(trusted_ca=source)
        return secret_pb2.Secret(name=item.text, validation_context=validation)
    pair = common_pb2.TlsCertificate(
        certificate_chain=source, private_key=base_pb2.DataSource(inline_bytes=key)
    )
    return secret_pb2.Secret(name=item.text, tls_certificate=pair)


def _common(
    context: TlsContext, needs: TlsNeeds, *, certificate: bool, authority: str
) -> tls_pb2.CommonTlsContext:
    common = tls_pb2.CommonTlsContext()
    namespace, name = context.secret
    if certificate:
        item = SecretItem(
            namespace,
            name,
            context.certificate or CERTIFICATE_ITEM,
            context.private_key or KEY_ITEM,
        )
        common.tls_certificate_sds_secret_configs.append(needs.need(item))
    if authority:
        config = needs.need(SecretItem(namespace, name, authority))
        common.validation_context_sds_secret_config.CopyFrom(config)
    return common
