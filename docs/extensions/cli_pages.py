"""The command line, from click's commands and from what the other programs print for --help."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
from collections.abc import Callable, Iterator
from unittest import mock

import click
from plain_markdown import code, paragraphs, sentence, table

from tangods_detector.cli import main


def all_commands(group: click.Group = main, prefix: str = "tangods-detector") -> Iterator[tuple[str, click.Command]]:
    """Each command with its whole name; groups first."""
    for name, command in group.commands.items():
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{prefix} {name}")


def command_line() -> str:
    return "\n".join(_command(name, command) for name, command in all_commands())


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    usage = command.get_usage(context).removeprefix("Usage: ").strip()
    usage = re.sub(r"\s+", " ", usage)
    rows = []
    for one in command.params:
        if isinstance(one, click.Option):
            record = one.get_help_record(context)
            if record:
                rows.append((code(record[0]), sentence(record[1])))
    parts = [f"## {name}\n", f"```sh\n{usage}\n```\n", paragraphs(inspect.cleandoc(command.help or ""))]
    if own := OWN_HELP.get(name):
        parts.append(f"\n```text\n{printed_help(*own)}```")
    elif rows:
        parts.append("\n" + table(("Option", "Meaning"), rows))
    return "\n".join(parts) + "\n"


def _stream_pilatus(arguments: list[str]) -> object:
    from tangods_detector.hw.pilatus_control import main as program

    return program(arguments, program="tangods-detector stream-pilatus")


def _stream_lambda(arguments: list[str]) -> object:
    from tangods_detector.hw.lambda_control import main as program

    return program(arguments, program="tangods-detector stream-lambda")


def _gui(arguments: list[str]) -> object:
    from taurus_gui.app import _arguments

    return _arguments(arguments)


def _sardana(arguments: list[str]) -> object:
    from sardana_ctrl.__main__ import main as program

    return program(arguments)


OWN_HELP: dict[str, tuple[Callable[[list[str]], object], ...]] = {
    "tangods-detector stream-pilatus": (_stream_pilatus,),
    "tangods-detector stream-lambda": (_stream_lambda,),
}
PROGRAMS = {"detector-gui": ((_gui, ()),), "python -m sardana_ctrl": ((_sardana, ()), (_sardana, ("config",)))}


def printed_help(program: Callable[[list[str]], object], words: tuple[str, ...] = ()) -> str:
    """What it prints when it is asked."""
    said = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="100"), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        program([*words, "--help"])
    return said.getvalue()


def other_programs() -> str:
    parts = []
    for name, helps in PROGRAMS.items():
        shown = "\n".join(printed_help(program, words) for program, words in helps)
        parts.append(f"## {name}\n\n```text\n{shown}```\n")
    return "\n".join(parts)


PARTS = {"command-line": command_line, "other-programs": other_programs}
