import pytest
from cilium_agent import configurations
from cilium_agent.errors import OptionError
from cilium_agent.options import changes, current
from cilium_agent.settings import AgentSettings, tcp_flag_mask
from cilium_core.identities import Families
from cilium_core.policy.options import HeaderRegex
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
        (["--proxy-port-range=20000-10000"], "proxy-port-range"),
        (["--proxy-port-range=80-90"], "proxy-port-range"),
        (["--proxy-port-range=many"], "proxy-port-range"),
        (["--bpf-policy-map-max=100"], "bpf-policy-map-max"),
        (["--header-regex=perhaps"], "header-regex"),
        (["--node-labels=x"], "node-labels"),
        (["--policy-cidr-match-mode=pods"], "policy-cidr-match-mode"),
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


def test_settings_of_policy_reach_the_policy_engine():
    arguments = [
        "--enable-host-firewall",
        "--enable-node-selector-labels",
        "--enable-l7-proxy=false",
        "--header-regex=never",
        "--allow-localhost=policy",
        "--network-policy-ip-block-pods",
    ]
    settings = load(AgentSettings, arguments, {}).value
    options = configurations.policy_options(settings, Families())
    assert options.host_firewall
    assert options.node_selector_labels
    assert not options.l7_proxy
    assert options.header_regex is HeaderRegex.NEVER
    assert not options.allow_localhost
    assert options.ip_block_pods


def test_refused_names_are_answered_as_the_setting_says():
    settings = load(AgentSettings, ["--tofqdns-dns-reject-response-code=nameError"], {}).value
    assert configurations.dns_options(settings).reject_rcode == 3


@pytest.mark.parametrize(
    ("address", "exempt"),
    [("172.30.0.1:2379", "172.30.0.1"), ("[fd00::1]:2379", "fd00::1"), ("etcd.test:2379", None)],
)
def test_the_nodes_own_policy_never_cuts_it_off_from_the_store(address, exempt):
    settings = load(AgentSettings, [f"--etcd-endpoints={address}"], {}).value
    (exemption,) = configurations.exemptions(settings)
    peer = str(exemption.peer) if exemption.peer else None
    assert (exemption.direction, exemption.proto, exemption.port, peer) == (2, 6, 2379, exempt)


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
