"""Servers as services: what systemd, Docker and Prometheus are given, tried as far as this machine can."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tango
import yaml

from tangods_detector.localtango import LocalTango
from tangods_detector.register import checked_registration
from tangods_receiver import metrics, systemd
from tangods_receiver.recovery import check
from tangods_receiver.stats import PortStats, Snapshot, WorkerStats
from tests.system.beamline import Beamline, wait_for
from tests.system.test_starter import free_port

RESOURCES = Path(__file__).parents[2] / "resources"
UNITS = sorted((RESOURCES / "systemd").glob("*.service"))
DOCKERFILE = RESOURCES / "docker" / "Dockerfile"
PROMETHEUS = RESOURCES / "prometheus"
LIMIT = 120.0  # s until a server says that it is ready, on a machine that does much else
BIN = Path(sys.executable).parent


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


# --- systemd ---------------------------------------------------------------------------------------------------------


class Systemd:
    """The side of NOTIFY_SOCKET that systemd has."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self.told: list[str] = []

    def __enter__(self) -> Systemd:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def look(self, timeout: float = 0.05) -> list[str]:
        """All lines that were sent so far."""
        self._socket.settimeout(timeout)
        with contextlib.suppress(TimeoutError):
            while True:
                self.told += self._socket.recv(65536).decode().splitlines()
        return self.told


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not on this machine")
def test_systemd_understands_each_line_of_the_units(unit: Path, tmp_path: Path) -> None:
    """And warns of nothing, once the programs are where the unit says; the second time with all that is commented."""
    text = unit.read_text().replace("/opt/detector/bin/", f"{BIN}/")
    commented = re.sub(r"(?m)^#(?=[A-Z]\w+=)", "", text)
    assert commented != text
    for content in (text, commented):
        (tmp_path / unit.name).write_text(content)
        done = run("systemd-analyze", "verify", "--man=no", tmp_path / unit.name)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (tmp_path / unit.name).write_text(text.replace("Restart=on-failure", "Restart=on-failures"))
    assert "on-failures" in run("systemd-analyze", "verify", "--man=no", tmp_path / unit.name).stderr, "it does look"


def test_kernel_settings_are_ones_that_this_kernel_has() -> None:
    lines = (RESOURCES / "systemd" / "90-detector.conf").read_text().splitlines()
    settings = dict(line.split(" = ") for line in lines if line and not line.startswith("#"))
    assert len(settings) > 8 and all(re.fullmatch(r"\d+( \d+ \d+)?", value) for value in settings.values())
    page = (RESOURCES / "services.md").read_text()
    for name in settings:
        assert f"`{name}`" in page or f"`{name.replace('wmem', 'rmem')}`" in page, f"{name}: why is not told"
        folder, _, last = f"/proc/sys/{name.replace('.', '/')}".rpartition("/")
        known = Path(folder).exists() and last in os.listdir(folder)
        # what belongs to the whole machine is not shown in a network namespace of its own
        assert known or name.startswith("net.core."), name


def test_a_line_more_is_all_that_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.notify("READY=1")  # nobody asked
    for address, bound in ((str(tmp_path / "s"), str(tmp_path / "s")), (f"@detector-{os.getpid()}", None)):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        with Systemd(bound or f"\0{address[1:]}") as one:
            systemd.notify("READY=1", "STATUS=two\nlines")
            assert one.look() == ["READY=1", "STATUS=two lines"]
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.notify("READY=1")  # and nothing happens


# --- Docker ----------------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """Of a Dockerfile, as Docker puts it together: what comes from the stage that it is built on, and its own."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def last(self, name: str) -> str:
        return [value for instruction, value in self.instructions if instruction == name][-1]

    def command(self, name: str) -> list[str]:
        """Of ENTRYPOINT ["a", ..] or HEALTHCHECK .. CMD ["a", ..]."""
        return list(json.loads(self.last(name)[self.last(name).index("[") :]))


def stages() -> dict[str, Stage]:
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in filter(str.strip, text.splitlines()):
        instruction, _, value = line.strip().partition(" ")
        value = " ".join(value.split()) if instruction != "HEALTHCHECK" else value
        if instruction == "FROM":
            base, _, name = value.split()
            before = found.get(base, Stage(base))
            stage = found[name] = Stage(before.base, [*before.instructions], {**before.environment})
        elif instruction == "ENV":
            stage.environment.update(word.split("=", 1) for word in shlex.split(value))
        stage.instructions.append((instruction, value))
    return found


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = run(BIN / "hadolint", "--no-color", DOCKERFILE)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_images_have_no_root_and_need_none() -> None:
    for name in ("receiver", "detector"):
        stage = stages()[name]
        assert stage.last("USER") == "1000:1000"
        after = [instruction for instruction, _ in stage.instructions]
        assert "RUN" not in after[after.index("USER") :] and "ADD" not in after
    compose = yaml.safe_load((RESOURCES / "docker" / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["build"]["target"] in stages(), name
        for other, how in service.get("depends_on", {}).items():
            assert other in compose["services"] and how["condition"].startswith("service_")
    registration = checked_registration(yaml.safe_load((RESOURCES / "docker" / "beamline.yaml").read_text()), "compose")
    instances = {instance for instances in registration.servers.values() for instance in instances}
    assert instances == {stages()["receiver"].environment["INSTANCE"]}


def test_what_is_sent_to_the_build_is_what_it_needs() -> None:
    """.dockerignore here is *, then !name or !folder/name, then **/pattern."""
    lines = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    wanted = [line[1:] for line in lines if line.startswith("!")]
    never = [line[3:] for line in lines if line.startswith("**/")]

    def sent(name: str) -> bool:
        path = Path(name)
        inside = any(path.match(one) or Path(one) in path.parents for one in wanted)
        return inside and not any(part.match(one) for one in never for part in (path, *path.parents))

    packages = ("tangods_receiver", "tangods_detector", "sardana_ctrl", "taurus_gui")
    top = RESOURCES.parent
    files = [str(path.relative_to(top)) for one in packages for path in (top / one).rglob("*") if path.is_file()]
    left_out = {Path(file).suffix for file in files if not sent(file)}
    assert left_out <= {".so", ".pyc"} and len(files) > 100
    needed = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "LICENSE.GPL", "resources/constraints.txt"]
    assert all(map(sent, needed))
    assert not any(map(sent, ["tests/conftest.py", ".git/config", ".venv/bin/python", "resources/web.md"]))


# --- both: the servers as they are started there ---------------------------------------------------------------------


HTTP_PORT = str(free_port())


@pytest.fixture
def service(local_tango: LocalTango, tmp_path: Path) -> Beamline:
    """Registered, not started."""
    both, stream = Beamline(local_tango, "service", tmp_path), free_port()
    options = [*both.options, f"port = {stream}"]
    both.put("Detector", both.detector_name, Backend="simulator", BackendOptions=options, Receiver=both.receiver_name)
    both.put("StreamReceiver", both.receiver_name, Root=str(tmp_path), Endpoints=[f"tcp://127.0.0.1:{stream}"])
    both.put("StreamReceiver", both.receiver_name, Http=f"127.0.0.1:{HTTP_PORT}")
    return both


def started(stage: str, service: Beamline, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """As the image does it, here."""
    command = [*stages()[stage].command("ENTRYPOINT"), "-ORBendPoint", "giop:tcp:127.0.0.1:0"]
    known = {key: value for key, value in stages()[stage].environment.items() if key not in ("PATH", "HOME")}
    env = {**os.environ, **known, "TANGO_HOST": service.local.tango_host, "INSTANCE": service.instance, **environment}
    with (folder / f"{stage}.out").open("wb") as out, (folder / f"{stage}.err").open("wb") as err:
        return subprocess.Popen(command, stdout=out, stderr=err, env=env)


def healthy(service: Beamline) -> dict[str, bool]:
    """What the images' health checks say, here."""
    env = {"TANGO_HOST": service.local.tango_host, "INSTANCE": service.instance, "HTTP_PORT": HTTP_PORT}
    checks = {}
    for stage in ("receiver", "detector"):
        command = [sys.executable if word == "python" else word for word in stages()[stage].command("HEALTHCHECK")]
        checks[stage] = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **env})
    return {stage: process.wait(LIMIT) == 0 for stage, process in checks.items()}


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ready_when_it_answers_and_stopping_with_the_file_closed(service: Beamline, tmp_path: Path) -> None:
    names = {"receiver": service.receiver_name, "detector": service.detector_name}
    assert healthy(service) == {"receiver": False, "detector": False}
    with contextlib.ExitStack() as stack:
        processes, listeners = {}, {}
        for stage in names:
            address = tmp_path / f"{stage}.socket"
            listeners[stage] = stack.enter_context(Systemd(str(address)))
            process = processes[stage] = started(stage, service, tmp_path, NOTIFY_SOCKET=str(address))
            stack.callback(_ended, process)
        waiting, end = dict(names), time.monotonic() + LIMIT
        while waiting:
            assert all(process.poll() is None for process in processes.values()) and time.monotonic() < end, waiting
            for stage, name in list(waiting.items()):
                if "READY=1" in listeners[stage].look():
                    proxy = service.local.device(name)
                    assert proxy.state() != tango.DevState.FAULT, "it answers, at the first call"
                    setattr(service, stage, proxy)
                    del waiting[stage]
        service.wait_on(LIMIT)
        assert healthy(service) == {"receiver": True, "detector": True}
        file = service.set(nFramesPerTrigger=100_000, FrameTime=0.01)
        service.detector.Arm()
        wait_for("frames", lambda: service.detector.nFramesWritten > 3, LIMIT)
        wait_for(
            "what it does, in a line",
            lambda: any(re.match(f"STATUS={names['receiver']}: .*{file}", one) for one in listeners["receiver"].look()),
            LIMIT,
        )
        for stage, process in processes.items():
            assert "STOPPING=1" not in listeners[stage].look()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert "STOPPING=1" in listeners[stage].look()
            if stage == "receiver":
                report = check(file)
                assert report.ok and report.frames > 3, "the file was finished"

    for stage, name in names.items():
        lines = [json.loads(line) for line in (tmp_path / f"{stage}.err").read_text().splitlines()]
        assert all({"time", "level", "logger", "message", "server"} <= set(line) for line in lines), (
            "one object per line"
        )
        assert lines[0]["server"].endswith(f"/{service.instance}") and lines[0]["time"].endswith("+00:00")
        said = " | ".join(line["message"] for line in lines)
        assert "stopping" in said and said.endswith("ended"), name
    said = (tmp_path / "receiver.err").read_text()
    assert said.index("stopping") < said.index(f"closed {file}"), "and it is said"


def _ended(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


# --- Prometheus ------------------------------------------------------------------------------------------------------


def test_alerts_ask_for_what_there_is() -> None:
    worker, port = WorkerStats(0), PortStats()
    families = metrics.families(Snapshot(workers=(worker,), forward=(port,), free=5))
    known = {f"{family.name}{'_total' if family.type == 'counter' else ''}" for family in families}
    alerts = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
    assert len(alerts) > 5
    for alert in alerts:
        asked = set(re.findall(r"stream_receiver_\w+", alert["expr"]))
        assert asked <= known, alert["alert"]
        assert {"summary", "action"} <= set(alert["annotations"]), alert["alert"]
    tried = (PROMETHEUS / "alerts_test.yml").read_text()
    assert all(f'alertname="{alert["alert"]}"' in tried for alert in alerts), "each is tried by promtool"


def test_free_space_is_told() -> None:
    for free, shown in ((5, 5.0), (None, None)):
        (family,) = [f for f in metrics.families(Snapshot(free=free)) if f.name == "stream_receiver_free_bytes"]
        assert family.samples[0].value == shown or shown is None and family.samples[0].value != family.samples[0].value


PROMTOOL = shutil.which("promtool") or str(RESOURCES.parent / "build" / "promtool")


@pytest.mark.skipif(not Path(PROMTOOL).exists(), reason="promtool is not on this machine (resources/make-promtool)")
def test_prometheus_itself_takes_the_configuration_and_each_alert_comes() -> None:
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([PROMTOOL, *command], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
