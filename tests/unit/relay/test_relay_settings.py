"""Settings of the relay."""

import pytest
from cilium_core.errors import InvalidError
from cilium_core.settings import SettingsError, load
from hubble_relay.settings import PREFIX, RelaySettings, take_file


def loaded(*argv, environ=None):
    return load(RelaySettings, argv, environ or {}, prefix=PREFIX).value


def test_several_addresses_may_be_given_at_once_or_one_by_one():
    settings = loaded(
        *("--listen-address", "unix:///a.sock,127.0.0.1:1", "--listen-address", ":2"),
        *("--peer-service", "unix:///p", "--disable-server-tls"),
    )

    assert settings.listen_address == ("unix:///a.sock", "127.0.0.1:1", ":2")
    assert settings.peer_service == ("unix:///p",)


def test_the_file_counts_less_than_the_environment(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "listen-address: [':1', ':2']\ndisable-server-tls: true\nretry-timeout: 7s\n"
        "sort-buffer-len-max: 5\n"
    )
    environ = {"RELAY_SORT_BUFFER_LEN_MAX": "9"}

    rest = take_file(["--config", str(file), "-D", "--cluster-name", "c"], environ)
    settings = loaded(*rest, environ=environ)

    assert settings.listen_address == (":1", ":2")
    assert settings.disable_server_tls
    assert settings.retry_timeout == 7
    assert settings.sort_buffer_len_max == 9
    assert settings.log_level == "debug"
    assert settings.cluster_name == "c"


@pytest.mark.parametrize("content", ["[", "- 1", None])
def test_a_file_that_cannot_be_used_is_told(tmp_path, content):
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)

    with pytest.raises(InvalidError, match=r"config\.yaml"):
        take_file([f"--config={file}"], {})


@pytest.mark.parametrize(
    ("argv", "key"),
    [
        ([], "tls-relay-server-cert-file"),
        (["--disable-server-tls", "--sort-buffer-len-max", "0"], "sort-buffer-len-max"),
        (
            ["--disable-server-tls", "--sort-buffer-drain-timeout", "0s"],
            "sort-buffer-drain-timeout",
        ),
        (
            ["--disable-server-tls", "--tls-hubble-client-cert-file", "/c"],
            "tls-hubble-client-cert-file",
        ),
    ],
)
def test_what_does_not_fit_names_the_setting(argv, key):
    with pytest.raises(SettingsError) as raised:
        loaded(*argv)

    assert [problem.key for problem in raised.value.problems] == [key]


def test_a_unix_socket_alone_needs_no_certificate():
    assert loaded("--listen-address", "unix:///a.sock").listen_address == ("unix:///a.sock",)
