"""The text of ``config.json`` with and without ``quantization_config``.

The member is put at the end of the original text, so that unpacking restores the file
byte by byte, whatever its layout.
"""

from __future__ import annotations

import json
from typing import Any

from nmsparse.packed_manifest import PackedManifest

KEY = "quantization_config"


def insert(text: str, manifest: PackedManifest) -> str:
    """Return ``text`` with the manifest as the last member.

    Args:
        text: a JSON object with at least one member and without ``KEY``.
        manifest: what to insert.
    """
    end = text.rindex("}")
    body = text[:end].rstrip()
    return body + _member(manifest) + text[len(body) :]


def remove(text: str, manifest: PackedManifest) -> str:
    """Return ``text`` without the manifest; the original if :func:`insert` made it.

    Args:
        text: a JSON object with ``KEY``.
        manifest: the value of ``KEY``.
    """
    rest = {k: v for k, v in _load(text).items() if k != KEY}
    original = text.replace(_member(manifest), "", 1)
    try:
        if _load(original) == rest:
            return original
    except ValueError:
        pass
    # Somebody wrote the file anew; its content is all that can be kept.
    return json.dumps(rest, indent=2, ensure_ascii=False) + "\n"


def _member(manifest: PackedManifest) -> str:
    """Return the text of the member and the comma before it, one module a line."""
    data = manifest.model_dump(mode="json")
    modules = data.pop("modules")
    lines = [f"{json.dumps(k)}: {json.dumps(v)}," for k, v in data.items()]
    entries = ",\n".join(
        f"      {json.dumps(name)}: {json.dumps(shape)}"
        for name, shape in modules.items()
    )
    head = "".join(f"    {line}\n" for line in lines)
    return f',\n  "{KEY}": {{\n{head}    "modules": {{\n{entries}\n    }}\n  }}'


def _load(text: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(text)
    return data
