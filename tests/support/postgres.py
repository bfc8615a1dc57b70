"""Debian's Postgres in a folder of its own, as an unprivileged user, for tests marked `debian("postgresql")`."""

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psycopg
from debian import program

from deepfake_preprocess.support.sockets import listening

USER = "postgres"


@contextmanager
def postgres():
    """Yield the SQLAlchemy URL of a server's database; further ones are made by `database`."""
    # Not below pytest's folder, which only its own user may enter.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    as_user = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    if as_user:
        shutil.chown(folder, USER, USER)
    data = str(folder / "data")
    with (folder / "log").open("w") as log:
        options = {**as_user, "stdout": log, "stderr": log, "cwd": folder}
        command = [program("postgresql", "initdb"), "--no-sync", "-A", "trust", "-U", USER, "-D", data]
        subprocess.run([*command, "-E", "UTF8", "--locale=C"], check=True, **options)
        with listening("127.0.0.1", 0) as probe:
            port = probe.getsockname()[1]
        settings = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        server = subprocess.Popen([program("postgresql"), "-D", data, "-p", str(port), *settings], **options)
        try:
            ready = [program("postgresql", "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
            while subprocess.run(ready, check=False).returncode:
                assert server.poll() is None, (folder / "log").read_text()
            yield f"postgresql+psycopg://{USER}@127.0.0.1:{port}/{USER}"
        finally:
            server.send_signal(signal.SIGINT)  # ends connections that are open
            server.wait(30)
            shutil.rmtree(folder)


def database(server, name):
    """Make an empty database on a server that `postgres` gave; returns its SQLAlchemy URL."""
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.rpartition("/")[0] + f"/{name}"
