"""Debian's C++ Tango database on a MariaDB of its own, in a folder; the machine's own services are left alone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tangods_detector.localtango import LocalTango
from tests.waiting import wait_for

SQL = "usr/share/dbconfig-common/data/tango-db/install/mysql"


def missing() -> str:
    """Why it cannot be had here, in a sentence; empty: it can."""
    programs = [
        name for name in ("mariadbd", "mariadb-install-db", "mariadb", "apt-get", "dpkg") if not shutil.which(name)
    ]
    return (
        f"{', '.join(programs)} not on this machine (Debian: mariadb-server-core, mariadb-client-core)"
        if programs
        else ""
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class MariaTango(LocalTango):
    """As LocalTango, but with DataBaseds 9.3 on MariaDB."""

    def __enter__(self) -> MariaTango:
        self._mariadb = maria(self.folder / "mariadb")
        self._port, self._package = self._mariadb.__enter__()
        super().__enter__()
        return self

    def close(self) -> None:
        super().close()
        self._mariadb.__exit__(None, None, None)

    def _start_database(self) -> None:
        self.tango_host = f"127.0.0.1:{free_port()}"
        self._spawn(
            "database",
            [str(self._package / "usr/lib/tango/DataBaseds"), "2", "-ORBendPoint", f"giop:tcp:{self.tango_host}"],
            MYSQL_HOST=f"127.0.0.1:{self._port}",
            MYSQL_USER="tango",
            MYSQL_PASSWORD="tango",
            HOME=str(self.folder),
        )
        self._wait("database", lambda: self.database.get_info())


@contextmanager
def maria(folder: Path) -> Iterator[tuple[int, Path]]:
    """A MariaDB with an empty Tango database in it: (its port, where the package tango-db is unpacked)."""
    package = _unpacked(folder / "package")
    data, port, sock = folder / "data", free_port(), f"/tmp/tango-mariadb-{os.getpid()}.sock"
    own = ["--no-defaults", f"--datadir={data}"]
    install = ["mariadb-install-db", *own, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run([*install, f"--user={_user()}"], check=True, capture_output=True, timeout=300)
    server = [*own, f"--port={port}", "--bind-address=127.0.0.1", f"--socket={sock}", f"--user={_user()}"]
    with (folder / "mariadbd.log").open("ab") as output:
        process = subprocess.Popen(["mariadbd", *server], stdout=output, stderr=output)
    try:

        def answers() -> bool:
            ping = ["mariadb", "--no-defaults", f"--socket={sock}", "-uroot", "-e", "select 1"]
            return subprocess.run(ping, capture_output=True, timeout=60).returncode == 0

        wait_for(answers, 120, "MariaDB")
        script = (package / SQL).read_text().replace("source /usr", f"source {package}/usr")
        users = "CREATE USER tango@'127.0.0.1' IDENTIFIED BY 'tango'; GRANT ALL ON tango.* TO tango@'127.0.0.1';"
        subprocess.run(
            ["mariadb", "--no-defaults", f"--socket={sock}", "-uroot"],
            input=f"CREATE DATABASE tango; {users} USE tango;\n{script}",
            text=True,
            check=True,
            capture_output=True,
            timeout=300,
        )
        yield port, package
    finally:
        process.terminate()
        process.wait(60)
        Path(sock).unlink(missing_ok=True)


def _user() -> str:
    """MariaDB runs as root only if it is told to."""
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _unpacked(folder: Path) -> Path:
    """The package is not installed: that would set up a database and a service of the machine."""
    if Path("/usr/lib/tango/DataBaseds").exists():
        return Path("/")
    folder.mkdir(parents=True)
    end = time.monotonic() + 120
    while subprocess.run(["apt-get", "download", "tango-db"], cwd=folder, capture_output=True, timeout=120).returncode:
        assert time.monotonic() < end, "apt-get download tango-db"
        subprocess.run(["apt-get", "update"], capture_output=True, timeout=120)
    (deb,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", deb, folder], check=True, timeout=60)
    return folder
