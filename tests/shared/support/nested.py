"""A model whose text model is nested, as in multimodal models, for vLLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

ARCHITECTURE = "OuterForCausalLM"


def nest(folder: Path, output: Path) -> Path:
    """Copy a Llama folder and give it the nested architecture."""
    shutil.copytree(folder, output)
    config = json.loads((output / "config.json").read_text())
    config["architectures"] = [ARCHITECTURE]
    (output / "config.json").write_text(json.dumps(config))
    return output


def register() -> None:
    """Make vLLM know the architecture."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.llama import LlamaForCausalLM
    from vllm.model_executor.models.utils import (
        AutoWeightsLoader,
        WeightsMapper,
        init_vllm_registered_model,
        maybe_prefix,
    )

    class OuterForCausalLM(nn.Module):
        """Builds its text model under a copy of vLLM's configuration, as others do."""

        packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping
        hf_to_vllm_mapper = WeightsMapper(
            orig_to_new_prefix={
                "model.": "language_model.model.",
                "lm_head.": "language_model.lm_head.",
            }
        )

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__()
            self.language_model = init_vllm_registered_model(
                vllm_config,
                prefix=maybe_prefix(prefix, "language_model"),
                hf_config=vllm_config.model_config.hf_config,
                architectures=["LlamaForCausalLM"],
            )

        def embed_input_ids(self, input_ids: Any) -> Any:
            return self.language_model.embed_input_ids(input_ids)

        def forward(
            self,
            input_ids: Any,
            positions: Any,
            intermediate_tensors: Any = None,
            inputs_embeds: Any = None,
        ) -> Any:
            return self.language_model(
                input_ids, positions, intermediate_tensors, inputs_embeds
            )

        def compute_logits(self, hidden_states: Any) -> Any:
            return self.language_model.compute_logits(hidden_states)

        def load_weights(self, weights: Any) -> Any:
            loader = AutoWeightsLoader(self)
            return loader.load_weights(weights, mapper=self.hf_to_vllm_mapper)

    ModelRegistry.register_model(ARCHITECTURE, OuterForCausalLM)
