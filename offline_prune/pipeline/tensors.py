"""Where a parameter of the model lies in the weight files.

Names in a checkpoint can lack the base model's prefix (GPT-2) or have an older name of
the MoE module (Mixtral), and experts are stored one by one though the model holds them
stacked. Everything else has the parameter's own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from nmsparse.packed_manifest import Headers
from offline_prune.errors import InputError
from offline_prune.packing.folder import ModelFolder, open_weights

# Names of one expert's (gate, up, down) in the files.
_EXPERT_PARTS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_STACKED = re.compile(r"(?P<module>.*\.experts)\.(?P<part>gate_up_proj|down_proj)$")


@dataclass(frozen=True, slots=True)
class Stored:
    """Tensors of the files that make one parameter.

    Attributes:
        names: ``names[e]`` are the tensors of expert e, in the order in which their
            rows are joined; a plain parameter has one expert with one tensor.
        stacked: whether the experts are stacked in a new first dimension.
    """

    names: tuple[tuple[str, ...], ...]
    stacked: bool

    @property
    def plain(self) -> str:
        """Name of the tensor of a plain parameter."""
        return self.names[0][0]


class TensorReader:
    """Reads parameters from a folder, by the model's names.

    Args:
        folder: the model folder.
        headers: its tensors.
        prefix: the base model's prefix (``model``, ``transformer``).
    """

    def __init__(self, folder: ModelFolder, headers: Headers, *, prefix: str) -> None:
        self._folder = folder
        self._headers = headers
        self._prefix = f"{prefix}." if prefix else ""
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        self._where = folder.weight_map or dict.fromkeys(headers, folder.shards[0])

    def close(self) -> None:
        """Close all files."""
        self._open.close()
        self._files.clear()

    def find(self, parameter: str) -> Stored | None:
        """Return where a parameter is stored, None if nowhere."""
        for name in self._spellings(parameter):
            if name in self._headers:
                return Stored(((name,),), stacked=False)
        return self._find_experts(parameter)

    def read(self, parameter: str) -> torch.Tensor:
        """Return a parameter in its stored dtype.

        Raises:
            InputError: if it is in no file.
        """
        stored = self.find(parameter)
        if stored is None:
            raise InputError(
                f"Model folder {self._folder.path} lacks the tensor {parameter}. "
                "Expected complete weight files, with transformers' names: save the "
                "model with transformers first."
            )
        if not stored.stacked:
            return self._tensor(stored.plain)
        experts = [
            torch.cat([self._tensor(name) for name in names]) for names in stored.names
        ]
        return torch.stack(experts)

    def file_of(self, tensor: str) -> str:
        """Return the name of the file that holds ``tensor``."""
        return self._where[tensor]

    def _tensor(self, name: str) -> torch.Tensor:
        file = self._where[name]
        if file not in self._files:
            path = self._folder.path / file
            self._files[file] = self._open.enter_context(open_weights(path))
        tensor: torch.Tensor = self._files[file].get_tensor(name)
        # What is mapped from the file is pruned in place: a second reading must not
        # find the zeros of the first.
        return tensor.clone()

    def _spellings(self, parameter: str) -> Iterator[str]:
        yield parameter
        if self._prefix and parameter.startswith(self._prefix):
            yield parameter.removeprefix(self._prefix)
        yield parameter.replace(".mlp.", ".block_sparse_moe.")

    def _find_experts(self, parameter: str) -> Stored | None:
        found = _STACKED.match(parameter)
        if found is None:
            return None
        for module in self._spellings(found["module"] + "."):
            for gate, up, down in _EXPERT_PARTS:
                parts = (gate, up) if found["part"] == "gate_up_proj" else (down,)
                names: list[tuple[str, ...]] = []
                while (first := f"{module}{len(names)}.{parts[0]}.weight") and (
                    first in self._headers
                ):
                    stem = f"{module}{len(names)}."
                    names.append(tuple(f"{stem}{part}.weight" for part in parts))
                if names:
                    return Stored(tuple(names), stacked=True)
        return None
