"""Settings: options win over the environment, that over the file."""

import fcntl

import pytest

from deepfake_client.cli.main import main
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.schema import open_engine
from deepfake_preprocess.errors import OptionError


def test_order_of_sources(tmp_path, monkeypatch):
    file = tmp_path / "gateway.toml"
    file.write_text('port = 1\nconcurrency = 3\nmodel = "a"\n')
    monkeypatch.setenv("DEEPFAKE_GATEWAY_CONCURRENCY", "4")
    monkeypatch.setenv("DEEPFAKE_GATEWAY_MODEL", "b")
    settings = Settings.of(file, model="c", host=None)
    assert (settings.port, settings.concurrency, settings.model) == (1, 4, "c")


def test_another_process_gets_the_same_settings(tmp_path, monkeypatch):
    settings = Settings.of(data_dir=tmp_path, port=0, allow_open=True, host="0.0.0.0", url="there:8001")
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.of() == settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": 70000}, "`port` is 70000"),
        ({"ports": 1}, "no setting `ports`; docs/gateway.md"),
        ({"role": "both"}, "`role`"),
    ],
)
def test_what_does_not_fit_is_one_sentence(given, message):
    with pytest.raises(OptionError, match=message):
        Settings.of(**given)


@pytest.mark.parametrize(
    "origin",
    [
        "*", "null", "", "app.example", "ftp://app.example", "https://", "https://app.example/", "https://app.example/x",
        "https://app.example?x", "https://App.example", "https://u:p@app.example", "https://app.example:443",
        "https://app.example:0", "https://*.example",
    ],
)  # fmt: skip
def test_what_no_browser_sends_as_an_origin_is_refused(origin):
    with pytest.raises(OptionError, match=r"`allowed_origins` .* is not an origin as browsers send it; write"):
        Settings.of(allowed_origins=[origin])


def test_origins_as_browsers_send_them():
    origins = ("https://app.example", "http://localhost:3000", "http://[::1]:8000", "http://app.example:443")
    assert Settings.of(allowed_origins=origins).allowed_origins == origins


def test_a_list_in_the_environment_that_is_no_json(monkeypatch):
    monkeypatch.setenv("DEEPFAKE_GATEWAY_ALLOWED_NETWORKS", "10.0.0.0/8")
    with pytest.raises(OptionError, match=r"allowed_networks.*as JSON"):
        Settings.of()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"`data_dir` .* cannot be made"):
        Settings.of(data_dir=tmp_path / place).make_data_dir()


@pytest.mark.parametrize("url", ["nonsense", "nosuch://host/name", "mysql://host/name"])
def test_a_database_that_is_not_supported(url):
    with pytest.raises(OptionError, match="name one as postgresql"):
        open_engine(url)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "gateway.db").write_text("nothing that SQLite knows, although it has some length")
    with pytest.raises(OptionError, match=r"cannot be opened \(file is not a database\); make it and its folder"):
        open_engine(Settings.of(data_dir=tmp_path).database_url)


def test_two_workers_of_one_name_are_refused(tmp_path, capsys):
    with (tmp_path / "my%2Fworker.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (tmp_path / "settings.toml").write_text('worker_name = "my/worker"\nport = 0\n')
        with pytest.raises(SystemExit) as end:
            main(["gateway", "--data-dir", str(tmp_path), "--settings", str(tmp_path / "settings.toml")])
    assert end.value.code == 2
    assert "the worker 'my/worker' is running on" in " ".join(capsys.readouterr().err.split())


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(OptionError, match="cannot be read"):
        Settings.of(tmp_path / "none.toml")


def test_the_address_of_a_database_stays_what_it_is(tmp_path):
    for url in ("sqlite:////tmp/a.db", "nonsense", "postgresql+pg8000://host/name"):
        assert Settings.of(database=url).database_url == url
    given = "postgresql+psycopg://us%40er:p%2Fw@host:5433/name?sslmode=require"
    assert Settings.of(database=given).database_url.startswith(given.partition("?")[0])
    assert "sslmode=require" in Settings.of(database=given).database_url
