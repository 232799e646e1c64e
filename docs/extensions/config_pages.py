"""The receiver's YAML file, from the model that checks it; what a key means is what its Tango property says."""

from __future__ import annotations

import inspect
from typing import Any

from plain_markdown import anchor_of, anchored, code, paragraphs, sentence, table
from pydantic import BaseModel

from tangods_detector.hw import BACKENDS
from tangods_receiver.config import ForwardPort, ImagesConfig, ReceiverConfig
from tangods_receiver.device import PROPERTIES, StreamReceiver
from tangods_receiver.protocols import PROTOCOLS
from tangods_receiver.transforms import STEPS, TARGETS

LIMITS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "minLength": "from {} characters",
    "maxLength": "to {} characters",
    "minItems": "at least {}",
}


def receiver_config() -> str:
    """All keys of the file."""
    docs = StreamReceiver.TangoClassClass.device_property_list
    names = {key: name for name, key in PROPERTIES.items()}
    rows = []
    for key, schema in ReceiverConfig.model_json_schema()["properties"].items():
        name = names.get(key, "")
        doc = sentence(docs[name][1]) if name else ""
        link = f"[`{name}`](#{anchor_of('StreamReceiver', name)})" if name else ""
        rows.append((anchored(key, anchor_of("yaml", key)), _kind(schema), _default(ReceiverConfig, key), link, doc))
    return table(("Key", "Type", "Default", "Tango property", "Meaning"), rows)


def forward_port() -> str:
    return _model(ForwardPort)


def images() -> str:
    return _model(ImagesConfig)


def _model(model: type[BaseModel]) -> str:
    rows = [
        (code(key), _kind(schema), _default(model, key))
        for key, schema in model.model_json_schema()["properties"].items()
    ]
    return f"{paragraphs(inspect.getdoc(model))}\n\n{table(('Key', 'Type', 'Default'), rows)}"


def _default(model: type[BaseModel], key: str) -> str:
    field = model.model_fields[key]
    if field.is_required():
        return "must be given"
    value = field.default
    return code('""' if value == "" else "[]" if value == () else "none" if value is None else value)


def _kind(schema: dict[str, Any]) -> str:
    """`integer, from 1, to 64`."""
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "$ref" in schema:
        return "mapping, see below"
    if "enum" in schema:
        return ", ".join(code(value or '""') for value in schema["enum"])
    words = {"array": "list", "object": "mapping", "string": "text", "number": "number", "boolean": "true or false"}
    kind = words.get(schema.get("type", ""), schema.get("type", "any"))
    if schema.get("format") == "path":
        kind = "path"
    limits = [text.format(f"{schema[key]:,}".replace(",", " ")) for key, text in LIMITS.items() if key in schema]
    return ", ".join([kind, *limits])


def protocols() -> str:
    """What `protocol` can be."""
    rows = [
        (f"[`{name}`](/resources/streams/{name}.md)", sentence(p.about), "SUB" if p.subscribes else "PULL")
        for name, p in PROTOCOLS.items()
    ]
    return table(("`protocol`", "Stream", "Usual socket"), rows)


def transforms() -> str:
    """What `transforms` can name."""
    names = ", ".join(code(name) for name in [*STEPS, *TARGETS])
    return f"Steps: {names}. What each does and needs is in [](/resources/transforms.md).\n"


def kinds() -> str:
    """What `Backend` can be."""
    return ", ".join(f"[`{name}`](/resources/detectors/{name}.md)" for name in sorted(BACKENDS)) + ".\n"


PARTS = {
    "receiver-config": receiver_config,
    "forward-port": forward_port,
    "images": images,
    "protocols": protocols,
    "transforms": transforms,
    "kinds": kinds,
}
