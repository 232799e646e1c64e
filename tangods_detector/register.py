"""Put servers, devices and their properties into a Tango database; safe to repeat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tango
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from tangods_receiver.errors import ConfigError

Value = str | int | float | bool


class DeviceEntry(BaseModel):
    """One device: its properties (a value, or a list of lines) and its alias."""

    model_config = ConfigDict(extra="forbid")

    properties: dict[str, Value | list[Value]] = {}
    alias: str = ""

    def lines(self, name: str) -> list[str]:
        value = self.properties[name]
        return [str(v) for v in value] if isinstance(value, list) else [str(value)]


class Registration(BaseModel):
    """What to register, in dsconfig's form: servers -> server -> instance -> class -> device -> properties, alias.

    The form is that of the dsconfig package on PyPI; this understands the part that servers need."""

    model_config = ConfigDict(extra="forbid")

    servers: dict[str, dict[str, dict[str, dict[str, DeviceEntry]]]]

    @field_validator("servers")
    @classmethod
    def _device_names(cls, servers: dict[str, Any]) -> dict[str, Any]:
        for instances in servers.values():
            for classes in instances.values():
                for devices in classes.values():
                    for name in devices:
                        if name.count("/") != 2 or not all(name.split("/")):
                            raise ValueError(f"device name {name!r} is not domain/family/member")
        return servers

    def devices(self) -> Iterator[tuple[str, str, str, DeviceEntry]]:
        """(server/instance, class, device, entry) of each device."""
        for server, instances in self.servers.items():
            for instance, classes in instances.items():
                for klass, devices in classes.items():
                    for device, entry in devices.items():
                        yield f"{server}/{instance}", klass, device, entry


def load_registration(path: Path) -> Registration:
    """Read a YAML (or JSON) file. ConfigError: it cannot be read, or lists all that is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    return checked_registration(content, str(path))


def checked_registration(content: object, where: str) -> Registration:
    """ConfigError lists all mistakes with their place."""
    try:
        return Registration.model_validate(content)
    except ValidationError as exc:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in exc.errors())
        raise ConfigError(f"{where}: {mistakes}") from exc


def pair(
    instance: str,
    detector: str,
    receiver: str,
    detector_properties: dict[str, Value | list[Value]],
    receiver_properties: dict[str, Value | list[Value]],
) -> Registration:
    """One Detector and the StreamReceiver that it uses, each in a server of its own."""
    return checked_registration(
        {
            "servers": {
                "StreamReceiver": {
                    instance: {"StreamReceiver": {receiver: {"properties": receiver_properties}}},
                },
                "Detector": {
                    instance: {"Detector": {detector: {"properties": {"Receiver": receiver, **detector_properties}}}},
                },
            }
        },
        "options",
    )


def register(db: tango.Database, registration: Registration) -> list[str]:
    """Make the database hold this; returns a line for each thing changed (empty: all was there already).

    ConfigError: a device name or alias belongs to something else. Properties not named are left alone."""
    entries = list(registration.devices())
    for server, klass, device, entry in entries:
        _refuse_foreign(db, server, klass, device, entry)
    changes = []
    for server, klass, device, entry in entries:
        changes += _device(db, server, klass, device) + _properties(db, device, entry) + _alias(db, device, entry)
    return changes


def _refuse_foreign(db: tango.Database, server: str, klass: str, device: str, entry: DeviceEntry) -> None:
    found = _found(db, device)
    if found and found != (server.lower(), klass.lower()):
        raise ConfigError(
            f"{device} is already a {found[1]} of server {found[0]}: choose another name, "
            f"or remove it there first (tango_admin --delete-server, or Jive)"
        )
    owner = _alias_owner(db, entry.alias)
    if owner and owner != device.lower():
        raise ConfigError(f"alias {entry.alias} already belongs to {owner}: choose another alias")


def _found(db: tango.Database, device: str) -> tuple[str, str] | None:
    try:
        info = db.get_device_info(device)
    except tango.DevFailed as exc:
        if exc.args[0].reason != "DB_DeviceNotDefined":
            raise
        return None
    return info.ds_full_name.lower(), info.class_name.lower()


def _alias_owner(db: tango.Database, alias: str) -> str:
    if not alias:
        return ""
    try:
        return str(db.get_device_from_alias(alias)).lower()
    except tango.DevFailed as exc:
        if exc.args[0].reason != "DB_DeviceNotDefined":
            raise
        return ""


def _device(db: tango.Database, server: str, klass: str, device: str) -> list[str]:
    if _found(db, device):
        return []
    info = tango.DbDevInfo()
    info.server, info._class, info.name = server, klass, device
    db.add_device(info)
    return [f"{device}: added to server {server}, class {klass}"]


def _properties(db: tango.Database, device: str, entry: DeviceEntry) -> list[str]:
    if not entry.properties:
        return []
    held = db.get_device_property(device, list(entry.properties))
    changed = {n: entry.lines(n) for n in entry.properties if list(held[n]) != entry.lines(n)}
    if changed:
        db.put_device_property(device, changed)
    return [f"{device}: {name} = {', '.join(lines)}" for name, lines in changed.items()]


def _alias(db: tango.Database, device: str, entry: DeviceEntry) -> list[str]:
    if not entry.alias or _alias_owner(db, entry.alias) == device.lower():
        return []
    db.put_device_alias(device, entry.alias)
    return [f"{device}: alias {entry.alias}"]
