"""Debian's Postgres in a folder of its own, as an unprivileged user, for tests marked `debian("postgresql")`."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import psycopg
from debian import program

from deepfake_preprocess.support.sockets import listening

USER = "postgres"


class Postgres:
    """A server that has to be closed; `url` is the SQLAlchemy URL of its database, `process` may be killed."""

    def __init__(self):
        # Not below pytest's folder, which only its own user may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        as_user = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
        if as_user:
            shutil.chown(self._folder, USER, USER)
        self._log = (self._folder / "log").open("w")
        self._options = {**as_user, "stdout": self._log, "stderr": self._log, "cwd": self._folder}
        data = str(self._folder / "data")
        command = [program("postgresql", "initdb"), "--no-sync", "-A", "trust", "-U", USER, "-D", data]
        subprocess.run([*command, "-E", "UTF8", "--locale=C.UTF-8"], check=True, **self._options)
        with listening("127.0.0.1", 0) as probe:
            self._port = str(probe.getsockname()[1])
        self.url = f"postgresql+psycopg://{USER}@127.0.0.1:{self._port}/{USER}"
        settings = {"fsync": "off", "listen_addresses": "127.0.0.1", "unix_socket_directories": str(self._folder)}
        named = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        self._command = [program("postgresql"), "-D", data, "-p", self._port, *named]
        self.process = self._start()
        self._over = threading.Event()
        self._manager = None
        while not self.is_ready():
            assert self.process.poll() is None, (self._folder / "log").read_text()

    def is_ready(self):
        ready = [program("postgresql", "pg_isready"), "-q", "-h", "127.0.0.1", "-p", self._port]
        return subprocess.run(ready, check=False).returncode == 0

    def keep_running(self):
        """Start it again from now on when it ends, as a service manager does."""
        self._manager = threading.Thread(target=self._keep_running)
        self._manager.start()

    def close(self):
        self._over.set()
        if self._manager is not None:
            self._manager.join()
            while not self.is_ready():  # it was killed just now; what it left ends with the next one
                if self.process.poll() is not None:
                    self.process = self._start()
        self.process.send_signal(signal.SIGINT)  # ends connections that are open
        self.process.wait(30)
        self._log.close()
        shutil.rmtree(self._folder)

    def _start(self):
        return subprocess.Popen(self._command, **self._options)

    def _keep_running(self):
        while not self._over.wait(0.1):
            # The first tries fail as long as processes of the one that was killed are left.
            if self.process.poll() is not None:
                self.process = self._start()


@contextmanager
def postgres():
    """Yield the SQLAlchemy URL of a server's database; further ones are made by `database`."""
    server = Postgres()
    try:
        yield server.url
    finally:
        server.close()


def database(server, name):
    """Make an empty database on a server that `postgres` gave; returns its SQLAlchemy URL."""
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.rpartition("/")[0] + f"/{name}"
