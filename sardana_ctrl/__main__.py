"""`python -m sardana_ctrl paths`: directories for a Pool and a MacroServer; `config`: a Sardana configuration."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from string import Template

from sardana_ctrl import HERE, MACRO_PATH, POOL_PATH, RECORDER_PATH


def paths() -> str:
    """Lines `property directory`."""
    return "\n".join(
        f"{name:<13}{path}"
        for name, path in (("PoolPath", POOL_PATH), ("MacroPath", MACRO_PATH), ("RecorderPath", RECORDER_PATH))
    )


def config(instance: str, detectors: list[str], environment: Path) -> str:
    """YAML for sardana-config; channels are called det01, det02, ... in the order of `detectors`."""
    elements = "\n".join(f"          det{n:02d}: {{axis: {n}}}" for n in range(1, len(detectors) + 1))
    return Template((HERE / "sardana.yaml").read_text()).substitute(
        instance=instance,
        pool_path=POOL_PATH,
        macro_path=MACRO_PATH,
        recorder_path=RECORDER_PATH,
        environment=environment,
        detectors="\n".join(f"            - {name}" for name in detectors),
        trigger_lines=" ".join(detectors),
        first_detector=detectors[0],
        detector_elements=elements,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sardana_ctrl", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("paths", help="directories for PoolPath, MacroPath and RecorderPath")
    whole = commands.add_parser("config", help="a whole configuration, for: sardana-config load --write --environment")
    whole.add_argument("instance", help="of the servers Pool and MacroServer, such as b1")
    whole.add_argument("detectors", nargs="+", metavar="detector", help="Detector device, such as b1/dia/det1")
    whole.add_argument(
        "--environment",
        type=Path,
        default=None,
        help="where the MacroServer keeps its environment [default: ./INSTANCE-environment]",
    )
    given = parser.parse_args(arguments)
    if given.command == "paths":
        text = paths()
    else:
        text = config(
            given.instance, given.detectors, (given.environment or Path(f"{given.instance}-environment")).absolute()
        )
    sys.stdout.write(text.rstrip("\n") + "\n")


if __name__ == "__main__":
    main()
