"""A Tango database -> the YAML that `tangods-detector register` reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tango
import yaml

from tangods_detector import pools
from tangods_detector.register import CONTROLLED, address
from tangods_receiver.errors import ConfigError

OURS = ("StreamReceiver/*", "Detector/*")
# What servers write about themselves when they start; no configuration.
WRITTEN = {
    "description",
    "inheritedfrom",
    "projecttitle",
    "doc_url",
    "cvs_tag",
    "cvs_location",
    "svn_tag",
    "svn_location",
}


def export(
    db: tango.Database, servers: Iterable[str] = OURS, memorised: bool = False, macro_server: str | None = None
) -> dict[str, Any]:
    """What `register` needs to make this anew: servers (names or patterns such as Detector/*), classes and run levels.

    `memorised` True: also what attributes were set to, and are set to again when a server starts; `macro_server`: also
    the elements of its pools. ConfigError: there is no such server."""
    found: dict[str, Any] = {}
    classes: dict[str, Any] = {}
    for pattern in servers:
        names = sorted(db.get_server_list(pattern), key=str.lower)
        if not names and "*" not in pattern:
            raise ConfigError(f"{pattern}: the database has no such server; give server/instance, or a pattern")
        for name in names:
            server, instance = name.split("/", 1)
            of_instance = found.setdefault(server, {}).setdefault(instance, {})
            devices = list(db.get_device_class_list(name))
            for device, klass in zip(devices[0::2], devices[1::2], strict=True):
                if klass != "DServer":
                    of_instance.setdefault(klass, {})[device] = _device(db, device, memorised)
                    classes[klass] = _class(db, klass)
    starter: dict[str, Any] = {}
    for server, instances in found.items():
        for instance in instances:
            _, host, mode, level, *_ = db.command_inout("DbGetServerInfo", f"{server}/{instance}")
            if mode.strip() == str(CONTROLLED):
                entry = starter.setdefault(host, _starter(db, host))
                entry["levels"][f"{server}/{instance}"] = int(level)
    sardana = {"sardana": pools.dump(address(db), macro_server)} if macro_server else {}
    return {**_without_empty({"servers": found, "classes": classes, "starter": starter}), **sardana}


def as_yaml(registration: Mapping[str, Any]) -> str:
    """In the order in which it is registered."""
    return str(yaml.safe_dump(dict(registration), sort_keys=False, allow_unicode=True, width=120))


def _device(db: tango.Database, device: str, memorised: bool) -> dict[str, Any]:
    names = list(db.get_device_property_list(device, "*"))
    held = db.get_device_property(device, names) if names else {}
    attributes = list(db.command_inout("DbGetDeviceAttributeList", [device, "*"]))
    of_attributes = db.get_device_attribute_property(device, attributes) if attributes else {}
    return {
        "properties": {name: _value(held[name]) for name in names},
        "attribute_properties": {
            attribute: {
                key: _value(lines) for key, lines in of_attributes[attribute].items() if memorised or key[:2] != "__"
            }
            for attribute in sorted(attributes)
        },
        "alias": _alias(db, device),
    }


def _class(db: tango.Database, klass: str) -> dict[str, Any]:
    names = [name for name in db.get_class_property_list(klass) if name.lower() not in WRITTEN]
    held = db.get_class_property(klass, names) if names else {}
    return {"properties": {name: _value(held[name]) for name in names}}


def _starter(db: tango.Database, host: str) -> dict[str, Any]:
    held = db.get_device_property(f"tango/admin/{host}", "StartDsPath")["StartDsPath"]
    return {"path": [line for line in held if line], "levels": {}}


def _alias(db: tango.Database, device: str) -> str:
    try:
        return str(db.get_alias_from_device(device))
    except (tango.ConnectionFailed, tango.CommunicationFailed):
        raise
    except tango.DevFailed:  # it has none; each database has its own reason for that
        return ""


def _value(lines: Iterable[str]) -> str | list[str]:
    """One line as text, several as a list."""
    held = [str(line) for line in lines]
    return held[0] if len(held) == 1 else held


def _without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    """A device without properties stays, as {}."""
    kept = {}
    for key, value in values.items():
        small = _without_empty(value) if isinstance(value, Mapping) else value
        if small not in ("", [], {}) or key.count("/") == 2 or not isinstance(value, Mapping | str | list):
            kept[key] = small
    return kept
