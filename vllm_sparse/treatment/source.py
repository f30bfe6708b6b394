"""``ParameterSource``: the fitted parameters of an engine, by vLLM's module names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nmsparse.config import ConfigError, SparsityConfig

if TYPE_CHECKING:
    import torch

# Parameters of one module, by name, as in the file.
Part = Mapping[str, "torch.Tensor"]
_REMEDY = "run `offline-prune calibrate` for this model again"


class ParameterSource:
    """Hand out the parameters of layers, and remember which were wanted.

    Args:
        parts: parameters by module name, as vLLM names modules before it fuses them.
        file: what they were read from, for people to read; empty if there are none.
    """

    def __init__(self, parts: Mapping[str, Part], file: str) -> None:
        self.file = file
        self._parts = parts
        self._used: set[str] = set()
        self._seen: set[str] = set()

    @classmethod
    def read(
        cls,
        config: SparsityConfig,
        folder: Path | None,
        translate: Callable[[str], str],
    ) -> ParameterSource:
        """Read what a configuration names; nothing if it names no file.

        Args:
            config: the configuration.
            folder: where its parameters file lies.
            translate: from Hugging Face's module names to the engine's.

        Raises:
            ConfigError: if the file is missing, damaged, or not the one it names.
        """
        if config.parameters is None:
            return cls({}, "")
        file = config.parameters.file
        if folder is None:
            raise ConfigError(
                f"Sparsity parameters {file}: the folder is not known. Expected the "
                "file beside the configuration: use a model folder or config_file."
            )
        from nmsparse.parameters import read_parameters

        found = read_parameters(folder, config.parameters)
        return cls({translate(name): part for name, part in found.items()}, file)

    def take(self, names: Sequence[str]) -> dict[str, Part]:
        """Return the parameters of one layer: of itself, or of each of its parts.

        Args:
            names: its full name; for a fused layer then the names of its parts.

        Returns:
            Parameters by name, in the order of the parts; empty if there are none.

        Raises:
            ConfigError: if some parts have parameters and others none.
        """
        self._seen.update(names)
        if names[0] in self._parts:
            self._used.add(names[0])
            return {names[0]: self._parts[names[0]]}
        present = [name for name in names[1:] if name in self._parts]
        missing = [name for name in names[1:] if name not in self._parts]
        if present and missing:
            raise ConfigError(
                f"{self.file}: {names[0]} has parameters for {', '.join(present)}, but "
                f"none for {', '.join(missing)}. They share one input, so expected "
                f"all of them: {_REMEDY}."
            )
        self._used.update(present)
        return {name: self._parts[name] for name in present}

    def check_used(self) -> None:
        """Refuse parameters of modules the model does not have.

        Raises:
            ConfigError: naming the module and the closest one.
        """
        for name in self._parts:
            if name not in self._used and name not in self._seen:
                close = difflib.get_close_matches(name, self._seen, n=1, cutoff=0.5)
                example = (close or sorted(self._seen) or ["none"])[0]
                raise ConfigError(
                    f"{self.file}: parameters for {name!r} match none of the model's "
                    f"linear layers. Expected names such as {example}: use the file "
                    f"that was made for this model, or {_REMEDY}."
                )
