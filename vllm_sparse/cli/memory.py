"""Memory of a model's linear layers on a CPU, from the headers of its files alone.

Layers with sparse activations keep K-major rows of their weight, beside vLLM's own
layout (``--dense-fallback keep``) or instead of it (``drop``). No weight is read, so
zeros are not noticed: a layer whose weight gets packed takes less.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.json_text import parse_json
from nmsparse.packed_manifest import QUANT_METHOD
from nmsparse.resolve import Resolver
from nmsparse.sidecar import read_sidecar
from nmsparse.targets import FUSED

# Bytes of an element, by the names of safetensors.
_FLOATS = {"BF16": 2, "F16": 2, "F32": 4}
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer as vLLM fuses it.

    Attributes:
        names: the fused name first, then its parts.
        out_features: O.
        in_features: K.
        size: bytes of an element.
    """

    names: tuple[str, ...]
    out_features: int
    in_features: int
    size: int

    @property
    def dense(self) -> int:
        """Bytes of the weight in vLLM's layout."""
        return self.out_features * self.in_features * self.size

    @property
    def rows(self) -> int:
        """Bytes of K-major rows, as ``nmsparse.k_major`` makes them."""
        from nmsparse.native.memory import ROW_PADDING

        row = -(-self.out_features // 32) * 32 + ROW_PADDING
        return self.in_features * row * self.size


def estimate(model: str) -> list[tuple[str, str]]:
    """Return what to say about stock vLLM, ``keep`` and ``drop``.

    Args:
        model: a folder, or a Hugging Face id in the local cache.

    Raises:
        ValueError: if the model is not there, or its files cannot be read.
    """
    folder = _model_folder(model)
    why = _not_counted(folder)
    if why is not None:
        return [("not counted", why)]
    default = Resolver(SparsityConfig.uniform("8:16"))
    linears = [x for x in read_linears(folder) if default.resolve(x.names).group]
    if not linears:
        return [("not counted", f"the default targets match no weight in {folder}")]
    config = read_sidecar(folder)
    chosen = default if config is None else Resolver(config)
    groups = [chosen.resolve(x.names).group for x in linears]
    sparse = [bool(group and group.activation) for group in groups]
    stock = sum(x.dense for x in linears)
    rows = sum(
        x.rows for x, is_sparse in zip(linears, sparse, strict=True) if is_sparse
    )
    dense = sum(
        x.dense for x, is_sparse in zip(linears, sparse, strict=True) if not is_sparse
    )
    ours = f"K-major rows of {sum(sparse)} layers"
    return [
        ("stock", f"{_mib(stock)}: {len(linears)} decoder linears as stored"),
        ("keep", f"{_mib(stock + rows, stock)}: the same, and {ours}"),
        ("drop", f"{_mib(rows + dense, stock)}: {ours} instead"),
    ]


def read_linears(folder: Path) -> list[Linear]:
    """Return the two-dimensional float weights of a folder, fused as vLLM does.

    Raises:
        PackedFormatError: naming the file that is missing or damaged.
    """
    from vllm_sparse.packed.headers import read_headers

    parents: dict[str, dict[str, tuple[int, int, int]]] = {}
    for name, (dtype, shape) in read_headers(folder).items():
        module, _, last = name.rpartition(".")
        if last == "weight" and len(shape) == 2 and dtype in _FLOATS:
            parent, dot, child = module.rpartition(".")
            found = (shape[0], shape[1], _FLOATS[dtype])
            parents.setdefault(parent + dot, {})[child] = found
    made: list[Linear] = []
    for prefix, children in parents.items():
        for fused, parts in FUSED.items():
            if all(part in children for part in parts):
                taken = [children.pop(part) for part in parts]
                names = (prefix + fused, *(prefix + part for part in parts))
                outputs = sum(out_features for out_features, _, _ in taken)
                made.append(Linear(names, outputs, *taken[0][1:]))
        made.extend(Linear((prefix + x,), *found) for x, found in children.items())
    return made


def _mib(count: int, stock: int | None = None) -> str:
    return f"{count / _MIB:,.1f} MiB" + (f" ({count / stock:.2f}x)" if stock else "")


def _model_folder(model: str) -> Path:
    """Return the folder of a model; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    try:
        cached = try_to_load_from_cache(model, "config.json")
    except HFValidationError:  # a path, not an id
        cached = None
    if not isinstance(cached, str):
        raise ConfigError(
            f"Model {model!r} is not on this machine. Expected a folder, or a Hugging "
            "Face id in the local cache: download it first."
        )
    return Path(cached).parent


def _not_counted(folder: Path) -> str | None:
    """Return why a model's layers keep no K-major rows; None if they do."""
    try:
        data = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        found = data.get("quantization_config")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} cannot be read ({error}). Expected a Hugging "
            "Face model folder."
        ) from None
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found
    if method == QUANT_METHOD:
        return f"{folder} is packed: what a layer keeps depends on its zeros"
    return f"{folder} is quantized ({method}): its layers get no copies"
