"""Write POGO/Detector.xmi and POGO/StreamReceiver.xmi from the classes: python POGO/generate.py

POGO 9 opens them to show the interface and to make its HTML pages. The classes are written by hand, so that the files
are made from them, never the other way; a test fails where they differ."""

from __future__ import annotations

import inspect
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import tango
from tango import CmdArgType as Tango

from tangods_detector import device as detector
from tangods_receiver import device as receiver

HERE = Path(__file__).parent
CLASSES = {
    "Detector": (detector, "One Tango device for every area detector"),
    "StreamReceiver": (receiver, "Receives image streams and writes HDF5/NeXus files"),
}
NAMESPACES = {
    "xmi:version": "2.0",
    "xmlns:xmi": "http://www.omg.org/XMI",
    "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
    "xmlns:pogoDsl": "http://www.esrf.fr/tango/pogo/PogoDsl",
}
# POGO's words: Int is 32 bits, Long 64; lists are Array as an argument and Vector as a property.
TYPES = {
    Tango.DevVoid: "Void",
    Tango.DevBoolean: "Boolean",
    Tango.DevShort: "Short",
    Tango.DevUShort: "UShort",
    Tango.DevLong: "Int",
    Tango.DevULong: "UInt",
    Tango.DevLong64: "Long",
    Tango.DevULong64: "ULong",
    Tango.DevFloat: "Float",
    Tango.DevDouble: "Double",
    Tango.DevString: "String",
    Tango.DevUChar: "UChar",
    Tango.DevState: "State",
    Tango.DevEncoded: "Encoded",
    Tango.DevVarStringArray: "StringArray",
    Tango.DevVarDoubleArray: "DoubleArray",
    Tango.DevVarLong64Array: "LongArray",
}
HERE_ALONE = {"abstract": "false", "inherited": "false", "concrete": "true", "concreteHere": "true"}
OF_ALL = {"abstract": "true", "inherited": "true", "concrete": "true", "concreteHere": "false"}
# attribute of POGO's element -> keyword of tango.server.attribute
PROPERTIES = {
    "label": "label",
    "unit": "unit",
    "standardUnit": "standard_unit",
    "displayUnit": "display_unit",
    "format": "format",
    "maxValue": "max_value",
    "minValue": "min_value",
    "maxAlarm": "max_alarm",
    "minAlarm": "min_alarm",
    "maxWarning": "max_warning",
    "minWarning": "min_warning",
    "deltaTime": "delta_t",
    "deltaValue": "delta_val",
}


def document(name: str) -> str:
    """The file of one class."""
    module, title = CLASSES[name]
    klass = getattr(module, name)
    system = ET.Element("pogoDsl:PogoSystem", NAMESPACES)
    top = ET.SubElement(system, "classes", name=name, pogoRevision="9.6")
    _description(top, klass, title)
    tango_class = klass.TangoClassClass
    for key, words in tango_class.device_property_list.items():
        _property(top, key, *words)
    for command in _inherited_commands():
        top.append(command)
    for key, (taken, given, *_) in tango_class.cmd_list.items():
        _command(top, key, inspect.getdoc(getattr(klass, key)) or "", taken, given)
    for key, attribute in tango_class.attr_list.items():
        _attribute(top, key, attribute, module)
    for state, meaning in module.STATES_MEAN.items():
        _with_status(ET.SubElement(top, "states", name=state.name, description=meaning), HERE_ALONE)
    ET.SubElement(top, "preferences", docHome="./doc_html", makefileHome="")
    ET.indent(system)
    text = ET.tostring(system, encoding="us-ascii", xml_declaration=True).decode()
    return text.replace("<?xml version='1.0' encoding='us-ascii'?>", '<?xml version="1.0" encoding="ASCII"?>') + "\n"


def _description(top: ET.Element, klass: type, title: str) -> None:
    description = ET.SubElement(
        top,
        "description",
        description=_text(inspect.getdoc(klass)),
        title=title,
        sourcePath=".",
        language="PythonHL",
        filestogenerate="XMI   file",
        license="LGPL",
        copyright="",
        hasMandatoryProperty="false",
        hasConcreteProperty="true",
        hasAbstractCommand="false",
        hasAbstractAttribute="false",
    )
    ET.SubElement(description, "inheritances", classname="Device_Impl", sourcePath="")
    ET.SubElement(
        description,
        "identification",
        contact="",
        author="",
        emailDomain="",
        classFamily="Acquisition",
        siteSpecific="",
        platform="Unix Like",
        bus="Ethernet",
        manufacturer="none",
        reference="",
    )


def _property(top: ET.Element, name: str, kind: Tango, doc: str, default: Any, mandatory: bool) -> None:
    found = ET.SubElement(
        top, "deviceProperties", name=name, description=_text(doc), mandatory="true" if mandatory else "false"
    )
    _with_type(found, "type", TYPES[kind].replace("Array", "Vector"))
    _with_status(found, HERE_ALONE)
    for line in default if isinstance(default, list | tuple) else [default]:
        ET.SubElement(found, "DefaultPropValue").text = str(line)


def _inherited_commands() -> list[ET.Element]:
    """State and Status, which every device has."""
    found = []
    for name, doc, kind in (
        ("State", "The device's state.", "State"),
        ("Status", "The state in words.", "ConstString"),
    ):
        command = ET.Element("commands", name=name, description=doc, execMethod=f"dev_{name.lower()}")
        command.attrib |= {"displayLevel": "OPERATOR", "polledPeriod": "0"}
        _argument(command, "argin", "Void", "")
        _argument(command, "argout", kind, doc)
        _with_status(command, OF_ALL)
        found.append(command)
    return found


def _command(top: ET.Element, name: str, doc: str, taken: list[Any], given: list[Any]) -> None:
    command = ET.SubElement(top, "commands", name=name, description=_text(doc), execMethod=name)
    command.attrib |= {"displayLevel": "OPERATOR", "polledPeriod": "0"}
    for place, (kind, about) in (("argin", taken), ("argout", given)):
        _argument(command, place, TYPES[kind], "" if kind == Tango.DevVoid else about)
    _with_status(command, HERE_ALONE)


def _attribute(top: ET.Element, name: str, attribute: Any, module: Any) -> None:
    words = attribute._kwargs
    written = attribute.attr_write != tango.AttrWriteType.READ
    dimensions = {tango.SCALAR: ("", ""), tango.SPECTRUM: (attribute.dim_x, ""), tango.IMAGE: None}
    max_x, max_y = dimensions[attribute.attr_format] or (attribute.dim_x, attribute.dim_y)
    found = ET.SubElement(
        top,
        "attributes",
        name=name,
        attType=attribute.attr_format.name.capitalize(),
        rwType=attribute.attr_write.name,
        displayLevel=attribute.display_level.name,
        polledPeriod="0",
        maxX=str(max_x),
        maxY=str(max_y),
        **(
            {"memorized": _word(attribute.memorized), "memorizedAtInit": _word(attribute.hw_memorized)}
            if written
            else {}
        ),
        allocReadMember="false",
        isDynamic="false",
    )
    _with_type(found, "dataType", TYPES[attribute.attr_type])
    pushed = _word(name in module.SHOWN)
    for event in ("changeEvent", "archiveEvent"):
        ET.SubElement(found, event, fire=pushed, libCheckCriteria="false")
    ET.SubElement(found, "dataReadyEvent", fire="false", libCheckCriteria="true")
    _with_status(found, HERE_ALONE)
    of_attribute = {theirs: str(words.get(ours, "")) for theirs, ours in PROPERTIES.items()}
    ET.SubElement(found, "properties", description=_text(words["doc"]), **of_attribute)
    if isinstance(attribute, getattr(module, "Setting", ())):
        for state in (tango.DevState.MOVING, tango.DevState.RUNNING):
            ET.SubElement(found, "writeExcludedStates").text = state.name


def _argument(command: ET.Element, place: str, kind: str, doc: str) -> None:
    _with_type(ET.SubElement(command, place, description=_text(doc)), "type", kind)


def _with_type(parent: ET.Element, name: str, kind: str) -> None:
    ET.SubElement(parent, name, {"xsi:type": f"pogoDsl:{kind}Type"})


def _with_status(parent: ET.Element, status: dict[str, str]) -> None:
    ET.SubElement(parent, "status", status)


def _word(value: object) -> str:
    return "true" if value else "false"


def _text(doc: str | None) -> str:
    """In one line."""
    return " ".join((doc or "").split())


if __name__ == "__main__":
    for one in CLASSES:
        (HERE / f"{one}.xmi").write_text(document(one))
        print(HERE / f"{one}.xmi")
