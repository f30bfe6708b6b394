"""Everything that is measured of a pruned folder, on one backend for both models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nmsparse.config import Phase
from offline_prune.errors import InputError, MissingDependencyError
from offline_prune.evaluation.fidelity import fidelity
from offline_prune.evaluation.generation import generation
from offline_prune.evaluation.lines import lines_of
from offline_prune.evaluation.load import LoadedModel, load_model
from offline_prune.evaluation.online import (
    POLICIES,
    attach_sidecar,
    online_result,
    require_online,
    under,
)
from offline_prune.evaluation.perplexity import perplexity
from offline_prune.evaluation.texts import read_evaluation_text
from offline_prune.evaluation.windows import windows_of
from offline_prune.evaluation.zero_shot import zero_shot
from offline_prune.online.emulation import Emulation
from offline_prune.pipeline.source import locate
from offline_prune.report.build import build_report
from offline_prune.report.measurements import (
    EvaluationResult,
    FidelityResult,
    GenerationResult,
    OnlineResult,
    PerplexityResult,
    TaskScore,
    ZeroShotResult,
)
from offline_prune.report.results import RESULTS_NAME, read_results, write_results

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Measurements:
    """What to measure.

    Attributes:
        text: text for perplexity, None for none.
        text_name: what people call it; the file's name if None.
        seq_len: tokens in a window.
        windows: at most so many.
        tasks: zero-shot tasks.
        task_data: folder with local files of the tasks.
        limit: at most so many examples a task.
        prompts: text file, one prompt a line, for the length of answers.
        max_new_tokens: where an answer is cut.
        online: whether to do what the sidecar says about activations.
        phase: which tokens are sparsified then; ``both`` if None.
        phases: whether all policies are measured on the text, not one phase.
        continuation_tokens: of what the dense model generates, for each window; 0 not
            to compare that.
    """

    text: Path | None = None
    text_name: str | None = None
    seq_len: int = 2048
    windows: int | None = None
    tasks: tuple[str, ...] = ()
    task_data: Path | None = None
    limit: int | None = None
    prompts: Path | None = None
    max_new_tokens: int = 256
    online: bool = True
    phase: Phase | None = None
    phases: bool = False
    continuation_tokens: int = 32

    @property
    def policies(self) -> tuple[str, ...]:
        """What is measured on the text."""
        return POLICIES if self.phases else ((self.phase or Phase.BOTH).value,)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What was measured.

    Attributes:
        results: as they are recorded.
        recorded: whether the folder has a record, which now holds them.
    """

    results: list[EvaluationResult]
    recorded: bool

    def lines(self) -> Iterator[str]:
        """Yield the results for people, one line each."""
        for result in self.results:
            yield from lines_of(result)


def evaluate(
    folder: str | Path,
    *,
    dense: str | Path | None = None,
    measurements: Measurements,
    device: str = "cpu",
    dtype: str = "auto",
) -> Evaluated:
    """Measure a folder, and record the results if it is one of ours.

    Online sparsity of its sidecar is emulated. Tasks score prompts, so they are
    measured with prompts sparsified, and refused where nothing would be.

    Args:
        folder: a pruned folder, dense or packed.
        dense: the dense model, a folder or an id of the Hub, measured on the same
            inputs by the same code.
        measurements: what to measure.
        device: where the models run.
        dtype: what they run in: ``auto`` for each folder's own, or a name.

    Raises:
        InputError: if nothing is to be measured, or an input cannot be used.
        MissingDependencyError: if tasks are asked for and lm-eval is not installed.
    """
    path = Path(folder)
    if not (measurements.text or measurements.tasks or measurements.prompts):
        raise InputError(
            "Nothing to measure. Expected a text, tasks or prompts: --text FILE, "
            "--tasks hellaswag or --prompts FILE."
        )
    if measurements.tasks and measurements.phase is Phase.DECODE:
        raise InputError(
            "Tasks with phase decode: tasks score prompts, which would stay dense. "
            "Expected phase both or prefill, or no tasks."
        )
    # Read first: what cannot be recorded is not measured for an hour.
    record = read_results(path) if (path / RESULTS_NAME).is_file() else None
    text = read_evaluation_text(measurements.text) if measurements.text else None
    prompts = _prompts(measurements.prompts)
    pruned = load_model(path, device=device, dtype=dtype)
    base = locate(dense) if dense is not None else None
    other = load_model(base, device=device, dtype=dtype) if base is not None else None
    tokenizer = _tokenizer(pruned, other, path)
    online = attach_sidecar(pruned.model, path) if measurements.online else None
    if measurements.phase is not None or measurements.phases:
        require_online(online, path)
    found: list[EvaluationResult] = []
    if text is not None:
        found += _text(text, pruned, other, tokenizer, measurements, online)
    if measurements.tasks:
        found.append(_tasks(pruned, other, tokenizer, measurements, online))
    if prompts:
        found.append(_answers(prompts, pruned, other, tokenizer, measurements, online))
    if record is not None:
        # Measured again, it replaces what it was.
        again = {_what(result) for result in found}
        kept = [old for old in record.evaluation if _what(old) not in again]
        update = {"evaluation": [*kept, *found]}
        write_results(path, record.model_copy(update=update))
        # Without matplotlib the report is written without pictures.
        with contextlib.suppress(MissingDependencyError):
            build_report(path)
    return Evaluated(found, record is not None)


def _text(
    text: str,
    pruned: LoadedModel,
    dense: LoadedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Measurements,
    online: Emulation | None,
) -> list[EvaluationResult]:
    windows = windows_of(text, tokenizer, seq_len=wanted.seq_len, limit=wanted.windows)
    assert wanted.text is not None
    name = wanted.text_name or wanted.text.name
    if online is not None:
        return [
            online_result(
                pruned.model,
                online,
                windows=windows,
                text=name,
                policies=wanted.policies,
                dense=dense.model if dense is not None else None,
                continuation_tokens=wanted.continuation_tokens,
            )
        ]
    one = perplexity(pruned.model, windows)
    other = perplexity(dense.model, windows) if dense is not None else None
    results: list[EvaluationResult] = [
        PerplexityResult(
            text=name,
            sha256=windows.sha256,
            seq_len=windows.seq_len,
            windows=len(windows),
            tokens=one.tokens,
            bos=windows.bos,
            dense=other.value if other is not None else None,
            pruned=one.value,
        )
    ]
    if dense is not None:
        near = fidelity(dense.model, pruned.model, windows=windows)
        results.append(
            FidelityResult(
                text=name,
                sha256=windows.sha256,
                seq_len=windows.seq_len,
                windows=near.windows,
                tokens=near.tokens,
                kl=near.kl,
                top1_agreement=near.top1_agreement,
            )
        )
    return results


def _tasks(
    pruned: LoadedModel,
    dense: LoadedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Measurements,
    online: Emulation | None,
) -> ZeroShotResult:
    def scored(model: LoadedModel) -> tuple[str, dict[tuple[str, str], TaskScore]]:
        done = zero_shot(
            model.model,
            tokenizer,
            tasks=wanted.tasks,
            task_data=wanted.task_data,
            limit=wanted.limit,
        )
        return done.backend, {
            (score.task, score.metric): TaskScore(
                task=score.task,
                metric=score.metric,
                pruned=score.value,
                pruned_stderr=score.stderr,
                examples=score.examples,
            )
            for score in done.scores
        }

    backend, mine = scored(pruned)
    if online is not None:
        backend += ", online sparsity emulated"
    theirs = scored(dense)[1] if dense is not None else {}
    scores = []
    for key, score in mine.items():
        other = theirs.get(key)
        if other is not None:
            update = {"dense": other.pruned, "dense_stderr": other.pruned_stderr}
            score = score.model_copy(update=update)
        scores.append(score)
    return ZeroShotResult(backend=backend, scores=scores)


def _answers(
    prompts: list[str],
    pruned: LoadedModel,
    dense: LoadedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Measurements,
    online: Emulation | None,
) -> GenerationResult:
    def sparse(prompt_len: int) -> AbstractContextManager[object]:
        if online is None:
            return contextlib.nullcontext()
        return under(online, (wanted.phase or Phase.BOTH).value, prompt_len)

    def length(
        model: LoadedModel,
        within: Callable[
            [int], AbstractContextManager[object]
        ] = contextlib.nullcontext,
    ) -> float:
        return generation(
            model.model,
            tokenizer,
            prompts=prompts,
            max_new_tokens=wanted.max_new_tokens,
            within=within,
        ).mean_tokens

    return GenerationResult(
        prompts=len(prompts),
        max_new_tokens=wanted.max_new_tokens,
        dense_mean_tokens=length(dense) if dense is not None else None,
        pruned_mean_tokens=length(pruned, sparse),
    )


def _what(result: EvaluationResult) -> tuple[object, ...]:
    """Return what was measured, without its numbers."""
    if isinstance(result, PerplexityResult | FidelityResult | OnlineResult):
        return result.kind, result.text, result.sha256, result.seq_len
    if isinstance(result, ZeroShotResult):
        examples = [
            (score.task, score.metric, score.examples) for score in result.scores
        ]
        return result.kind, result.backend, *examples
    return result.kind, result.prompts, result.max_new_tokens


def _prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Prompts {path} cannot be read ({error}). Expected a text file in UTF-8, "
            "one prompt a line."
        ) from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"Prompts {path} is empty. Expected one prompt a line.")
    return prompts


def _tokenizer(
    pruned: LoadedModel, dense: LoadedModel | None, path: Path
) -> PreTrainedTokenizerBase:
    found = pruned.tokenizer or (dense.tokenizer if dense is not None else None)
    if found is None:
        raise InputError(
            f"Model folder {path} has no tokenizer. Expected one, to read texts: copy "
            "the files of the base model's tokenizer."
        )
    return found
