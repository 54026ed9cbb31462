"""Options changed at run time, over restarts; options of endpoints."""

import dataclasses

import pytest
from cilium_agent.datapath import NodeConfig
from cilium_agent.endpoints import options
from cilium_agent.endpoints.records import Attachment, Endpoint, EndpointID
from cilium_agent.endpoints.states import State
from cilium_agent.endpoints.storing import EndpointDirectory
from cilium_agent.errors import OptionError
from cilium_agent.keptoptions import KeptOptions


def endpoint():
    return Endpoint(
        id=EndpointID(7),
        attachment=Attachment("c", "/n", "eth0"),
        namespace="shop",
        pod_name="web",
        pod_uid="",
        ipv4="10.0.0.7",
        ipv6="",
        state=State.RESTORING,
        created=True,
    )


def restarted(folder, config=None):
    kept = KeptOptions(folder / "options.json")
    return kept, kept.restore(config or NodeConfig())


def test_a_changed_option_survives_a_restart(tmp_path):
    kept, changes = restarted(tmp_path)
    assert changes == {}
    kept.keep({"policy-audit-mode": "true"})
    assert restarted(tmp_path)[1] == {"audit": True}


def test_an_option_changed_back_is_not_kept(tmp_path):
    kept, _ = restarted(tmp_path)
    kept.keep({"policy-audit-mode": "true"})
    kept.keep({"policy-audit-mode": "false"})
    assert restarted(tmp_path)[1] == {}


def test_a_changed_setting_has_the_last_word(tmp_path):
    kept, _ = restarted(tmp_path)
    kept.keep({"monitor-aggregation": "none"})
    other = dataclasses.replace(NodeConfig(), aggregation=4)
    assert restarted(tmp_path, other)[1] == {}


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"policy-audit-mode": 1}', '{"x": {"value": "1", "setting": ""}}']
)
def test_a_broken_file_is_passed_over(tmp_path, content):
    (tmp_path / "options.json").write_text(content)
    assert restarted(tmp_path)[1] == {}


def test_an_endpoints_audit_mode_is_set_and_kept_on_disk(tmp_path):
    audited = endpoint()
    assert options.change(audited, {"PolicyAuditMode": "Enabled"})
    assert not options.change(audited, {"policyauditmode": "true"})
    assert options.current(audited) == {"PolicyAuditMode": "Enabled"}
    directory = EndpointDirectory(tmp_path)
    directory.save(audited)
    assert directory.load().endpoints[0].audit


@pytest.mark.parametrize("change", [{"Debug": "true"}, {"PolicyAuditMode": "perhaps"}])
def test_a_bad_option_of_an_endpoint_is_named_and_changes_nothing(change):
    untouched = endpoint()
    with pytest.raises(OptionError, match=next(iter(change))):
        options.change(untouched, {"PolicyAuditMode": "true", **change})
    assert not untouched.audit
