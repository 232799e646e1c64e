"""What users install: the source distribution, the wheel made of it, an acquisition with it far from the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tangods_receiver import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOP = Path(__file__).parent.parent
PARTS = ("tangods_receiver", "tangods_detector", "sardana_ctrl", "taurus_gui", "resources", "POGO")
NOT_MADE = shutil.ignore_patterns("*.so", "__pycache__", "*.pyc")
SUPPORTED = ("3.10", "3.11", "3.12", "3.13")
PROGRAMS = ("Detector", "StreamReceiver", "tangods-detector", "detector-gui")
DEMO = ("demo", "--frames", "20", "--rate", "100", "--size", "64", "80", "--output")


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What it says; AssertionError where it fails. Nothing of this environment helps it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "TANGODS"))}
    env = {**kept, "PATH": "/usr/local/bin:/usr/bin:/bin", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of a clean copy of the sources."""
    folder = tmp_path_factory.mktemp("sources")
    for part in PARTS:
        shutil.copytree(TOP / part, folder / part, ignore=NOT_MADE)
    for file in TOP.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, folder)
    run(sys.executable, "-c", "import setuptools.build_meta as b; b.build_sdist('dist')", folder=folder)
    (made,) = (folder / "dist").glob("*.tar.gz")
    return made


def test_the_source_distribution_has_all_that_a_build_and_a_site_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        str(path.relative_to(TOP))
        for part in PARTS
        for path in (TOP / part).rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc") and "__pycache__" not in path.parts
    }
    assert sources - names == set()
    assert {"LICENSE", "LICENSE.GPL", "README.md", "pyproject.toml", "setup.py"} <= names
    assert not any(name.startswith(("tests", "benchmarks", "build")) for name in names)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As on a machine without a compiler, which is quick; `make soak` has one."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, sdist]
    run(*command, folder=folder, CC="/bin/false")
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_has_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        tops = {name.partition("/")[0] for name in names}
        (entries,) = [name for name in names if name.endswith("entry_points.txt")]
        assert all(f"{program} = " in archive.read(entries).decode() for program in PROGRAMS)
    packages = {"tangods_receiver", "tangods_detector", "sardana_ctrl", "taurus_gui"}
    assert tops == packages | {f"tangods_detector-{__version__}.dist-info"}
    modules = {str(p.relative_to(TOP)) for package in packages for p in (TOP / package).rglob("*.py")}
    assert modules - names == set()
    assert {"tangods_receiver/web/index.html", "sardana_ctrl/sardana.yaml"} <= names
    assert any(name.endswith("dist-info/licenses/LICENSE") or name.endswith("dist-info/LICENSE") for name in names)


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Iterator[Path]:
    """A virtual environment with the wheel; what it requires comes from the one that runs us, so that nothing is
    fetched."""
    folder = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=tmp_path)
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, folder=tmp_path)
    (packages / "required.pth").write_text(sysconfig.get_path("purelib"))
    (folder / "bin" / "PyDatabaseds").symlink_to(Path(sys.executable).parent / "PyDatabaseds")
    return folder


@pytest.mark.system
def test_an_acquisition_with_the_wheel_far_from_the_sources(environment: Path, tmp_path: Path) -> None:
    where = "import tangods_detector, tangods_receiver; print(tangods_detector.__file__, tangods_receiver.__file__)"
    files = run(environment / "bin" / "python", "-c", where, folder=tmp_path).split()
    assert all(Path(file).is_relative_to(environment) for file in files)
    said = run(environment / "bin" / "tangods-detector", *DEMO, tmp_path / "out", folder=tmp_path)
    assert "picture" in said and list((tmp_path / "out").glob("*.h5")) and list((tmp_path / "out").glob("*.png"))


def interpreters() -> dict[str, str]:
    """Version -> program, of those on this machine: on the PATH, or where pyenv keeps them."""
    found = {}
    for version in SUPPORTED:
        places = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
        for python in filter(None, map(str, filter(None, places))):
            asked = [python, "-c", "import venv, ensurepip, sys; print('%d.%d' % sys.version_info[:2])"]
            if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == version:
                found[version] = python
                break
    return found


@pytest.mark.soak
@pytest.mark.system
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", SUPPORTED)
def test_into_an_empty_environment_of_each_python(version: str, sdist: Path, tmp_path: Path) -> None:
    """Compiled, with all that it requires fetched as users do, nothing in conflict; then the demo's acquisition."""
    python = interpreters().get(version)
    if python is None:
        pytest.skip(f"Python {version} is not on this machine")
    tools = tmp_path / "venv" / "bin"
    run(python, "-m", "venv", tools.parent, folder=tmp_path)
    run(tools / "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, sdist, folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert sum(name.endswith(".so") for name in archive.namelist()) == 3, "compiled"
    run(tools / "pip", "install", "-q", f"{wheel}[demo]", folder=tmp_path)
    assert "No broken requirements" in run(tools / "pip", "check", folder=tmp_path)
    assert __version__ in run(tools / "tangods-detector", "--version", folder=tmp_path)
    compiled = "from tangods_receiver import _hotpath, _pixels, _ring; print(_hotpath.__file__)"
    assert str(tools.parent) in run(tools / "python", "-c", compiled, folder=tmp_path)
    said = run(tools / "tangods-detector", *DEMO, tmp_path / "out", folder=tmp_path)
    assert "picture" in said and list((tmp_path / "out").glob("*.h5"))
