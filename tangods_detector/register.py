"""Put servers, devices, their properties and run levels into a Tango database; safe to repeat."""

from __future__ import annotations

import difflib
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tango
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tangods_detector import pools
from tangods_receiver.errors import ConfigError

Value = str | int | float | bool
Lines = Value | list[Value] | None  # None and []: not in the database
ADDED = "added to"
CONTROLLED = 1  # DbServerInfo.mode: by Starter


def _lines(value: Lines) -> list[str]:
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


class ClassEntry(BaseModel):
    """Properties of a class: a value, or a list of lines; null: to be removed."""

    model_config = ConfigDict(extra="forbid")

    properties: dict[str, Lines] = {}


class DeviceEntry(ClassEntry):
    """One device: its properties, those of its attributes (`__value`: the memorised set point), its alias."""

    attribute_properties: dict[str, dict[str, Lines]] = {}
    alias: str = ""


class StarterEntry(BaseModel):
    """What the Starter of one host does: directories that it looks for servers in (those that it has stay), and the
    run level of each server, 1 first; 0: only on request."""

    model_config = ConfigDict(extra="forbid")

    path: list[str] = []
    levels: dict[str, Annotated[int, Field(ge=0, le=99)]] = {}

    @field_validator("levels")
    @classmethod
    def _server_names(cls, levels: dict[str, int]) -> dict[str, int]:
        for name in levels:
            if name.count("/") != 1 or not all(name.split("/")):
                raise ValueError(f"{name!r} is not server/instance")
        return levels


class Registration(BaseModel):
    """What to register. `servers` (server -> instance -> class -> device) and `classes` are in the form of the dsconfig
    package on PyPI; `starter` (host -> path, run levels; localhost: this one) and `sardana` (what sardana-config loads)
    are beside it."""

    model_config = ConfigDict(extra="forbid")

    servers: dict[str, dict[str, dict[str, dict[str, DeviceEntry]]]] = {}
    classes: dict[str, ClassEntry] = {}
    starter: dict[str, StarterEntry] = {}
    sardana: dict[str, Any] = {}

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


@dataclass(frozen=True)
class Change:
    """One difference: `what` of `where` is `before` in the database, and `after` in the file; `apply` makes it so."""

    where: str
    what: str
    before: list[str]
    after: list[str]
    apply: Callable[[], object]

    def __str__(self) -> str:
        """In a line, as it is told when it is done."""
        if not self.after:
            return f"{self.where}: {self.what} removed"
        return f"{self.where}: {self.what}{' ' if self.what == ADDED else ' = '}{', '.join(self.after)}"


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


def difference(changes: Iterable[Change]) -> str:
    """What would change, line by line: - is in the database now, + would be."""
    said, where = [], ""
    for change in changes:
        if change.where != where:
            where = change.where
            said.append(where)
        said.append(f"  {change.what}")
        lines = difflib.ndiff(change.before, change.after)
        said += [f"    {line}" for line in lines if not line.startswith("?")]
    return "\n".join(said)


def register(db: tango.Database, registration: Registration) -> list[str]:
    """Make the database hold this; returns a line for each thing changed (empty: all was there already).

    Raises as `plan` does, and has changed nothing then."""
    changes = plan(db, registration)
    for change in changes:
        change.apply()
    return [str(change) for change in changes]


def run(db: tango.Database, registration: Registration, dry_run: bool = False) -> str:
    """All that the file asks for, `sardana` too; returns what was done, or (`dry_run`) what would change."""
    if dry_run:
        said = difference(plan(db, registration)).splitlines()
    else:
        said = register(db, registration)
    said = said or ["nothing to change"]
    if registration.sardana:
        said.append(pools.load(address(db), registration.sardana, dry_run))
    return "\n".join([*said, *(["nothing was written"] if dry_run else [])])


def address(db: tango.Database) -> str:
    """host:port of the database, as TANGO_HOST."""
    return f"{db.get_db_host()}:{db.get_db_port()}"


def plan(db: tango.Database, registration: Registration) -> list[Change]:
    """What is to be changed, in this order. `sardana` is not looked at: sardana-config does that.

    ConfigError: a device name or alias belongs to something else, or a server with a run level is not registered.
    What the registration does not name is left alone."""
    entries = list(registration.devices())
    for server, klass, device, entry in entries:
        _refuse_foreign(db, server, klass, device, entry)
    changes: list[Change] = []
    for klass, of_class in registration.classes.items():
        changes += _class_properties(db, klass, of_class)
    for server, klass, device, entry in entries:
        changes += _device(db, server, klass, device)
        changes += _properties(db, device, entry.properties)
        changes += _attribute_properties(db, device, entry)
        changes += _alias(db, device, entry)
    known = {server.lower() for server, *_ in entries}
    for host, starter in registration.starter.items():
        changes += _starter(db, socket.gethostname() if host == "localhost" else host, starter, known)
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


def _device(db: tango.Database, server: str, klass: str, device: str) -> list[Change]:
    if _found(db, device):
        return []
    info = tango.DbDevInfo()
    info.server, info._class, info.name = server, klass, device
    return [Change(device, ADDED, [], [f"server {server}, class {klass}"], partial(db.add_device, info))]


def _differing(
    where: str,
    wanted: Mapping[str, Lines],
    held: Mapping[str, Iterable[str]],
    put: Callable[[dict[str, list[str]]], object],
    delete: Callable[[str], object],
) -> list[Change]:
    changes = []
    for name, value in wanted.items():
        before, after = list(held.get(name, [])), _lines(value)
        if before != after:
            apply = partial(put, {name: after}) if after else partial(delete, name)
            changes.append(Change(where, name, before, after, apply))
    return changes


def _class_properties(db: tango.Database, klass: str, entry: ClassEntry) -> list[Change]:
    held = db.get_class_property(klass, list(entry.properties)) if entry.properties else {}
    put, delete = partial(db.put_class_property, klass), partial(db.delete_class_property, klass)
    return _differing(f"class {klass}", entry.properties, held, put, delete)


def _properties(db: tango.Database, device: str, wanted: Mapping[str, Lines]) -> list[Change]:
    held = db.get_device_property(device, list(wanted)) if wanted else {}
    put, delete = partial(db.put_device_property, device), partial(db.delete_device_property, device)
    return _differing(device, wanted, held, put, delete)


def _attribute_properties(db: tango.Database, device: str, entry: DeviceEntry) -> list[Change]:
    names = list(entry.attribute_properties)
    held = db.get_device_attribute_property(device, names) if names else {}
    changes = []
    for name, wanted in entry.attribute_properties.items():

        def put(values: dict[str, list[str]], name: str = name) -> None:
            db.put_device_attribute_property(device, {name: values})

        def delete(key: str, name: str = name) -> None:
            db.delete_device_attribute_property(device, {name: [key]})

        changes += _differing(f"{device}/{name}", wanted, held.get(name, {}), put, delete)
    return changes


def _alias(db: tango.Database, device: str, entry: DeviceEntry) -> list[Change]:
    if not entry.alias or _alias_owner(db, entry.alias) == device.lower():
        return []
    return [Change(device, "alias", [], [entry.alias], partial(db.put_device_alias, device, entry.alias))]


# --- Starter ---------------------------------------------------------------------------------------------------------


def _starter(db: tango.Database, host: str, entry: StarterEntry, known: set[str]) -> list[Change]:
    admin = f"tango/admin/{host}"
    changes = []
    if entry.path:
        changes += _device(db, f"Starter/{host}", "Starter", admin)
        held = [line for line in db.get_device_property(admin, "StartDsPath")["StartDsPath"] if line]
        changes += _properties(db, admin, {"StartDsPath": [*held, *(p for p in entry.path if p not in held)]})
    for server, level in entry.levels.items():
        if server.lower() not in known and not list(db.get_server_class_list(server)):
            raise ConfigError(f"starter: {host}: {server} is not registered: name it below servers, or correct it")
        # not get_server_info: it cannot read what PyDatabaseds answers where there is nothing
        _, where, mode, now, *_ = db.command_inout("DbGetServerInfo", server)
        known_there = server.lower() in {word.lower() for word in db.command_inout("DbGetHostServersInfo", host)}
        before = [f"{where}, run level {now}"] if mode.strip() == str(CONTROLLED) and known_there else []
        after = [f"{host}, run level {level}"]
        if before != after:
            changes.append(
                Change(f"server {server}", "Starter", before, after, partial(_put_level, db, host, server, level))
            )
    return changes


def _put_level(db: tango.Database, host: str, server: str, level: int) -> None:
    info = tango.DbServerInfo()
    info.name, info.host, info.mode, info.level = server, host, CONTROLLED, level
    db.put_server_info(info)
    _announce(db, host, server)
    with suppress(tango.DevFailed):  # it reads the database when it starts, or now
        tango.DeviceProxy(f"tango://{address(db)}/tango/admin/{host}").command_inout("UpdateServersInfo")


def _announce(db: tango.Database, host: str, server: str) -> None:
    """A Starter looks after servers that have run on its host; the database notes that of one that never ran by an
    export that is taken back."""
    admin = f"dserver/{server}"
    for added in _device(db, server, "DServer", admin):
        added.apply()
    if not db.get_device_info(admin).exported:
        try:
            db.command_inout("DbExportDevice", [admin, "nada", host, "0", "0"])
        finally:
            db.unexport_server(server)  # unexport_device does not, where a name has capitals, in PyDatabaseds
