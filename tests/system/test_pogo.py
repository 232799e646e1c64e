"""POGO's files say what the running devices say, name by name, and only words that POGO knows."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
import tango

from tangods_detector import device as detector
from tangods_receiver import device as receiver
from tests.system.beamline import Beamline

pytestmark = pytest.mark.system

POGO = Path(__file__).parent.parent.parent / "POGO"
CLASSES = ("Detector", "StreamReceiver")
XSI = "{http://www.w3.org/2001/XMLSchema-instance}type"
XMI = "{http://www.omg.org/XMI}version"
TYPES = {
    "Void": tango.DevVoid,
    "Boolean": tango.DevBoolean,
    "Int": tango.DevLong,
    "Long": tango.DevLong64,
    "Float": tango.DevFloat,
    "Double": tango.DevDouble,
    "String": tango.DevString,
    "Encoded": tango.DevEncoded,
    "State": tango.CmdArgType.DevState,
    "ConstString": tango.DevString,
    "StringArray": tango.DevVarStringArray,
}
PROPERTY_TYPES = {"Boolean", "Short", "UShort", "Int", "UInt", "Long", "ULong", "Float", "Double", "String"} | {
    f"{kind}Vector" for kind in ("Short", "Int", "Long", "ULong", "Float", "Double", "String")
}
STATUS = "abstract inherited concrete concreteHere"
# POGO 9's grammar: element -> (attributes, elements below it), as far as we use it.
GRAMMAR = {
    "PogoSystem": (XMI, "classes"),
    "classes": ("name pogoRevision", "description deviceProperties commands attributes states preferences"),
    "description": (
        "description title sourcePath language filestogenerate license copyright hasMandatoryProperty "
        "hasConcreteProperty hasAbstractCommand hasAbstractAttribute",
        "inheritances identification",
    ),
    "inheritances": ("classname sourcePath", ""),
    "identification": (
        "contact author emailDomain classFamily siteSpecific platform bus manufacturer reference",
        "",
    ),
    "deviceProperties": ("name description mandatory", "type status DefaultPropValue"),
    "DefaultPropValue": ("", ""),
    "type": (XSI, ""),
    "status": (STATUS, ""),
    "commands": ("name description execMethod displayLevel polledPeriod", "argin argout status"),
    "argin": ("description", "type"),
    "argout": ("description", "type"),
    "attributes": (
        "name attType rwType displayLevel polledPeriod maxX maxY memorized memorizedAtInit allocReadMember isDynamic",
        "dataType changeEvent archiveEvent dataReadyEvent status properties writeExcludedStates",
    ),
    "dataType": (XSI, ""),
    "changeEvent": ("fire libCheckCriteria", ""),
    "archiveEvent": ("fire libCheckCriteria", ""),
    "dataReadyEvent": ("fire libCheckCriteria", ""),
    "writeExcludedStates": ("", ""),
    "properties": (
        "description label unit standardUnit displayUnit format maxValue minValue maxAlarm minAlarm maxWarning "
        "minWarning deltaTime deltaValue",
        "",
    ),
    "states": ("name description", "status"),
    "preferences": ("docHome makefileHome", ""),
}
ENUMERATIONS = {
    "attType": {"Scalar", "Spectrum", "Image"},
    "rwType": {"READ", "WRITE", "READ_WRITE", "READ_WITH_WRITE"},
    "displayLevel": {"OPERATOR", "EXPERT"},
    "language": {"PythonHL"},
}
TRUTHS = {*STATUS.split(), "memorized", "memorizedAtInit", "fire", "libCheckCriteria", "mandatory", "isDynamic"}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pogo_generate", POGO / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_file(klass: str) -> ET.Element:
    found = ET.parse(POGO / f"{klass}.xmi").getroot().find("classes")
    assert found is not None and found.get("name") == klass
    return found


def kind(element: ET.Element, name: str) -> str:
    found = element.find(name)
    assert found is not None
    return found.attrib[XSI].removeprefix("pogoDsl:").removesuffix("Type")


def device(beamline: Beamline, klass: str) -> tango.DeviceProxy:
    return beamline.detector if klass == "Detector" else beamline.receiver


@pytest.mark.parametrize("klass", CLASSES)
def test_the_file_is_what_the_script_writes(klass: str) -> None:
    text = (POGO / f"{klass}.xmi").read_text()
    assert text == generator().document(klass), "the class has changed: run python POGO/generate.py and commit"
    assert text.isascii()


@pytest.mark.parametrize("klass", CLASSES)
def test_pogo_knows_every_word(klass: str) -> None:
    root = ET.parse(POGO / f"{klass}.xmi").getroot()
    assert root.tag == "{http://www.esrf.fr/tango/pogo/PogoDsl}PogoSystem"
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        attributes, below = GRAMMAR[name]
        assert set(element.attrib) <= set(attributes.split()), name
        assert {child.tag for child in element} <= set(below.split()), name
        for word, value in element.attrib.items():
            assert value in ENUMERATIONS.get(word, {value}), (name, word, value)
            assert value in ("true", "false") or word not in TRUTHS, (name, word, value)
            if word == XSI:
                known = {f"pogoDsl:{one}Type" for one in {*TYPES, *PROPERTY_TYPES}}
                assert value in known, (name, value)


@pytest.mark.parametrize("klass", CLASSES)
def test_properties_are_the_wizards(beamline: Beamline, klass: str) -> None:
    server = beamline.local.device(f"dserver/{klass}/{beamline.instance}")
    pages = list(server.QueryWizardDevProperty(klass))
    asked = {n: (" ".join(d.split()), v) for n, d, v in zip(pages[0::3], pages[1::3], pages[2::3], strict=True)}
    written = {}
    for one in of_file(klass).findall("deviceProperties"):
        assert kind(one, "type") in PROPERTY_TYPES
        default = "\n".join(line.text or "" for line in one.findall("DefaultPropValue"))
        written[one.attrib["name"]] = (one.attrib["description"], default)
    assert written == asked


@pytest.mark.parametrize("klass", CLASSES)
def test_commands_are_the_devices(beamline: Beamline, klass: str) -> None:
    asked = {c.cmd_name: c for c in device(beamline, klass).command_list_query() if c.cmd_name != "Init"}
    written = {one.attrib["name"]: one for one in of_file(klass).findall("commands")}
    assert set(written) == set(asked)
    for name, command in asked.items():
        one = written[name]
        for place, theirs, text in (
            ("argin", command.in_type, command.in_type_desc),
            ("argout", command.out_type, command.out_type_desc),
        ):
            argument = one.find(place)
            assert argument is not None and TYPES[kind(argument, "type")] == theirs, name
            if theirs != tango.DevVoid and name not in ("State", "Status"):
                assert argument.attrib["description"] == " ".join(text.split()), name
        assert len(one.attrib["description"]) > 10, name
        assert one.attrib["displayLevel"] == command.disp_level.name


@pytest.mark.parametrize("klass", CLASSES)
def test_attributes_are_the_devices(beamline: Beamline, klass: str) -> None:
    proxy = device(beamline, klass)
    asked = {a.name: a for a in proxy.attribute_list_query_ex() if a.name not in ("State", "Status")}
    written = {one.attrib["name"]: one for one in of_file(klass).findall("attributes")}
    of_hardware = {p.name for p in beamline_parameters()} if klass == "Detector" else set()
    assert set(written) == set(asked) - of_hardware
    for name, one in written.items():
        info = asked[name]
        assert TYPES[kind(one, "dataType")] == info.data_type, name
        assert one.attrib["attType"].upper() == info.data_format.name, name
        assert one.attrib["rwType"] == info.writable.name, name
        assert one.attrib["displayLevel"] == info.disp_level.name, name
        if info.data_format != tango.SCALAR:
            assert int(one.attrib["maxX"]) == info.max_dim_x, name
        if info.data_format == tango.IMAGE:
            assert int(one.attrib["maxY"]) == info.max_dim_y, name
        memorised = info.memorized == tango.AttrMemorizedType.MEMORIZED_WRITE_INIT
        assert one.get("memorized", "false") == str(memorised).lower(), name
        shown = one.find("properties")
        assert shown is not None
        assert shown.attrib["description"] == " ".join(info.description.split()), name
        assert (shown.attrib["label"] or name, shown.attrib["unit"]) == (info.label, info.unit), name
        assert shown.attrib["format"] in ("", info.format), name
        for ours, theirs in (
            (shown.attrib["maxValue"], info.max_value),
            (shown.attrib["minValue"], info.min_value),
            (shown.attrib["maxAlarm"], info.alarms.max_alarm),
            (shown.attrib["maxWarning"], info.alarms.max_warning),
        ):
            assert (float(ours) if ours else None) == (float(theirs) if theirs != "Not specified" else None), name
        pushed = one.find("changeEvent")
        assert pushed is not None
        assert (pushed.attrib["fire"] == "true") == can_subscribe(proxy, name), name


def can_subscribe(proxy: tango.DeviceProxy, name: str) -> bool:
    """Without polling only where the code pushes."""
    try:
        number = proxy.subscribe_event(name, tango.EventType.CHANGE_EVENT, lambda _event: None)
    except tango.DevFailed:
        return False
    proxy.unsubscribe_event(number)
    return True


def beamline_parameters() -> list[object]:
    from tangods_detector.hw.simulator import Simulator
    from tangods_detector.options import parse_options

    return list(Simulator(parse_options(Simulator.Options, [])).parameters)


@pytest.mark.parametrize(("klass", "module"), [("Detector", detector), ("StreamReceiver", receiver)])
def test_states_are_those_that_are_shown(klass: str, module: ModuleType) -> None:
    written = {one.attrib["name"]: one.attrib["description"] for one in of_file(klass).findall("states")}
    assert set(written) == {state.name for state in module.STATES.values()} | {"ALARM"}
    assert all(len(text) > 10 for text in written.values())
