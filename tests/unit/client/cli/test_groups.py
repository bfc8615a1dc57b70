"""The options with which every command says how to reach a server."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from deepfake_client import Connection, Tls
from deepfake_client.cli.groups import ConnectionOptions
from deepfake_preprocess.cli.grouping import with_groups
from deepfake_preprocess.errors import OptionError

SEEN: list[tuple[str, Connection, bool]] = []


@with_groups
def command(name: str, connection: ConnectionOptions, loud: bool = False) -> None:
    """Say something."""
    SEEN.append((name, connection, loud))


def run(*arguments: str, **environment: str) -> Connection | Exception | None:
    """What the command was given, or the error that it raised."""
    SEEN.clear()
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, list(arguments), env={"DEEPFAKE_URL": None, "DEEPFAKE_TOKEN": None, **environment})
    if done.exit_code:
        assert isinstance(done.exception, OptionError), done.output
        return done.exception
    return SEEN[0][1]


def test_without_options_the_defaults_apply_and_the_commands_own_arguments_stay():
    assert run("clip", "--loud") == Connection()
    assert (SEEN[0][0], SEEN[0][2]) == ("clip", True)


def test_all_options_arrive():
    connection = run(
        "clip", "--url", "gpu:8443", "--protocol", "http", "--tls-ca", "ca.pem", "--tls-cert", "me.pem",
        "--tls-key", "me.key", "--header", "X-Team: video: one", "--header", "authorization:abc", "--timeout", "3",
    )  # fmt: skip
    assert isinstance(connection, Connection)
    assert {key: str(value) for key, value in vars_of(connection.tls).items()} == {
        "ca": "ca.pem", "certificate": "me.pem", "key": "me.key",
    }  # fmt: skip
    assert connection.headers == {"x-team": "video: one", "authorization": "abc"}
    assert (connection.url, connection.protocol, connection.timeout_s) == ("gpu:8443", "http", 3)
    assert connection.address.protocol == "http"


def vars_of(tls: Tls | None) -> dict[str, object]:
    assert tls is not None
    return {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key}


def test_url_and_token_come_from_the_environment_too():
    connection = run("clip", "--tls", DEEPFAKE_URL="gpu:9001", DEEPFAKE_TOKEN=" abc ")
    assert connection == Connection(url="gpu:9001", tls=Tls(), headers={"authorization": "Bearer abc"})
    given = run("clip", "--header", "Authorization: Basic x", DEEPFAKE_TOKEN="abc")
    assert isinstance(given, Connection)
    assert given.headers == {"authorization": "Basic x"}, "what is typed wins"


def test_half_a_certificate_and_a_header_without_colon_are_refused():
    assert "`tls.key` belong together" in str(run("clip", "--tls-cert", "me.pem"))
    refused = str(run("clip", "--header", "s3cret"))
    assert "'name: value'" in refused
    assert "s3cret" not in refused
