"""One engine's sparsity in one worker process: decides about every linear layer."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.dispatch import BACKEND_ENV, explain
from nmsparse.packed_manifest import QUANT_METHOD as PACKED
from nmsparse.pattern import NMPattern, Pattern
from nmsparse.resolve import Resolution, Resolver, require_sparse_layers
from vllm_sparse import runner_hooks
from vllm_sparse.checks import check_fits, refuse_unsupported
from vllm_sparse.execution import DEFAULT, Execution
from vllm_sparse.method import SparseLinearMethod
from vllm_sparse.names import model_class, to_vllm_names, with_parts
from vllm_sparse.options import FINGERPRINT, OPTIONS_KEY, resolve_options
from vllm_sparse.options import local_model_folder as find_folder
from vllm_sparse.phases import PHASE_CODES, TokenPhases
from vllm_sparse.state import LayerState

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from vllm_sparse.cpu.linear import CpuLinear

logger = init_logger("vllm." + __name__)

# Runners pad a step to the next captured size or tensor-parallel multiple.
_PADDING_TOKENS = 1024


class Session:
    """Sparsity of one engine.

    Args:
        vllm_config: the engine's configuration.
        config: what to sparsify.
        source: where the configuration came from.
        execution: kernels and memory.

    Raises:
        ConfigError: if the engine uses a feature that hides which tokens a layer sees.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        config: SparsityConfig,
        source: str,
        execution: Execution = DEFAULT,
    ) -> None:
        refuse_unsupported(vllm_config)
        found = model_class(vllm_config)
        self.vllm_config = vllm_config
        self.config = to_vllm_names(config, getattr(found, "hf_to_vllm_mapper", None))
        self.source = source
        self.execution = execution
        self.layers: list[LayerState] = []
        self._packed = getattr(found, "packed_modules_mapping", None) or {}
        self._resolver = Resolver(self.config)
        self._loaded = False
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        device = torch.device(vllm_config.device_config.device)
        self.phases = TokenPhases(tokens + _PADDING_TOKENS, device)
        self._why_no_kernels = self._kernel_problem()
        runner_hooks.install(find_phases, prepare_session)

    def attach(self, layer: LinearBase) -> None:
        """Decide about a layer that was just built, and wrap its method if sparse.

        Raises:
            ConfigError: naming the layer, if its pattern does not fit.
        """
        names = with_parts(layer.prefix, self._packed)
        classes = {"Linear", *(base.__name__ for base in type(layer).__mro__)}
        if self._loaded:
            resolution = Resolution(None, "draft model of speculative decoding")
        else:
            resolution = self._resolver.resolve(names, classes)
        state = self._describe(layer, resolution)
        if self._loaded:  # a draft model may repeat the target's names
            state.name = f"draft.{state.name}"
        first = not self.layers
        self.layers.append(state)
        if self._owns_weight(layer, state.pattern, state.criterion):
            self._own(layer, state)
        elif state.pattern is not None:
            self._wrap(layer, state)
        elif first:
            # Some layer must notice that loading ended, even if none is sparse.
            _call_after_load(layer, self._after_load)

    def _describe(self, layer: LinearBase, resolution: Resolution) -> LayerState:
        k_local = getattr(layer, "input_size_per_partition", layer.input_size)
        group = resolution.group
        activation = group.activation if group else None
        weight = group.weight if group else None
        sharded = k_local != layer.input_size
        backend, reason = "dense", resolution.reason
        if activation is not None:
            shards = layer.input_size // k_local
            check_fits(layer.prefix, activation.pattern, layer.input_size, shards)
            chosen = explain(
                "sparsify",
                device=self.phases.codes.device.type,
                dtype=str(layer.params_dtype).removeprefix("torch."),
                pattern=activation.pattern,
            )
            backend = chosen.backend
            reason = f"{reason}; {chosen.reason}; product by {_method_name(layer)}"
        return LayerState(
            name=layer.prefix,
            layer_class=type(layer).__name__.removeprefix("Sparse"),
            in_features=layer.input_size,
            out_features=layer.output_size,
            pattern=activation.pattern if activation else None,
            criterion=activation.criterion if activation else None,
            backend=backend,
            reason=reason,
            weight_pattern=str(weight.pattern) if weight else None,
            k_sharded=sharded,
            counters=None,
        )

    def add_unseen(self, model: torch.nn.Module) -> None:
        """List linear layers of classes that the plugin does not replace, as dense.

        Args:
            model: the finished model.
        """
        known = {layer.name for layer in self.layers}
        reason = "its class is not one the plugin replaces"
        for module in model.modules():
            if isinstance(module, LinearBase) and module.prefix not in known:
                known.add(module.prefix)
                self.layers.append(self._describe(module, Resolution(None, reason)))

    def _wrap(self, layer: LinearBase, state: LayerState) -> None:
        assert state.pattern is not None
        assert state.criterion is not None
        device = self.phases.codes.device
        state.counters = torch.zeros(2, dtype=torch.int64, device=device)
        # Buffers, so that torch.compile takes them as graph inputs; not persistent,
        # so that weight loading does not look for them.
        layer.register_buffer("vllm_sparse_codes", self.phases.codes, persistent=False)
        layer.register_buffer("vllm_sparse_counters", state.counters, persistent=False)
        # K on this rank: a shard for row-parallel layers.
        k_local = getattr(layer, "input_size_per_partition", layer.input_size)
        kept, group = state.pattern.group(k_local)
        layer.quant_method = SparseLinearMethod(
            layer.quant_method,
            kept=kept,
            group=group,
            phase=PHASE_CODES[self.config.phase],
            criterion=state.criterion,
            after_load=self._after_load,
        )

    def _kernel_problem(self) -> str | None:
        """Return why no layer can own its weight; None if layers can."""
        if self.execution.kernels == "off":
            return "kernels are off"
        forced = os.environ.get(BACKEND_ENV)
        if forced and forced != "cpu":
            return f"{BACKEND_ENV}={forced}"
        if self.phases.codes.device.type != "cpu":
            return f"no kernel for {self.phases.codes.device.type} yet"
        from nmsparse.native import library

        status = library.status()
        if not status.available:
            logger.warning(
                "vllm-sparse: no CPU kernels, so nothing gets faster: %s", status.reason
            )
        return status.reason

    def _owns_weight(
        self, layer: LinearBase, pattern: Pattern | None, criterion: str | None
    ) -> bool:
        if self._why_no_kernels is not None or self._loaded:
            return False
        if pattern is not None:
            kept, group = pattern.group(layer.input_size)
            if kept == group:  # nothing to gain
                return False
        if criterion not in (None, "magnitude"):  # the kernels know no other
            return False
        plain = type(layer.quant_method).__name__
        return plain in _OWNABLE and layer.params_dtype in _DTYPES

    def _own(self, layer: LinearBase, state: LayerState) -> None:
        """Let the layer keep its weight in the layouts of our kernels."""
        from vllm_sparse.cpu.linear import Selection
        from vllm_sparse.cpu.method import CpuLinearMethod

        counters = torch.zeros(2, dtype=torch.int64)
        layer.register_buffer("vllm_sparse_counters", counters, persistent=False)
        selection = None
        if state.pattern is not None:
            state.counters = counters
            k_local = getattr(layer, "input_size_per_partition", layer.input_size)
            pattern = NMPattern(*state.pattern.group(k_local))
            selection = Selection(pattern, PHASE_CODES[self.config.phase])

        def loaded(linear: CpuLinear | None) -> None:
            if linear is not None:
                # Sessions outlive engines; weights must not.
                state.find_linear = weakref.ref(linear)
                state.backend = "cpu"
                rule = state.reason.partition(";")[0]
                state.reason = f"{rule}; {_describe_linear(linear)}"
            self._after_load()

        layer.quant_method = CpuLinearMethod(
            layer.quant_method,
            selection=selection,
            execution=self.execution,
            phases=self.phases,
            counters=counters,
            after_load=loaded,
        )

    def prepare(self, model: torch.nn.Module) -> None:
        """Measure which kernels win, once the model is loaded.

        Args:
            model: the finished model.
        """
        if self._why_no_kernels is not None:
            return
        from vllm_sparse.cpu.head import wrap_heads
        from vllm_sparse.cpu.prepare import prepare

        linears = [x.linear for x in self.layers if x.linear is not None]
        if self.execution.kernels == "auto":
            prepare([*linears, *wrap_heads(model)])

    def _after_load(self) -> None:
        """Check, once, that the finished model has what the configuration names."""
        if self._loaded:
            return
        self._loaded = True
        if self.vllm_config.parallel_config.pipeline_parallel_size == 1:
            self._resolver.check_targets()
        sparse = [layer for layer in self.layers if layer.pattern is not None]
        if self.vllm_config.parallel_config.pipeline_parallel_size == 1:
            require_sparse_layers(self.config, len(sparse), len(self.layers))
        logger.info(
            "vllm-sparse: %d of %d linear layers sparsify their input (%s; phase %s; "
            "from %s)",
            len(sparse),
            len(self.layers),
            ", ".join(sorted({f"{x.pattern} by {x.backend}" for x in sparse})) or "-",
            self.config.phase.value,
            self.source,
        )


# Methods whose layer has a dense weight until it is processed, and their dtypes.
_OWNABLE = ("UnquantizedLinearMethod", "PackedLinearMethod")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _describe_linear(linear: CpuLinear) -> str:
    held = "bits and values" if linear.weights.packed is not None else "K-major rows"
    return f"our {held} for few tokens, {linear.first} for many"


def _method_name(layer: LinearBase) -> str:
    return f"vLLM's {type(layer.quant_method).__name__}"


def _call_after_load(layer: LinearBase, callback: Any) -> None:
    method = layer.quant_method
    original = method.process_weights_after_loading

    def process_weights_after_loading(module: torch.nn.Module) -> None:
        original(module)
        callback()

    method.process_weights_after_loading = process_weights_after_loading


# Sessions by identity of an engine's compilation configuration. vLLM builds nested text
# models and drafts under copies of its configuration, but all of them share this part,
# in which attention layers register themselves. It is kept, so no identity comes twice.
_SESSIONS: dict[int, Session] = {}
_INACTIVE: dict[int, Any] = {}


def find_session(vllm_config: Any) -> Session | None:
    """Return the session of an engine in this process, None if it is not active."""
    return _SESSIONS.get(id(vllm_config.compilation_config))


def find_phases(vllm_config: Any) -> TokenPhases | None:
    """Return the token phases of an engine in this process."""
    session = find_session(vllm_config)
    return session.phases if session else None


def prepare_session(vllm_config: Any, model: torch.nn.Module) -> None:
    """Let the engine's session measure, when its model is loaded."""
    session = find_session(vllm_config)
    if session is not None:
        session.prepare(model)


def current_session() -> Session | None:
    """Return the session of the engine being built, making it at its first layer.

    Raises:
        ConfigError: if the engine's sparsity configuration cannot be used.
    """
    vllm_config = get_current_vllm_config_or_none()
    if vllm_config is None or vllm_config.model_config is None:
        return None
    key = id(vllm_config.compilation_config)
    if key in _INACTIVE:
        return None
    session = _SESSIONS.get(key) or _make_session(vllm_config)
    if session is None:
        _INACTIVE[key] = vllm_config.compilation_config
        return None
    _SESSIONS[key] = session
    _sign(vllm_config, session.config.fingerprint)
    return session


def _make_session(vllm_config: VllmConfig) -> Session | None:
    extra = vllm_config.additional_config
    options = extra.get(OPTIONS_KEY) if isinstance(extra, dict) else None
    if options is not None and not isinstance(options, dict):
        raise ConfigError(
            f"additional_config[{OPTIONS_KEY!r}] is {options!r}. Expected an object, "
            'for example {"activation_sparsity": "8:16"}.'
        )
    model = vllm_config.model_config
    folder: Path | None = find_folder(model.model, model.revision)
    found = resolve_options(options, folder)
    packed = getattr(model, "quantization", None) == PACKED
    if found is None and packed and (options or {}).get("enabled", True):
        # A packed folder wants its kernels without being asked.
        found = SparsityConfig(), "packed checkpoint"
    execution = Execution.parse(options or {}, f"additional_config[{OPTIONS_KEY!r}]")
    return None if found is None else Session(vllm_config, *found, execution)


def _sign(vllm_config: VllmConfig, fingerprint: str) -> None:
    """Make the resolved configuration part of vLLM's compile-cache key.

    vLLM hashes ``additional_config`` into the key, and compiled code bakes in patterns
    and phase, which may come from elsewhere (a sidecar).
    """
    extra = vllm_config.additional_config
    if not isinstance(extra, dict):
        raise ConfigError(
            f"additional_config is a {type(extra).__name__}. Expected a dict: "
            "activation sparsity records its fingerprint in it."
        )
    options = extra.get(OPTIONS_KEY) or {}
    if options.get(FINGERPRINT) != fingerprint:
        signed = {**options, FINGERPRINT: fingerprint}
        vllm_config.additional_config = {**extra, OPTIONS_KEY: signed}
