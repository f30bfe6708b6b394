"""Which weights of a model may be packed: linears of decoder blocks, by their names."""

from __future__ import annotations

from nmsparse.packed_manifest import is_packable
from offline_prune.errors import InputError
from offline_prune.packing.folder import ModelFolder


def packable_linears(folder: ModelFolder) -> dict[str, tuple[int, int]]:
    """Return the model's linears that may be packed, with ``(O, K)``.

    The model is built from its configuration without weights.

    Raises:
        InputError: if transformers cannot build it without running its own code.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        # Whatever transformers raises is the finding.
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"Model folder {folder.path}: transformers cannot build this model "
            f"({text}). Expected a causal language model that the installed "
            "transformers knows, to tell its linear layers from the rest."
        ) from None
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and is_packable(name)
    }
