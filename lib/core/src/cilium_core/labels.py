"""Labels: what an identity is made of and what a policy selects by.

Owns the text forms of a label, the immutable label set with its storage key, the filter that
decides which labels take part in an identity, and the translation of a pod and its namespace into
endpoint labels. Everyone reads this module: agent, operator, hubble-server and the command lines.

Everything here is an immutable value; nothing does I/O. Bad input raises `LabelError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import total_ordering
from typing import TYPE_CHECKING, Final

from cilium_core.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SOURCE_K8S: Final = "k8s"
SOURCE_RESERVED: Final = "reserved"
SOURCE_CIDR: Final = "cidr"
SOURCE_CIDR_GROUP: Final = "cidrgroup"
SOURCE_FQDN: Final = "fqdn"
SOURCE_NODE: Final = "node"
SOURCE_CONTAINER: Final = "container"
SOURCE_CNI: Final = "cni"
SOURCE_DIRECTORY: Final = "directory"
SOURCE_ANY: Final = "any"
SOURCE_UNSPEC: Final = "unspec"

KEY_NAMESPACE: Final = "io.kubernetes.pod.namespace"
KEY_SERVICE_ACCOUNT: Final = "io.cilium.k8s.policy.serviceaccount"
KEY_CLUSTER: Final = "io.cilium.k8s.policy.cluster"
KEY_NAMESPACE_LABELS_PREFIX: Final = "io.cilium.k8s.namespace.labels."
"""A namespace's own label `k` appears on its pods under this prefix followed by `k`."""

OWN_KEYS_PREFIX: Final = "io.cilium.k8s"
"""Keys below it are given by the agent; those a pod brings itself are thrown away."""

DEFAULT_CLUSTER: Final = "default"

_RESERVED_DOTTED: Final = "reserved."
_FORBIDDEN_IN_KEY: Final = frozenset(":=;")


class LabelError(InvalidError, ValueError):
    """A label, a stored label set or a label filter that cannot be understood."""


@total_ordering
@dataclass(frozen=True, slots=True)
class Label:
    """One label. `str()` gives `source:key=value`, without the `=` when the value is empty."""

    source: str
    key: str
    value: str = ""

    @classmethod
    def parse(cls, text: str, default_source: str = SOURCE_UNSPEC) -> Label:
        """Read `source:key=value`, `key=value`, `$reserved` or the legacy `reserved.name`.

        The source ends at the first colon (one that stands after the first `=` belongs to the
        value), the key at the first `=`. `default_source` is used when no source is written:
        `unspec` for the labels of an object, `any` in a selector.
        """
        source, key, value = default_source, text, ""
        if text.startswith("$"):
            source, key = SOURCE_RESERVED, text[1:]
        else:
            colon, equals = text.find(":"), text.find("=")
            if colon >= 0 and (equals < 0 or colon < equals):
                source, key = text[:colon] or default_source, text[colon + 1 :]
            elif colon < 0 and text.startswith(_RESERVED_DOTTED):
                source, key = SOURCE_RESERVED, text[len(_RESERVED_DOTTED) :]
        if source == SOURCE_RESERVED and key.startswith("="):
            key = key[1:]
        key, _, value = key.partition("=")
        if not key:
            raise LabelError(f"label {text!r} has no key; write source:key=value")
        return cls(source, key, value)

    def __str__(self) -> str:
        return (
            f"{self.source}:{self.key}={self.value}" if self.value else f"{self.source}:{self.key}"
        )

    def __lt__(self, other: Label) -> bool:
        return (self.key, self.source, self.value) < (other.key, other.source, other.value)

    @property
    def storage_text(self) -> str:
        """The label inside a storage key: `source:key=value;`, both separators always present."""
        return f"{self.source}:{self.key}={self.value};"


class LabelSet:
    """An immutable set of labels with one label per key, sorted by key; hashable.

    The key alone tells labels apart, whatever their source: of two labels with the same key the
    later one wins.
    """

    __slots__ = ("_by_key", "_hash", "_storage_key")

    def __init__(self, labels: Iterable[Label] = ()) -> None:
        by_key = {label.key: label for label in labels}
        self._by_key: dict[str, Label] = {key: by_key[key] for key in sorted(by_key)}
        self._storage_key: str = "".join(label.storage_text for label in self._by_key.values())
        self._hash: int = hash(self._storage_key)

    @classmethod
    def parse(cls, texts: Iterable[str], default_source: str = SOURCE_UNSPEC) -> LabelSet:
        """Read a list of labels in text form."""
        return cls(Label.parse(text, default_source) for text in texts)

    @classmethod
    def from_storage_key(cls, text: str) -> LabelSet:
        """Read what `storage_key` wrote; anything else raises `LabelError`."""
        if text and not text.endswith(";"):
            raise LabelError(f"stored labels {text!r} do not end in a semicolon")
        labels = []
        for part in text.split(";")[:-1]:
            source, colon, rest = part.partition(":")
            key, equals, value = rest.partition("=")
            if not (source and colon and key and equals):
                raise LabelError(f"stored label {part!r} is not of the form source:key=value")
            labels.append(Label(source, key, value))
        return cls(labels)

    @property
    def storage_key(self) -> str:
        """The set as the key-value store holds it; equal sets have equal keys."""
        return self._storage_key

    def get(self, key: str, source: str = SOURCE_ANY) -> Label | None:
        """The label with this key, provided that it comes from `source` (`any`: whatever)."""
        label = self._by_key.get(key)
        if label is None or (source != SOURCE_ANY and label.source != source):
            return None
        return label

    def value(self, key: str, source: str = SOURCE_ANY, default: str = "") -> str:
        """The value under a key, or `default` when there is no such label."""
        label = self.get(key, source)
        return default if label is None else label.value

    def texts(self) -> list[str]:
        """Every label as text, sorted by key."""
        return [str(label) for label in self._by_key.values()]

    def from_source(self, source: str) -> Iterator[Label]:
        """The labels of one source, in order of their keys."""
        return (label for label in self._by_key.values() if label.source == source)

    def merge(self, labels: Iterable[Label]) -> LabelSet:
        """A set with `labels` added; they replace labels with the same key."""
        return LabelSet((*self._by_key.values(), *labels))

    def __iter__(self) -> Iterator[Label]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, label: object) -> bool:
        return isinstance(label, Label) and self._by_key.get(label.key) == label

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelSet):
            return NotImplemented
        return self._storage_key == other._storage_key

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return ",".join(self.texts())

    def __repr__(self) -> str:
        return f"LabelSet({self})"


@dataclass(frozen=True, slots=True)
class FilterRule:
    """One expression of a label filter.

    `expression` is a regular expression that must match at the start of the key; `source` empty
    means labels of every source; `ignore` turns the rule from "keep" to "leave out".
    """

    expression: str
    source: str = ""
    ignore: bool = False
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            pattern = re.compile(self.expression)
        except re.error as error:
            raise LabelError(
                f"label filter {self.expression!r} is not a regular expression: {error}"
            ) from error
        object.__setattr__(self, "_pattern", pattern)

    @classmethod
    def parse(cls, text: str) -> FilterRule:
        """Read `[source:][!]expression`, where `!` means leave out."""
        source, colon, expression = text.partition(":")
        if not colon:
            source, expression = "", text
        ignore = expression.startswith("!")
        expression = expression.removeprefix("!")
        if not expression:
            raise LabelError(f"label filter {text!r} has no expression")
        return cls(expression, source, ignore)

    def match_length(self, label: Label) -> int:
        """How many characters of the key the expression matches, 0 when it does not."""
        if self.source and self.source != label.source:
            return 0
        match = self._pattern.match(label.key)
        return match.end() if match else 0


_DEFAULT_RULES: Final = tuple(
    FilterRule.parse(text)
    for text in (
        "reserved:.*",
        r"io\.kubernetes\.pod\.namespace",
        r"io\.cilium\.k8s\.namespace\.labels",
        r"app\.kubernetes\.io",
        r"io\.cilium\.k8s\.policy\.cluster",
        r"io\.cilium\.k8s\.policy\.serviceaccount",
        r"!io\.kubernetes",
        r"!kubernetes\.io",
        r"!statefulset\.kubernetes\.io/pod-name",
        r"!apps\.kubernetes\.io/pod-index",
        r"!batch\.kubernetes\.io/job-completion-index",
        r"!batch\.kubernetes\.io/controller-uid",
        r"!.*beta\.kubernetes\.io",
        r"!k8s\.io",
        r"!topology\.kubernetes\.io",
        "!pod-template-generation",
        "!pod-template-hash",
        "!controller-revision-hash",
        "!controller-uid",
        "!annotation.*",
        "!etcd_node",
    )
)


class LabelFilter:
    """Decides which labels take part in an identity.

    A label is kept when no "leave out" rule matches it, or when the longest matching "keep" rule is
    longer than the shortest matching "leave out" rule. Once the user names a "keep" rule of their
    own, a label must match some "keep" rule; the built-in ones alone do not ask for that.
    """

    def __init__(self, rules: Iterable[FilterRule] = ()) -> None:
        """`rules` are the user's, added to the built-in ones."""
        own = tuple(rules)
        self._rules = _DEFAULT_RULES + own
        self._keep_list = any(not rule.ignore for rule in own)

    @classmethod
    def parse(cls, text: str) -> LabelFilter:
        """Read the `labels` option: expressions separated by blanks, see `FilterRule.parse`."""
        return cls(FilterRule.parse(part) for part in text.split())

    def keeps(self, label: Label) -> bool:
        """Whether the label takes part in an identity."""
        kept = ignored = 0
        for rule in self._rules:
            length = rule.match_length(label)
            if not length:
                continue
            if not rule.ignore:
                kept = max(kept, length)
            elif not ignored or length < ignored:
                ignored = length
        return (ignored == 0 and not self._keep_list) or kept > ignored

    def apply(self, labels: LabelSet) -> LabelSet:
        """The identity-relevant part of a label set."""
        return LabelSet(label for label in labels if self.keeps(label))


def pod_labels(
    labels: Mapping[str, str],
    *,
    namespace: str,
    namespace_labels: Mapping[str, str] | None = None,
    service_account: str = "",
    cluster: str = DEFAULT_CLUSTER,
) -> LabelSet:
    """Every label of a pod's endpoint, before the identity filter.

    Keys that only the agent may give are removed from the pod's own labels first, so that a pod
    cannot claim another namespace, service account or cluster. A label that Kubernetes would not
    accept because it breaks the storage key raises `LabelError`, for the same reason.
    """
    result = {key: value for key, value in labels.items() if not key.startswith(OWN_KEYS_PREFIX)}
    for key, value in (namespace_labels or {}).items():
        result[KEY_NAMESPACE_LABELS_PREFIX + key] = value
    result[KEY_NAMESPACE] = namespace
    if service_account:
        result[KEY_SERVICE_ACCOUNT] = service_account
    result[KEY_CLUSTER] = cluster
    for key, value in result.items():
        if not key or set(key) & _FORBIDDEN_IN_KEY or ";" in value:
            raise LabelError(
                f"{key!r}: {value!r} is not a Kubernetes label; rename it on the object"
            )
    return LabelSet(Label(SOURCE_K8S, key, value) for key, value in result.items())
