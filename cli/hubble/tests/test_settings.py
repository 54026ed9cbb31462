"""Where settings come from, and the commands that look at and change them."""

import pytest
from hubble_cli.__main__ import run
from hubble_cli.arguments import Parsed
from hubble_cli.errors import HubbleError, UsageError
from hubble_cli.settings import Settings


@pytest.fixture
def file(tmp_path):
    return tmp_path / "dir" / "config.yaml"


def settings(environ=None, **flags):
    return Settings(Parsed((), {"config": "/no/such/file", **flags}), environ or {})


def test_flag_beats_environment_beats_file_beats_default(file):
    file.parent.mkdir()
    file.write_text("server: from-file:1\nTIMEOUT: 1m\ndebug: true\n")
    environ = {"HUBBLE_SERVER": "from-env:1", "HUBBLE_TIMEOUT": ""}

    both = settings(environ, config=str(file), server="from-flag:1")
    without_flag = settings(environ, config=str(file))
    without_environment = settings({}, config=str(file))

    assert both.text("server") == "from-flag:1"
    assert without_flag.text("server") == "from-env:1"
    assert without_environment.text("server") == "from-file:1"
    assert without_flag.duration_ns("timeout") == 60_000_000_000
    assert without_flag.enabled("debug")
    assert without_flag.duration_ns("request-timeout") == 12_000_000_000


def test_lists_come_from_the_environment_by_blanks_and_from_the_file_as_lists(file):
    file.parent.mkdir()
    file.write_text("tls-ca-cert-files: [c, d]\nallowlist: '{}'\n")

    assert settings({"HUBBLE_TLS_CA_CERT_FILES": "a b"}).strings("tls-ca-cert-files") == ["a", "b"]
    assert settings(config=str(file)).strings("tls-ca-cert-files") == ["c", "d"]
    assert settings(config=str(file)).strings("allowlist") == ["{}"]


@pytest.mark.parametrize("content", ["a: [", "- 1", "server: &x *y"])
def test_a_broken_file_is_told(file, content):
    file.parent.mkdir()
    file.write_text(content)

    with pytest.raises(HubbleError, match=str(file)):
        settings(config=str(file))


def test_a_value_that_does_not_fit_names_where_it_came_from():
    with pytest.raises(UsageError, match=r'"soon" for request-timeout \(environment\)'):
        settings({"HUBBLE_REQUEST_TIMEOUT": "soon"}).duration_ns("request-timeout")


def test_set_get_reset(file, capsys):
    config = ["--config", str(file)]
    run(["config", "set", "server", "unix:///x.sock", *config])
    run(["config", "set", "tls-ca-cert-files", "[a,b]", *config])
    run(["config", "set", "request-timeout", "90s", *config])
    for key in ("server", "tls-ca-cert-files", "request-timeout", "tls"):
        run(["config", "get", key, *config])

    assert capsys.readouterr().out == "unix:///x.sock\n[a, b]\n1m30s\nfalse\n"
    assert file.stat().st_mode & 0o777 == 0o600

    run(["config", "reset", "server", *config])
    run(["config", "get", "server", *config])
    assert capsys.readouterr().out == "localhost:4245\n"
    run(["config", "reset", *config])
    run(["config", "view", *config])
    assert "request-timeout: 12s\nserver: localhost:4245\n" in capsys.readouterr().out


def test_set_writes_only_what_was_set(file, monkeypatch):
    monkeypatch.setenv("HUBBLE_SERVER", "from-env:1")

    run(["config", "set", "debug", "true", "--config", str(file)])

    assert file.read_text() == "debug: true\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["config", "get", "nothing"], "unknown key: nothing"),
        (["config", "set", "nothing", "1"], "unknown key: nothing"),
        (["config", "set", "tls", "maybe"], "cannot assign value=maybe for key=tls"),
        (["config", "set"], "set requires exactly 1 or 2 argument"),
    ],
)
def test_wrong_keys_and_values_are_told(words, text, file):
    with pytest.raises(HubbleError, match=text):
        run([*words, "--config", str(file)])
