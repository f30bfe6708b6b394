"""Model folders as the pruner and the packer see them."""

from __future__ import annotations

import json
import random

from fuzzing.case import Finding
from fuzzing.files import Folder
from fuzzing.mutate import mutate_bytes, mutate_json
from fuzzing.packed_target import PackedTarget

from offline_prune.errors import InputError
from offline_prune.packing.folder import CONFIG_NAME, ModelFolder

_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
}


class FolderTarget:
    """``ModelFolder.open`` and ``headers``."""

    name = "folder"
    errors = (InputError,)

    def __init__(self) -> None:
        self._folder = Folder()
        self._packed = PackedTarget()

    def make(self, rng: random.Random) -> dict[str, bytes]:
        """Return a packed folder with a config.json, one file changed."""
        files = self._packed.make(rng)
        config = json.dumps(_CONFIG).encode()
        if rng.random() < 0.3:
            config = mutate_json(rng, _CONFIG).encode("utf-8", "surrogatepass")
        elif rng.random() < 0.2:
            config = mutate_bytes(rng, config)
        return {**files, CONFIG_NAME: config}

    def read(self, files: dict[str, bytes]) -> None:
        """Open the folder; every file it names must lie in it."""
        model = ModelFolder.open(self._folder.fill(files))
        if not set(model.shards) <= set(files):
            raise Finding(f"files outside of the folder: {model.shards}")
        model.headers()
        model.others()
