"""The receiver's HTTP side, from the OpenAPI description of the application itself; its metrics, from their list."""

from __future__ import annotations

import inspect
from typing import Any, cast

from plain_markdown import code, paragraphs, sentence, table

from tangods_receiver import stats
from tangods_receiver.http import Receiver, create_app
from tangods_receiver.metrics import families

SHOWN = (stats.Snapshot, stats.WorkerStats, stats.Shares, stats.Loss, stats.LiveStats, stats.RoiStats, stats.PortStats)


class Nobody:
    """The engine is not asked for anything while routes are described."""

    def snapshot(self) -> stats.Snapshot:
        return stats.Snapshot()


def description() -> dict[str, Any]:
    """What GET /openapi.json answers."""
    return create_app(cast(Receiver, Nobody())).openapi()


def routes() -> str:
    told = description()
    return "\n".join(
        _route(method, path, one, told["components"]["schemas"])
        for path, methods in told["paths"].items()
        for method, one in methods.items()
    )


def _route(method: str, path: str, one: dict[str, Any], schemas: dict[str, Any]) -> str:
    asked = [
        (code(p["name"]), _kind(p["schema"]), _default(p), sentence(p.get("description", "")))
        for p in one.get("parameters", [])
        if p["in"] == "query"
    ]
    body = one.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    sent = [
        (code(name), _kind(schema), "", "in the JSON object that is sent")
        for name, schema in schemas.get(_name(body), {}).get("properties", {}).items()
    ]
    answers = [
        (status, ", ".join(_content(kind, what) for kind, what in answer.get("content", {}).items()), _about(answer))
        for status, answer in sorted(one["responses"].items())
    ]
    token = " Needs the token." if one.get("security") else ""
    parts = [f"## {method.upper()} {path}\n", paragraphs(one.get("description")) + token + "\n"]
    if asked or sent:
        parts.append(table(("Parameter", "Type", "Default", "Meaning"), [*asked, *sent]))
    return "\n".join([*parts, table(("Answer", "Content", "Meaning"), answers)])


def _about(answer: dict[str, Any]) -> str:
    text = answer.get("description", "")
    return "" if text in ("Successful Response", "Validation Error") else sentence(text)


def _content(kind: str, what: dict[str, Any]) -> str:
    name = _name(what.get("schema", {}))
    return f"JSON: [{name}](#{name.lower()})" if name else "JSON" if kind == "application/json" else code(kind)


def _name(schema: dict[str, Any]) -> str:
    reference = schema.get("$ref", "")
    return str(reference).rpartition("/")[2]


def _default(parameter: dict[str, Any]) -> str:
    if parameter.get("required"):
        return "must be given"
    value = parameter["schema"].get("default")
    return "" if value is None else code(value)


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    if "pattern" in schema:
        return f"text like {code(schema['pattern'].strip('^$'))}"
    return {"string": "text", "array": "list", "object": "object"}.get(schema.get("type", ""), schema.get("type", ""))


def answers() -> str:
    """The JSON objects of the answers."""
    told = description()["components"]["schemas"]
    documented = {kind.__name__: inspect.getdoc(kind) for kind in SHOWN}
    parts = []
    for name, schema in told.items():
        if name.startswith("Body_"):
            continue
        about = documented.get(name) or schema.get("description", "")
        rows = [(code(key), _field(value)) for key, value in schema.get("properties", {}).items()]
        parts.append(f"### {name}\n\n{paragraphs(about)}\n\n{table(('Key', 'Type'), rows)}")
    return "\n".join(parts)


def _field(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_field(one) for one in schema["anyOf"])
    if name := _name(schema):
        return f"[{name}](#{name.lower()})"
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {_field(schema['items'])}"
    return str({"string": "text", "array": "list"}.get(schema.get("type", ""), schema.get("type", "any")))


def metrics() -> str:
    """What GET /metrics has."""
    snapshot = stats.Snapshot(workers=(stats.WorkerStats(),), forward=(stats.PortStats(),))
    rows = []
    for one in families(snapshot):
        name = one.name + ("_total" if one.type == "counter" else "")
        labels = sorted({label for sample in one.samples for label in sample.labels})
        rows.append((code(name), one.type, ", ".join(code(label) for label in labels), sentence(one.documentation)))
    return table(("Metric", "Type", "Labels", "Meaning"), rows)


PARTS = {"http-routes": routes, "http-answers": answers, "metrics": metrics}
