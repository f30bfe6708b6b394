"""The model without weights: built on the meta device, filled block by block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nmsparse.targets import NEVER_TARGETS, best_match
from offline_prune.errors import InputError
from offline_prune.pipeline.source import Source
from offline_prune.pipeline.tensors import TensorReader


@dataclass(slots=True)
class Skeleton:
    """A model whose decoder blocks have no weights until they are loaded.

    Attributes:
        model: the model; everything outside its blocks is loaded.
        prefix: full name of the list of blocks, such as ``model.layers``.
        blocks: the decoder blocks.
        reader: reads parameters from the files.
        device: where weights are put.
    """

    model: Any
    prefix: str
    blocks: list[nn.Module]
    reader: TensorReader
    device: torch.device

    @classmethod
    def build(cls, source: Source, *, device: str | torch.device = "cpu") -> Skeleton:
        """Build the model of a folder and load what lies outside its blocks.

        Raises:
            InputError: if transformers cannot build it without the model's own code.
        """
        model = _build(source.path)
        prefix, blocks = _find_blocks(model, source.path)
        reader = TensorReader(
            source.folder,
            source.headers,
            prefix=str(getattr(model, "base_model_prefix", "")),
        )
        skeleton = cls(model, prefix, blocks, reader, torch.device(device))
        skeleton._load_rest()
        return skeleton

    def name(self, index: int) -> str:
        """Return the full name of a block."""
        return f"{self.prefix}.{index}"

    def load(self, index: int) -> nn.Module:
        """Load the weights of a block and return it."""
        block = self.blocks[index]
        for name, _ in list(block.named_parameters()):
            self._set(block, name, self.reader.read(f"{self.name(index)}.{name}"))
        self._load_buffers(block, f"{self.name(index)}.")
        return block.to(self.device)

    def unload(self, index: int) -> None:
        """Drop the weights of a block; its buffers stay."""
        block = self.blocks[index]
        for name, parameter in list(block.named_parameters()):
            if self.reader.find(f"{self.name(index)}.{name}") is None:
                # A bias that pruning added.
                path, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(path), leaf, None)
                continue
            self._set(block, name, torch.empty_like(parameter, device="meta"))

    def _load_rest(self) -> None:
        """Load embeddings, norms and the head."""
        inside = f"{self.prefix}."
        head = self.model.get_output_embeddings()
        tied = []
        for name, parameter in list(self.model.named_parameters()):
            if name.startswith(inside):
                continue
            if self.reader.find(name) is None and (
                head is not None and parameter is head.weight
            ):
                tied.append(head)
                continue
            self._set(self.model, name, self.reader.read(name))
        for module in tied:
            # The files hold tied weights once.
            module.weight = self.model.get_input_embeddings().weight
        for name, module in self.model.named_children():
            if not f"{name}.".startswith(inside):
                self._load_buffers(module, f"{name}.", skip=inside)
        for name, module in self.model.named_modules():
            if not f"{name}.".startswith(inside):
                for key, buffer in module.named_buffers(recurse=False):
                    setattr(module, key, buffer.to(self.device))
        self.model.eval()

    def _load_buffers(self, module: nn.Module, prefix: str, *, skip: str = "") -> None:
        """Load the buffers that the files hold; others were computed when built."""
        for name, buffer in module.named_buffers():
            full = prefix + name
            if skip and full.startswith(skip):
                continue
            if self.reader.find(full) is not None:
                buffer.copy_(self.reader.read(full))

    def _set(self, root: nn.Module, name: str, tensor: torch.Tensor) -> None:
        """Put ``tensor`` in the place of a parameter."""
        path, _, leaf = name.rpartition(".")
        module = root.get_submodule(path)
        old = getattr(module, leaf)
        if tuple(old.shape) != tuple(tensor.shape):
            raise InputError(
                f"{name} has shape {list(tensor.shape)}. Expected {list(old.shape)}, "
                "by config.json: the two belong to different models."
            )
        if tensor.device.type != "meta":
            tensor = tensor.to(self.device)
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))


def _build(path: Path) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        # Buffers stay real: rotary frequencies are computed and in no file.
        with init_empty_weights(include_buffers=False):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        # Whatever transformers raises is the finding.
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"Model folder {path}: transformers cannot build this model ({text}). "
            "Expected a causal language model that the installed transformers knows."
        ) from None


def _find_blocks(model: nn.Module, path: Path) -> tuple[str, list[nn.Module]]:
    """Return the largest list of modules outside of vision and audio towers."""
    best, chosen = 0, ("", list[nn.Module]())
    for name, module in model.named_modules():
        if (
            not isinstance(module, nn.ModuleList)
            or best_match(NEVER_TARGETS, f"{name}.0", ())[0]
        ):
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        # Strictly larger: of nested lists of equal size the outermost is the decoder.
        if size > best:
            best, chosen = size, (name, list(module))
    if not chosen[0]:
        raise InputError(
            f"Model folder {path}: no list of decoder blocks was found. Expected a "
            "decoder-only transformer."
        )
    return chosen
