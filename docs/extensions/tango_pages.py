"""Both Tango classes and the backends' own attributes, from the classes themselves."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import tango
from plain_markdown import anchor_of, anchored, code, sentence, table

from tangods_detector import device as detector
from tangods_detector.hw import BACKENDS, load_backend
from tangods_detector.options import describe_options
from tangods_receiver import device as receiver

MODULES: dict[str, ModuleType] = {"Detector": detector, "StreamReceiver": receiver}
FORMATS = {tango.SCALAR: "{}", tango.SPECTRUM: "{}[]", tango.IMAGE: "{}[][]"}
# the backend's page, where it is not called like it
TITLES = {
    "andor": "Andor",
    "eiger": "EIGER",
    "hamamatsu": "Hamamatsu",
    "lambda": "Lambda",
    "pilatus": "PILATUS",
    "simulator": "Simulator",
}


def tango_class(name: str) -> Any:
    """PyTango's description of one of our classes."""
    return getattr(MODULES[name], name).TangoClassClass


def properties(name: str) -> str:
    rows = []
    for key, (kind, doc, default, *_) in tango_class(name).device_property_list.items():
        shown = "" if default in ("", [], None) else code(default)
        rows.append((anchored(key, anchor_of(name, key)), _type(kind), shown, sentence(doc)))
    return table(("Property", "Type", "Default", "Meaning"), rows)


def attributes(name: str) -> str:
    rows = []
    for key, one in tango_class(name).attr_list.items():
        words = one._kwargs
        shape = FORMATS[one.attr_format].format(_type(one.attr_type))
        unit = str(words.get("unit", ""))
        rows.append((anchored(key, anchor_of(name, key)), shape, unit, _access(one, name), sentence(words.get("doc"))))
    return table(("Attribute", "Type", "Unit", "Access", "Meaning"), rows)


def commands(name: str) -> str:
    rows = []
    klass = getattr(MODULES[name], name)
    for key, (taken, given, *_) in tango_class(name).cmd_list.items():
        doc = sentence(inspect.getdoc(getattr(klass, key)))
        rows.append((anchored(key, anchor_of(name, key)), _argument(taken), _argument(given), doc))
    return table(("Command", "Takes", "Gives", "Meaning"), rows)


def states(name: str) -> str:
    means = MODULES[name].STATES_MEAN
    return table(("State", "Meaning"), [(code(state.name), sentence(text)) for state, text in means.items()])


def backends() -> str:
    """All kinds of detectors, one part each."""
    return "\n".join(backend(name) for name in sorted(BACKENDS))


def backend(name: str) -> str:
    """Options and own attributes of one kind."""
    kind = load_backend(name)
    modes = ", ".join(sorted(mode.value for mode in kind.trigger_modes))
    options = [
        (anchored(key, anchor_of(name, key)), code(default), sentence(doc))
        for key, default, doc in describe_options(kind.Options)
    ]
    own = [
        (
            anchored(p.name, anchor_of(name, p.name)),
            p.dtype.__name__,
            p.unit,
            "write" if p.set else "read",
            _limits(p),
            sentence(p.doc),
        )
        for p in kind.parameters
    ]
    return "\n".join(
        (
            f"## {TITLES.get(name, name)}\n",
            f"`Backend` = `{name}`. Its page, with all that one has to know: [](/resources/detectors/{name}.md).",
            f"Trigger modes: {modes}.\n",
            "### Options\n".replace("Options", f"Options of {name}"),
            table(("BackendOptions", "Default", "Meaning"), options),
            f"### Attributes of {name}\n",
            table(("Attribute", "Type", "Unit", "Access", "Limits", "Meaning"), own),
        )
    )


def _limits(p: Any) -> str:
    found = [f"from {p.min_value:g}"] if p.min_value is not None else []
    found += [f"to {p.max_value:g}"] if p.max_value is not None else []
    found += [f"ALARM above {p.max_alarm:g}"] if p.max_alarm is not None else []
    return " ".join(found)


def _type(kind: Any) -> str:
    """`DevVarStringArray` -> `string[]`."""
    name = str(kind).removeprefix("Dev")
    if name.startswith("Var"):
        name = name.removeprefix("Var").replace("Array", "[]")
    words = {"Long64": "int64", "Long": "int32", "ULong": "uint32", "Short": "int16", "UChar": "uint8"}
    bare = name.removesuffix("[]")
    return words.get(bare, bare.lower()) + ("[]" if name.endswith("[]") else "")


def _argument(words: list[Any]) -> str:
    kind, doc = words[0], words[1] if len(words) > 1 else ""
    if kind == tango.DevVoid:
        return ""
    return f"{_type(kind)}: {sentence(doc)}" if doc else _type(kind)


def _access(one: Any, name: str) -> str:
    if one.attr_write == tango.AttrWriteType.READ:
        return "read"
    kept = one.memorized or getattr(one, "hw_memorized", False)
    return "write, kept" if kept else "write"


PARTS = {
    "properties": properties,
    "attributes": attributes,
    "commands": commands,
    "states": states,
    "backends": backends,
}
