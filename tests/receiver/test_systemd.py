"""What systemd is told when it is slow."""

import socket
import threading
from pathlib import Path

import pytest

from tangods_receiver import systemd


def test_ready_waits_for_a_busy_manager_and_status_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        for number in range(1000):  # more than the kernel keeps
            systemd.notify(f"STATUS={number} {'x' * 1000}")
        monkeypatch.setattr(systemd, "PATIENCE", 30.0)
        ready = threading.Thread(target=systemd.notify, args=("READY=1",))
        ready.start()
        told = []
        while not told or told[-1] != "READY=1":
            told.append(manager.recv(65536).decode())
        ready.join()
    assert 1 < len(told) < 1000 and told[0].startswith("STATUS=0 ")
