"""One engine's sparsity in one worker process: decides about every linear layer."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING

import torch
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase

from nmsparse.criteria import DEFAULT_CRITERION
from nmsparse.dispatch import explain
from nmsparse.resolve import Resolution, Resolver, require_sparse_layers
from vllm_sparse.canary.canary import make_canary
from vllm_sparse.checks import check_fits, offloads, refuse_unsupported
from vllm_sparse.describe import describe, describe_share
from vllm_sparse.execution import DEFAULT, Execution
from vllm_sparse.method import call_after_load, method_name
from vllm_sparse.names import model_class, to_vllm_names, translator, with_parts
from vllm_sparse.options import FINGERPRINT, LAYERS, Found
from vllm_sparse.owner import Owner, WhyNot
from vllm_sparse.phases import TokenPhases, phase_code
from vllm_sparse.signature import sign
from vllm_sparse.state import LayerState
from vllm_sparse.treatment.layer import Treatment, make_treatment
from vllm_sparse.treatment.source import ParameterSource
from vllm_sparse.work import NO_KERNEL
from vllm_sparse.wrap import wrap

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from vllm_sparse.timing import Timings

logger = init_logger("vllm." + __name__)

# Runners pad a step to the next captured size or tensor-parallel multiple.
_PADDING_TOKENS = 1024


class Session:
    """Sparsity of one engine.

    Args:
        vllm_config: the engine's configuration.
        found: what to sparsify, and where that came from.
        execution: kernels and memory.

    Raises:
        ConfigError: if the engine uses a feature that hides which tokens a layer sees,
            or if the parameters cannot be read.
    """

    def __init__(
        self, vllm_config: VllmConfig, found: Found, execution: Execution = DEFAULT
    ) -> None:
        refuse_unsupported(vllm_config)
        model = model_class(vllm_config)
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        self.vllm_config = vllm_config
        # Models inside of models have copies of the engine's configuration.
        self._configs = [vllm_config]
        self.config = to_vllm_names(found.config, mapper)
        self.source = found.source
        self.execution = execution
        self.layers: list[LayerState] = []
        self._packed = getattr(model, "packed_modules_mapping", None) or {}
        self._resolver = Resolver(self.config)
        self._parameters = ParameterSource.read(
            self.config, found.folder, translator(mapper)
        )
        self._loaded = False
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        device = torch.device(vllm_config.device_config.device)
        self._device = _device_type(device)
        self._phase = phase_code(self.config)
        self.phases = TokenPhases(
            tokens + _PADDING_TOKENS,
            device,
            mark_first=self.config.dense_first_token,
        )
        self._owner = Owner(
            execution,
            self.phases,
            self._phase,
            self._device,
            sleeps=bool(vllm_config.model_config.enable_sleep_mode),
            offloads=offloads(vllm_config),
            sign=self._sign,
        )
        self._form = hashlib.sha256()
        # Tells counts of this engine from those of one before it.
        self.started = uuid.uuid4().hex
        self.canary = make_canary(
            execution.canary, self.phases, offloads=offloads(vllm_config)
        )

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
        treatment = self._treat(layer, names, resolution, state)
        why_not: WhyNot | None = WhyNot("draft model", NO_KERNEL)
        if not self._loaded:
            why_not = self._owner.why_not(layer, state.pattern, treatment)
        if why_not is None:
            self._owner.take(layer, state, treatment, self._after_load)
        elif state.pattern is not None:
            if self._device != "cpu":
                state.reason += f"; not by kernels of ours: {why_not.text}"
            state.fallback = why_not.reason
            wrap(
                layer,
                state,
                treatment,
                codes=self.phases.codes,
                phase=self._phase,
                after_load=self._after_load,
            )
            self._sign(f"{state.name}: {method_name(layer)}")
        elif first:
            # Some layer must notice that loading ended, even if none is sparse.
            call_after_load(layer, self._after_load)
        if self.canary is not None and state.counters is not None:
            self.canary.add(layer, state)

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
            plain = activation.criterion == DEFAULT_CRITERION
            plain = plain and not activation.mitigation
            chosen = explain(
                "sparsify" if plain else "online",
                device=self.phases.codes.device.type,
                dtype=str(layer.params_dtype).removeprefix("torch."),
                pattern=activation.pattern,
            )
            backend = chosen.backend
            reason = f"{reason}; {chosen.reason}; product by {method_name(layer)}"
        return LayerState(
            name=layer.prefix,
            layer_class=type(layer).__name__.removeprefix("Sparse"),
            in_features=layer.input_size,
            out_features=layer.output_size,
            pattern=activation.pattern if activation else None,
            criterion=activation.criterion if activation else None,
            mitigation=activation.mitigation if activation else (),
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

    def _treat(
        self,
        layer: LinearBase,
        names: list[str],
        resolution: Resolution,
        state: LayerState,
    ) -> Treatment | None:
        """Return what a layer does beyond magnitude, and note it in its state."""
        parts = self._parameters.take(names)
        activation = resolution.group.activation if resolution.group else None
        if activation is None:
            return None
        treatment = make_treatment(
            layer,
            activation,
            parts,
            device=self.phases.codes.device,
            file=self._parameters.file,
        )
        if treatment is None:
            return None
        state.parameters = treatment.origin
        state.extra_weights = treatment.extra_weights
        if treatment.batch_dependent:
            logger.warning_once(
                "vllm-sparse: criterion %s scores channels over all tokens of a step: "
                "the answer to a request then depends on the requests beside it and on "
                "how prompts are cut into steps. Other criteria look at one token.",
                activation.criterion,
            )
        return treatment

    def prepare(self, model: torch.nn.Module) -> None:
        """Measure which kernels win, once the model is loaded.

        Args:
            model: the finished model.
        """
        linears = [x.linear for x in self.layers if x.linear is not None]
        self._owner.prepare(model, linears)

    @property
    def timings(self) -> Timings:
        """What calls of layers took that were timed; empty if none are."""
        return self._owner.timings

    def start_counting(self) -> None:
        """Count from zero: the steps of an engine's start-up are nobody's requests."""
        self.started = uuid.uuid4().hex
        self.phases.reset()
        self._owner.reset()
        for state in self.layers:
            state.reset()
        if self.canary is not None:
            self.canary.reset()

    def sign(self, vllm_config: VllmConfig) -> None:
        """Make what was resolved part of the compile-cache key.

        Args:
            vllm_config: under which a layer is built.
        """
        if not any(known is vllm_config for known in self._configs):
            self._configs.append(vllm_config)
        sign(vllm_config, FINGERPRINT, self.config.fingerprint)

    def _sign(self, text: str) -> None:
        """Make it part of the compile-cache key what runs a layer."""
        self._form.update(f"{text}\n".encode())
        for vllm_config in self._configs:
            sign(vllm_config, LAYERS, self._form.hexdigest()[:16])

    def _after_load(self) -> None:
        """Check, once, that the finished model has what the configuration names."""
        if self._loaded:
            return
        self._loaded = True
        if self.canary is not None:
            for name in self.canary.attach():
                self._sign(f"{name}: tapped")
        sparse = [layer for layer in self.layers if layer.pattern is not None]
        if self.vllm_config.parallel_config.pipeline_parallel_size == 1:
            self._resolver.check_targets()
            self._parameters.check_used()
            require_sparse_layers(self.config, len(sparse), len(self.layers))
        logger.info(
            "vllm-sparse: %d of %d linear layers sparsify their input (%s; %s; from "
            "%s)%s",
            len(sparse),
            len(self.layers),
            ", ".join(sorted({f"{x.pattern} by {x.backend}" for x in sparse})) or "-",
            describe(self.config),
            self.source,
            describe_share([x.read for x in sparse if x.read is not None]),
        )


def _device_type(device: torch.device) -> str:
    return device.type
