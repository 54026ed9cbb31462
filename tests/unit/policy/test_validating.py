"""Checking files tells everything wrong with every object, each with its line."""

from __future__ import annotations

import pytest
from cilium_core.policy.validating import CheckedObject, Outcome, check_texts
from hypothesis import given
from hypothesis import strategies as st

VALID = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {}}
"""
WRONG = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: web
  namespace: shop
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{}]
    toPorts:
    - ports:
      - port: "99999"
        protocol: TCP
    bogus: 1
"""
OLD = """\
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: block}
spec:
  endpointSelector: {}
  ingress:
  - fromCIDR: [10.0.0.0/8]
  - fromCIDR: [192.0.2.0/24]
    action: Deny
"""
LATER = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names}
spec:
  endpointSelector: {}
  egress:
  - toGroups: [{aws: {}}]
"""


def check(*texts: str) -> list[CheckedObject]:
    return list(check_texts((f"{number}.yaml", text) for number, text in enumerate(texts)))


def test_every_problem_of_an_object_has_its_line_and_field():
    (found,) = check(WRONG)

    assert found.outcome is Outcome.INVALID
    assert found.label == "CiliumNetworkPolicy shop/web"
    assert {(remark.line, remark.path) for remark in found.errors} == {
        (12, "spec.ingress[0].toPorts[0].ports[0]"),
        (14, "spec.ingress[0].bogus"),
    }


def test_lines_count_from_the_start_of_the_file():
    _, found = check(VALID + "---\n" + OLD)

    assert found.outcome is Outcome.VALID
    assert found.line == 6
    assert [(remark.line, remark.path) for remark in found.warnings] == [
        (13, "spec.ingress[1]"),
    ]


def test_one_wrong_object_hides_no_other():
    assert [item.outcome for item in check(WRONG + "---\n" + VALID, LATER, OLD)] == [
        Outcome.INVALID,
        Outcome.VALID,
        Outcome.UNSUPPORTED,
        Outcome.VALID,
    ]


def test_a_file_that_stops_being_yaml_is_told_after_what_stands_before():
    valid, broken, other = check(VALID + "---\nspec: [\n", VALID.replace("closed", "other"))

    assert [item.outcome for item in (valid, other)] == [Outcome.VALID, Outcome.VALID]
    assert broken.outcome is Outcome.INVALID
    assert "not valid YAML" in str(broken.errors[0])


def test_objects_of_a_list_are_checked_each():
    items = "".join("- " + text.strip().replace("\n", "\n  ") + "\n" for text in (VALID, WRONG))
    valid, wrong = check(f"apiVersion: v1\nkind: List\nitems:\n{items}")

    assert (valid.outcome, wrong.outcome) == (Outcome.VALID, Outcome.INVALID)
    assert wrong.line == 8


@pytest.mark.parametrize("kind", ["Deployment", "Pod", "CiliumNodeConfig"])
def test_other_kinds_are_skipped(kind: str):
    (found,) = check(f"apiVersion: v1\nkind: {kind}\nmetadata: {{name: a, namespace: b}}\n")

    assert found.outcome is Outcome.SKIPPED
    assert found.label == f"{kind} b/a"


@pytest.mark.parametrize("kind", ["ciliumnetworkpolicy", "Networkpolicy", "AdminNetworkpolicy", ""])
def test_what_only_sounds_like_a_policy_is_an_error(kind: str):
    (found,) = check(f"apiVersion: v1\nkind: '{kind}'\nmetadata: {{name: a}}\n")

    assert found.outcome is Outcome.INVALID
    assert found.errors[0].path == "kind"


def test_cidr_groups_are_checked_too():
    group = "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: g}\n"
    valid, wrong = check(
        f"{group}spec:\n  externalCIDRs:\n  - 10.0.0.0/8\n  - 10.0.0.300/8\n",
        f"{group}spec:\n  externalCidrs: []\n",
    )

    assert valid.outcome is Outcome.VALID
    assert [(item.line, item.path) for item in valid.warnings] == [(7, "spec.externalCIDRs[1]")]
    assert wrong.outcome is Outcome.INVALID
    assert {(item.line, item.path) for item in wrong.errors} == {
        (4, "spec.externalCIDRs"),
        (5, "spec.externalCidrs"),
    }


def test_two_objects_of_one_name_are_pointed_out():
    first, second = check(VALID, VALID)

    assert not first.warnings
    assert "0.yaml:1" in str(second.warnings[0])


@given(st.text(max_size=200), st.sampled_from([VALID, WRONG, OLD]))
def test_any_text_is_told_about_and_never_crashes(text: str, rest: str):
    for found in check(text, rest + text):
        assert found.line >= 1
        assert bool(found.errors) == (found.outcome in {Outcome.INVALID, Outcome.UNSUPPORTED})
