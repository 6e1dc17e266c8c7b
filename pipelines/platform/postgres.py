"""PostgreSQL from the system's packages, for MLflow alone: on 127.0.0.1, with a password, its data in a folder."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from components.contracts import InputError
from pipelines.platform.processes import Server, as_user

USER = "mlflow"
# Ends it without waiting for its clients.
GOODBYE = signal.SIGINT
# Where distributions put it when not in PATH.
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
_MISSING = (
    "PostgreSQL is not installed: `apt-get install --no-install-recommends postgresql` (Debian, Ubuntu), `dnf install "
    "postgresql-server` (Fedora, RHEL) or `brew install postgresql@17` (macOS). It need not be started: this command does that."
)


def start(folder: Path, port: int) -> Server:
    """Starts it, with an empty cluster where there is none; the data lies in `folder/postgresql`.

    Raises:
        InputError: if it is not installed, or if the user that it must run as for root cannot enter the folder.
    """
    server = Server("postgresql", folder / "run", GOODBYE)
    binaries, data, user = _binaries(), folder / "postgresql", _user()
    if user:
        _check_reachable(folder, user)
    if not data.is_dir():
        _create(binaries, data, user, password(folder))
    if not server.running:
        _drop_stale_lock(data)
    command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=200"]
    server.start(command, lambda: _accepts(binaries, port), user=user)
    return server


def uri(port: int, database: str) -> str:
    """As SQLAlchemy takes it, without the password, which libpq reads from the file that `PGPASSFILE` names."""
    return f"postgresql+psycopg2://{USER}@127.0.0.1:{port}/{database}"


def password_file(folder: Path) -> Path:
    """`.pgpass`, as libpq reads it; made with a new password where there is none."""
    path = folder / "secrets" / "pgpass"
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"127.0.0.1:*:*:{USER}:{secrets.token_urlsafe(24)}\n")
    return path


def password(folder: Path) -> str:
    return password_file(folder).read_text(encoding="utf-8").strip().rpartition(":")[2]


def create_database(folder: Path, port: int, name: str) -> None:
    """Creates a database where there is none of that name."""
    import psycopg2
    from psycopg2 import errors, sql

    connection = psycopg2.connect(host="127.0.0.1", port=port, user=USER, password=password(folder), dbname="postgres")
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except errors.DuplicateDatabase:
        pass
    finally:
        connection.close()


def installed() -> bool:
    return bool(shutil.which("postgres") or _places())


def _places() -> list[Path]:
    """Folders with its programs outside PATH, the latest version last."""
    found = [folder for place in _PLACES for folder in Path("/").glob(place[1:]) if (folder / "postgres").exists()]
    return sorted(found, key=lambda folder: int(re.sub(r"\D", "", str(folder))))


def _binaries() -> Path:
    if not installed():
        raise InputError(_MISSING)
    known = shutil.which("postgres")
    return Path(known).resolve().parent if known else _places()[-1]


def _user() -> str | None:
    """Who runs it: this user, or for root, whom it refuses, the one that its package made, or `nobody`."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def _check_reachable(folder: Path, user: str) -> None:
    for path in reversed([folder, *folder.parents]):
        if subprocess.run(["test", "-x", str(path)], cwd="/", **as_user(user)).returncode:
            raise InputError(
                f"PostgreSQL refuses to run as root and runs as {user!r}, who cannot enter {path}. Choose another folder, "
                f"start the platform as another user, or `chmod o+x {path}`."
            )


def _create(binaries: Path, data: Path, user: str | None, password: str) -> None:
    # Under another name first: what a killed initdb leaves is no cluster.
    partial = data.with_name("postgresql.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    command = [str(binaries / "initdb"), "-D", str(partial), "-U", USER, "-E", "UTF8", "--locale=C.UTF-8"]
    command += ["--auth=scram-sha-256", "--pwfile=/dev/stdin", "--no-instructions"]
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write(password)
    options: dict[str, Any] = {}
    if user:
        options = as_user(user)
        shutil.chown(partial, user, options["group"])
        # initdb opens it by name, which the pipe's owner alone may do.
        os.fchown(reading, pwd.getpwnam(user).pw_uid, -1)
    done = subprocess.run(command, stdin=reading, text=True, capture_output=True, cwd="/", **options)
    os.close(reading)
    if done.returncode:
        raise InputError(f"PostgreSQL could not create its folder {data}: {done.stderr.strip()}")
    partial.rename(data)


def _drop_stale_lock(data: Path) -> None:
    """PostgreSQL takes its own lock file for valid when any process has got that number since, as in a new container."""
    import psutil

    lock = data / "postmaster.pid"
    try:
        name = psutil.Process(int(lock.read_text(encoding="utf-8").split()[0])).name()
    except (FileNotFoundError, psutil.NoSuchProcess):
        return
    if not name.startswith("postgres"):
        lock.unlink()


def _accepts(binaries: Path, port: int) -> bool:
    command = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(command).returncode == 0
