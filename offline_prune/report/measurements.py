"""What was measured of the pruned model: quality beside the dense one, and sizes."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from offline_prune.report.record import Count, Real, Record, Share


class PerplexityResult(Record):
    """Perplexity on one text, both models on the same windows and backend.

    Attributes:
        text: what people call the text, such as ``WikiText-2 test``.
        sha256: of the token ids.
        seq_len: tokens in a window; values of different lengths do not compare.
        bos: whether every window begins with the token of the beginning.
        dense: of the dense model, None if it was not measured.
    """

    kind: Literal["perplexity"] = "perplexity"
    text: str
    sha256: str
    seq_len: Count
    windows: Count
    tokens: Count
    bos: bool = False
    dense: Real | None = None
    pruned: Real


class FidelityResult(Record):
    """How far the predictions of the pruned model are from those of the dense one.

    Attributes:
        text: what people call the text.
        kl: mean over tokens of KL(dense || pruned), in nats.
        top1_agreement: share of tokens where both find the same token likeliest.
    """

    kind: Literal["fidelity"] = "fidelity"
    text: str
    sha256: str
    seq_len: Count
    windows: Count
    tokens: Count
    kl: Real
    top1_agreement: Share


class TaskScore(Record):
    """Score of one task.

    Attributes:
        task: such as ``hellaswag``.
        metric: such as ``acc_norm``.
        dense: score of the dense model, None if it was not measured.
        pruned: score of the pruned model.
        dense_stderr: standard error of ``dense``.
        pruned_stderr: standard error of ``pruned``.
        examples: how many were scored, None if unknown.
    """

    task: str
    metric: str
    dense: Real | None = None
    pruned: Real
    dense_stderr: Real | None = None
    pruned_stderr: Real | None = None
    examples: Count | None = None


class ZeroShotResult(Record):
    """Scores of tasks, both models on one backend.

    Attributes:
        backend: what ran the models, with its version.
        shots: examples shown before a question.
        scores: one a task.
    """

    kind: Literal["zero_shot"] = "zero_shot"
    backend: str
    shots: Count = 0
    scores: list[TaskScore] = Field(min_length=1)


class GenerationResult(Record):
    """How long the answers are: a pruned model that rambles is slower than it looks.

    Attributes:
        prompts: number of prompts.
        max_new_tokens: where an answer was cut.
        dense_mean_tokens: mean length of the dense model's answers, None if it was not
            measured.
        pruned_mean_tokens: mean length of the pruned model's answers.
    """

    kind: Literal["generation"] = "generation"
    prompts: Count
    max_new_tokens: Count
    dense_mean_tokens: Real | None = None
    pruned_mean_tokens: Real


class PolicyResult(Record):
    """A model with online sparsity that treats some tokens as dense.

    Attributes:
        policy: ``dense`` (the reference), ``both``, ``prefill``, ``decode``, or
            ``skip-first``: both, but for the first token.
        perplexity: over whole windows.
        decode_perplexity: over what is predicted at decode tokens, the second halves.
        kl: mean over decode tokens of KL(dense || sparse), in nats.
        top1_agreement: share of decode tokens where both find the same likeliest.
        generated_kl: the same over what the dense model generated; None if it
            generated nothing.
        generated_top1_agreement: likewise.
    """

    policy: str
    perplexity: Real
    decode_perplexity: Real
    kl: Real
    top1_agreement: Share
    generated_kl: Real | None = None
    generated_top1_agreement: Share | None = None


class OnlineResult(Record):
    """Online sparsity, emulated with transformers, beside a dense model.

    Attributes:
        text: what people call the text.
        sha256: of the token ids.
        seq_len: tokens in a window.
        prompt_len: tokens of a window that count as its prompt.
        bos: whether every window begins with the token of the beginning.
        reference: what is called dense: another model, or the same weights.
        generated_tokens: predictions compared of what the dense model generated.
        policies: one a policy, the reference first.
    """

    kind: Literal["online"] = "online"
    text: str
    sha256: str
    seq_len: Count
    prompt_len: Count
    windows: Count
    tokens: Count
    bos: bool = False
    reference: Literal["dense model", "same weights"]
    generated_tokens: Count = 0
    policies: list[PolicyResult] = Field(min_length=1)


EvaluationResult: TypeAlias = Annotated[
    PerplexityResult
    | FidelityResult
    | OnlineResult
    | ZeroShotResult
    | GenerationResult,
    Field(discriminator="kind"),
]


class Sizes(Record):
    """Bytes of the weight files.

    Attributes:
        dense_bytes: of the dense model.
        saved_bytes: of the folder as it was saved.
        saved_format: ``dense`` (zeros are stored) or ``packed``.
        packed_bytes: what packing makes of it, computed; None if it was not.
    """

    dense_bytes: Count
    saved_bytes: Count
    saved_format: Literal["dense", "packed"] = "dense"
    packed_bytes: Count | None = None
