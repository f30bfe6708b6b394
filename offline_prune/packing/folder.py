"""A Hugging Face model folder as the packer sees it: config, weight files, the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nmsparse.beside import check_link, is_plain
from nmsparse.errors import printable
from nmsparse.json_text import parse_json
from offline_prune.errors import InputError

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with ``config.json`` and safetensors.

    Attributes:
        path: the folder.
        config_text: ``config.json`` as it is.
        config: the same, parsed.
        shards: names of the weight files.
        index: the parsed index, None if there is one weight file only.
    """

    path: Path
    config_text: str
    config: dict[str, Any]
    shards: tuple[str, ...]
    index: dict[str, Any] | None

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read a folder's JSON files; weights are not read yet.

        Raises:
            InputError: if it is no model folder with safetensors.
        """
        if not path.is_dir():
            raise InputError(
                f"Model folder {path} does not exist. Expected a local Hugging Face "
                "folder. A model of the Hub must be downloaded first: hf download "
                "ORG/NAME --local-dir DIR"
            )
        if not (path / CONFIG_NAME).is_file():
            raise InputError(
                f"Model folder {path} has no {CONFIG_NAME}. Expected a Hugging Face "
                "model folder (config.json, safetensors, tokenizer): check the path."
            )
        text, config = _read_json(path / CONFIG_NAME)
        index = None
        if (path / INDEX_NAME).is_file():
            index = _read_json(path / INDEX_NAME)[1]
            shards = _shards_of(index, path / INDEX_NAME)
        else:
            shards = (SINGLE_NAME,)
        for name in shards:
            if not (path / name).is_file():
                raise InputError(
                    f"Model folder {path} has no {name}. Expected its weights in "
                    f"safetensors, as {SINGLE_NAME} or as the files of {INDEX_NAME}: "
                    "complete the folder, or save the model with transformers first."
                )
        return cls(path, text, config, shards, index)

    @property
    def weight_bytes(self) -> int:
        """Size of the weight files."""
        return sum((self.path / name).stat().st_size for name in self.shards)

    @property
    def weight_map(self) -> dict[str, str]:
        """Tensor to weight file, by the index; empty without one."""
        return dict(self.index["weight_map"]) if self.index else {}

    def headers(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return type and shape of every tensor, from the headers of the files.

        Raises:
            InputError: if a file is damaged or truncated.
        """
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name in self.shards:
            with open_weights(self.path / name) as file:
                for tensor in file.keys():  # noqa: SIM118 (it is no dict)
                    part = file.get_slice(tensor)
                    found[tensor] = part.get_dtype(), tuple(part.get_shape())
        return found

    def others(self) -> list[Path]:
        """Return the files that are copied as they are, relative to the folder.

        Weight files may be links to anywhere: they are read, and written anew.

        Raises:
            InputError: if another file is a link that leads out of the folder: a model
                of others must not bring private files into a copy that is published.
        """
        found = self.names()
        try:
            for name in (*found, Path(CONFIG_NAME), Path(INDEX_NAME)):
                check_link(self.path, self.path / name)
        except ValueError as error:
            raise InputError(f"Model folder {self.path}: {error}") from None
        return found

    def names(self) -> list[Path]:
        """Return all files but config, index and weights, relative to the folder."""
        ours = {CONFIG_NAME, INDEX_NAME, *self.shards}
        paths = (path for path in sorted(self.path.rglob("*")) if path.is_file())
        relative = (path.relative_to(self.path) for path in paths)
        return [path for path in relative if str(path) not in ours]


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file; tensors are read when asked for.

    Raises:
        InputError: if it is damaged or truncated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(
            f"Weight file {path} cannot be read ({printable(error)}). Expected a whole "
            "safetensors file: copy or download it again."
        ) from None


def _read_json(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a JSON object as text and parsed."""
    try:
        # Bytes, so that line ends stay as they are.
        text = path.read_bytes().decode("utf-8")
        data = parse_json(text)
    except ValueError as error:
        raise InputError(
            f"{path} cannot be read ({printable(error)}). Expected a JSON file in "
            "UTF-8."
        ) from None
    if not isinstance(data, dict) or not data:
        raise InputError(f"{path} holds no JSON object. Expected one with members.")
    return text, data


def _shards_of(index: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Return the weight files an index names, each once."""
    names = index.get("weight_map")
    plain = isinstance(names, dict) and all(
        isinstance(name, str) and is_plain(name) for name in names.values()
    )
    if not names or not plain:
        raise InputError(
            f"{path} is no index of safetensors. Expected weight_map, from tensors to "
            "names of files beside it."
        )
    return tuple(sorted(set(names.values())))
