import pytest
from cilium_agent.errors import OptionError
from cilium_agent.options import changes, current
from cilium_agent.settings import AgentSettings, tcp_flag_mask
from cilium_core.settings import SettingsError, load


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--enable-ipv4=false", "--enable-ipv6=false"], "enable-ipv4"),
        (["--monitor-aggregation-flags=syn,foo"], "monitor-aggregation-flags"),
        (["--prometheus-serve-addr=9962"], "prometheus-serve-addr"),
        (["--node-ipv4=0.0.0.0"], "node-ipv4"),
        (["--monitor-aggregation=some"], "monitor-aggregation"),
        (["--mtu=70000"], "mtu"),
    ],
)
def test_nonsense_is_refused_by_name(arguments, named):
    if named == "prometheus-serve-addr":
        arguments = ["--prometheus-serve-addr=localhost:http"]
    with pytest.raises(SettingsError, match=named):
        load(AgentSettings, arguments, {})


def test_defaults_are_valid():
    settings = load(AgentSettings, [], {}).value
    assert tcp_flag_mask(settings.monitor_aggregation_flags) == 0x07


def test_run_time_options_read_what_they_show():
    from cilium_agent.datapath import NodeConfig

    shown = current(NodeConfig())
    changed = changes(shown)
    assert all(getattr(NodeConfig(), field) == value for field, value in changed.items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tunnel-port", "1"),
        ("monitor-aggregation", "many"),
        ("monitor-aggregation-interval", "0s"),
        ("monitor-aggregation-flags", "x"),
        ("enable-hubble", "perhaps"),
    ],
)
def test_a_bad_run_time_option_is_named(name, value):
    with pytest.raises(OptionError, match=name):
        changes({name: value})
