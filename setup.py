"""Packaging. Tool settings are in pyproject.toml; Debian packages in resources/apt.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "tangods_receiver/__init__.py").read_text()).group(1)

setup(
    name="tangods-detector",
    version=VERSION,
    packages=find_packages(include=["tangods_detector*", "tangods_receiver*"]),
    python_requires=">=3.10",
    install_requires=[
        "pytango==10.3.1",
        "pytango-db==0.9.0",
        "numpy",
        "h5py>=3.16",
        "hdf5plugin",
        "bitshuffle",
        "pyzmq",
        "orjson",
        "pydantic>=2",
        "PyYAML",
        "fastapi",
        "uvicorn",
        "httpx",
        "click",
        "rich",
        "fabio",
        "pillow",
        "setuptools<81",
    ],
    entry_points={
        "console_scripts": [
            "Detector = tangods_detector.device:main",
            "StreamReceiver = tangods_receiver.device:main",
            "tangods-detector = tangods_detector.cli:main",
        ]
    },
)
