"""docs/reference/schema.md: the configuration's JSON schema, as tables and as it is."""

from __future__ import annotations

import json
from typing import Any

from nmsparse.config import SparsityConfig

_HEAD = """\
# Configuration schema

<!-- Made by docs/site/reference.py from nmsparse.SparsityConfig. Do not edit. -->

The fields of `vllm_sparse_config.json` and of the file for `--sparsity-config`. Unknown
keys are refused. What the fields mean, with examples and errors:
[configuration](../configuration.md). `offline-prune annotate` and `calibrate` write
such files.
"""


def page() -> str:
    """Return the whole page."""
    schema = SparsityConfig.model_json_schema()
    parts = [_HEAD, _object("SparsityConfig", schema)]
    for name, definition in schema["$defs"].items():
        if "properties" in definition:
            parts.append(_object(name, definition))
    text = json.dumps(schema, indent=2)
    parts.append(
        f"## JSON schema\n\nFor editors and other tools.\n\n```json\n{text}\n```\n"
    )
    return "\n".join(parts)


def _object(name: str, schema: dict[str, Any]) -> str:
    about = schema.get("description", "").split("\n\n")[0].replace("\n", " ")
    lines = [f"## {name}\n\n{about}\n", "| field | type | default |", "|---|---|---|"]
    required = schema.get("required", [])
    for field, value in schema["properties"].items():
        default = "required" if field in required else _code(value.get("default"))
        if "default" not in value and field not in required:
            default = "empty"
        lines.append(f"| `{field}` | {_type(value)} | {default} |")
    return "\n".join(lines) + "\n"


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _type(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(_type(part) for part in value["anyOf"])
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        if name == "Phase":
            return "`decode`, `prefill` or `both`"
        return f"[{name}](#{name.lower()})"
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}"
    if value.get("type") == "object":
        return f"object of {_type(value['additionalProperties'])}"
    examples = ", ".join(f"`{example}`" for example in value.get("examples", ()))
    return value["type"] + (f", such as {examples}" if examples else "")
