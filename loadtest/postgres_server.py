"""A PostgreSQL server of one's own: in a temporary folder, as a user without rights, ended by its process id."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from engine.errors import SwitchyardError
from loadtest.ports import free_port

_START_TIMEOUT_S = 60
_USER = "switchyard"


def missing() -> str | None:
    """Why no server can be started here, None where one can."""
    if _programs() is None or shutil.which("setpriv") is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (pip install '.[postgres]')"
    return None


def _programs() -> Path | None:
    """The folder of initdb and postgres: on PATH, or where Debian keeps them."""
    candidates = [Path(found).parent for found in [shutil.which("initdb")] if found]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


class PostgresServer:
    """Listens on a loopback port, asks for a password, and may be stopped, killed and started again."""

    def __init__(self, *, is_durable: bool = False) -> None:
        """`is_durable` False spares the disk, where the server does not crash.

        Raises: SwitchyardError where none can be started.
        """
        found, why = _programs(), missing()
        if found is None or why is not None:
            raise SwitchyardError(why or "PostgreSQL is not installed")
        self._programs = found
        self.folder = Path(tempfile.mkdtemp(prefix="switchyard-pg"))
        self.password = secrets.token_hex(8)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = [] if is_durable else ["-c", "fsync=off", "-c", "synchronous_commit=off"]
        secret = self.folder / "password"
        secret.write_text(self.password)
        for path in (self.folder, secret):
            os.chown(path, *_owner())
        self._run("initdb", "-D", str(self.folder / "data"), "-U", _USER, "-E", "UTF8", "--locale=C.UTF-8", "-A")

    @property
    def url(self) -> str:
        """Of the server's own database, with the password."""
        return f"postgresql+psycopg://{_USER}:{self.password}@127.0.0.1:{self.port}/postgres"

    def new_schema(self) -> str:
        """The URL of an empty schema: one more store on this server."""
        name = f"t{secrets.token_hex(8)}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}?options=-csearch_path%3D{name}"

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run one statement in a connection of its own."""
        import psycopg

        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start the server and wait until it answers. It ends with the thread that calls this."""
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        command += ["-k", "", "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=60", *self._settings]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._as_user(command), stdout=log, stderr=log, cwd=self.folder)
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise SwitchyardError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server in order, with its clients' transactions undone, as `pg_ctl stop -m fast`."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """End the server at once, without a checkpoint, as `pg_ctl stop -m immediate`."""
        self._end(signal.SIGQUIT)

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(_START_TIMEOUT_S)

    def freeze(self) -> None:
        """Stop every process of the server without ending it: connections stay, and nobody answers."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """Let a frozen server go on."""
        for process in self._processes():
            process.resume()

    def close(self) -> None:
        """End the server and remove its folder, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.crash()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]

    def _as_user(self, command: list[str]) -> list[str]:
        """The server refuses to run as root, and must not outlive a test run that is killed."""
        alone = ["setpriv", "--pdeathsig", "QUIT"]
        if os.geteuid() == 0:
            user, group = _owner()
            alone += ["--reuid", str(user), "--regid", str(group), "--clear-groups"]
        return [*alone, *command]

    def _run(self, program: str, *arguments: str) -> None:
        command = [
            str(self._programs / program),
            *arguments,
            "scram-sha-256",
            "--pwfile",
            str(self.folder / "password"),
        ]
        command += ["--no-sync"]
        done = subprocess.run(self._as_user(command), capture_output=True, cwd=self.folder)
        if done.returncode != 0:
            raise SwitchyardError(f"{program} failed: {done.stderr.decode().strip()[-500:]}")

    def _answers(self) -> bool:
        import psycopg

        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def _owner() -> tuple[int, int]:
    """User and group that the server's files belong to."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    names = {user.pw_name for user in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return user.pw_uid, user.pw_gid
