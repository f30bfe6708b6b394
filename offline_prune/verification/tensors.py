"""Where every tensor of a folder is, from the headers of its weight files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offline_prune.errors import InputError
from offline_prune.packing.folder import INDEX_NAME, ModelFolder, open_weights


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a file.

    Attributes:
        file: the weight file.
        dtype: as safetensors names it, such as ``BF16``.
        shape: of the tensor.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorIndex:
    """The tensors of a folder.

    Attributes:
        tensors: name to place; a file that cannot be read adds nothing.
        problems: one sentence for each file that cannot be read, each tensor stored
            twice, and each that the index lists and no file has.
    """

    tensors: Mapping[str, StoredTensor]
    problems: tuple[str, ...]

    @classmethod
    def of(cls, model: ModelFolder) -> TensorIndex:
        """Read the headers of all weight files."""
        tensors: dict[str, StoredTensor] = {}
        problems = []
        unreadable = set()
        for shard in model.shards:
            try:
                with open_weights(model.path / shard) as file:
                    for name in file.keys():  # noqa: SIM118 (it is no dict)
                        if name in tensors:
                            other = tensors[name].file.name
                            problems.append(
                                f"{name} is stored twice, in {other} and {shard}. "
                                "Expected it once: remove one of the files."
                            )
                        part = file.get_slice(name)
                        shape = tuple(part.get_shape())
                        place = StoredTensor(
                            model.path / shard, part.get_dtype(), shape
                        )
                        tensors[name] = place
            except InputError as error:
                unreadable.add(shard)
                problems.append(str(error))
        problems += [
            f"{name} is missing. Expected it in {shard}, as {INDEX_NAME} says: copy "
            "the folder again."
            for name, shard in model.weight_map.items()
            if name not in tensors and shard not in unreadable
        ]
        return cls(tensors, tuple(problems))
