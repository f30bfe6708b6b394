"""The manifest of a packed checkpoint: ``quantization_config`` in its ``config.json``.

It names every packed linear with its shape, so that a missing or foreign tensor is
noticed from the headers of the files, before any weight is read. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from nmsparse.config import describe_errors
from nmsparse.errors import printable
from nmsparse.targets import NEVER_TARGETS, best_match

QUANT_METHOD: Final = "vllm_sparse"
FORMAT: Final = "bitmask"
VERSION: Final = 1

WEIGHT = ".weight"
BITMASK = ".weight_bitmask"
VALUES = ".weight_values"

# The linears of decoder blocks whose weight vLLM stores as it is in the file, but for
# fusing and sharding. Not among them: query_key_value (GPT-NeoX, BLOOM, Falcon), whose
# rows vLLM reorders, and GPT-2's Conv1D (c_attn, c_proj, c_fc), which it transposes. It
# knows these tensors by name, and the names of packed ones are others.
PACKABLE_TARGETS = (
    r"re:.*\.(qkv_proj|q_proj|k_proj|v_proj|o_proj)$",
    r"re:.*\.(gate_up_proj|gate_proj|up_proj|down_proj)$",
    r"re:.*\.(out_proj|fc1|fc2|fc_in|fc_out)$",
    r"re:.*\.(dense|dense_h_to_4h|dense_4h_to_h)$",
)

# Architectures whose packed folders gave the tokens of the dense folder in vLLM. Others
# are refused: a model class that changes weights by their names while it loads them (as
# Llama 4's does) would change dense ones and leave packed ones alone.
ARCHITECTURES = frozenset(
    {
        "CohereForCausalLM",
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "GraniteForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "OPTForCausalLM",
        "Olmo2ForCausalLM",
        "PhiForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "SmolLM3ForCausalLM",
        "StableLmForCausalLM",
        "Starcoder2ForCausalLM",
    }
)

# Types as safetensors names them.
_VALUE_TYPES = ("F16", "BF16", "F32")
_BITMASK_TYPE = "U8"

Size: TypeAlias = Annotated[int, Field(strict=True, ge=1)]
# Name to (type, shape), as the headers of safetensors files give them.
Headers: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]


class PackedFormatError(ValueError):
    """A packed checkpoint that cannot be used; the message names the tensor."""


def is_packable(name: str) -> bool:
    """Return whether the linear layer ``name`` may be stored packed."""
    return bool(
        best_match(PACKABLE_TARGETS, name, ())[0]
        and not best_match(NEVER_TARGETS, name, ())[0]
    )


class PackedManifest(BaseModel):
    """What ``config.json`` says about the packed tensors.

    Attributes:
        quant_method: how vLLM finds the plugin.
        format: ``bitmask``, the only format.
        version: of the format.
        modules: name of every packed linear, as in the files without ``.weight``, to
            ``[out_features, in_features]``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quant_method: Literal["vllm_sparse"]
    format: Literal["bitmask"]
    version: int = Field(strict=True)
    modules: dict[str, tuple[Size, Size]] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _readable_version(cls, data: Any) -> Any:
        # First of all: a newer version may have keys that are unknown here.
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION or isinstance(version, bool):
            raise ValueError(
                f"version {_shown(version)} of the packed format cannot be read. "
                f"Expected {VERSION}: upgrade vllm-sparse, or pack the model again."
            )
        return data

    @field_validator("modules")
    @classmethod
    def _packable(
        cls, modules: dict[str, tuple[int, int]]
    ) -> dict[str, tuple[int, int]]:
        for name in modules:
            if not is_packable(name) or printable(name) != name:
                raise ValueError(
                    f"'{printable(name)}' cannot be packed. Expected linears of "
                    "decoder blocks such as model.layers.0.mlp.up_proj: pack the model "
                    "again."
                )
        return modules

    @classmethod
    def of(cls, modules: Mapping[str, tuple[int, int]]) -> PackedManifest:
        """Return the manifest of these modules, in the format of this version."""
        return cls(
            quant_method=QUANT_METHOD,
            format=FORMAT,
            version=VERSION,
            modules=dict(modules),
        )

    @classmethod
    def parse(cls, data: Any, *, source: str) -> PackedManifest:
        """Validate JSON data.

        Args:
            data: the value of ``quantization_config``.
            source: what it came from, named in errors.

        Raises:
            PackedFormatError: with one line for each problem.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise PackedFormatError(describe_errors(error, source)) from None

    def check_headers(self, found: Headers, *, source: str) -> None:
        """Compare the tensors of a checkpoint with the manifest.

        Args:
            found: all tensors of all files.
            source: the folder, named in errors.

        Raises:
            PackedFormatError: naming the first tensor that is missing, has another type
                or shape, or should not be there.
        """
        for name, (out_features, in_features) in self.modules.items():
            bitmask = (out_features, -(-in_features // 8))
            _expect(found, name + BITMASK, (_BITMASK_TYPE,), bitmask, source)
            _expect(found, name + VALUES, _VALUE_TYPES, None, source)
            if name + WEIGHT in found:
                raise PackedFormatError(
                    f"{source}: {name + WEIGHT} is stored both dense and packed. "
                    "Expected one: pack the original model again."
                )
        for tensor in found:
            for suffix in (BITMASK, VALUES):
                module = tensor.removesuffix(suffix)
                if module != tensor and module not in self.modules:
                    raise PackedFormatError(
                        f"{source}: {printable(tensor)} is in the files, but "
                        f"config.json does not list {printable(module)}. Expected it "
                        "in quantization_config.modules: pack the original model again."
                    )


def _shown(version: Any) -> str:
    """Return a version for a message: anything may stand in its place."""
    simple = version is None or isinstance(version, int | str)
    return printable(repr(version), limit=40) if simple else type(version).__name__


def _expect(
    found: Headers,
    name: str,
    types: tuple[str, ...],
    shape: tuple[int, ...] | None,
    source: str,
) -> None:
    """Refuse a tensor that is missing or has another type or shape (None: any 1-D)."""
    size = "[stored]" if shape is None else str(list(shape))
    wanted = f"{' or '.join(types)} {size}"
    if name not in found:
        raise PackedFormatError(
            f"{source}: {name} is missing. Expected it with {wanted}, as config.json "
            "lists its module: the folder is incomplete, copy it again."
        )
    kind, actual = found[name]
    fits = len(actual) == 1 if shape is None else tuple(actual) == shape
    if kind not in types or not fits:
        raise PackedFormatError(
            f"{source}: {name} is {kind} {list(actual)}. Expected {wanted}: the folder "
            "is damaged, or its config.json belongs to another model."
        )
