"""``SparsityConfig``: the contract between the pruner, a model folder and the plugin.

It says, per module, which sparsity applies: targets and ignore in compressed-tensors
syntax, activation and weight patterns, criteria and mitigations, the phase policy, the
file with learned parameters, and where the model came from.
It is stored in a model folder as ``vllm_sparse_config.json`` (see ``sidecar.py``) and
travels to vLLM's processes as JSON. No torch, no vLLM.
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import Enum
from typing import Annotated, Any, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from nmsparse.beside import is_plain
from nmsparse.criteria import DEFAULT_CRITERION, criteria
from nmsparse.errors import ConfigError as ConfigError
from nmsparse.errors import printable
from nmsparse.mitigation import check_mitigations
from nmsparse.pattern import NMPattern, Pattern, Unstructured, parse_pattern
from nmsparse.suggest import unknown
from nmsparse.targets import DEFAULT_TARGETS, check_target

# Version 1 had no mitigation, dense_first_token and parameters; it is still read.
SCHEMA_VERSION = 2
# Regular expressions of one configuration: each is tried on every layer.
MAX_EXPRESSIONS = 1000
# Lines of an error about one configuration.
_MAX_LINES = 20


class Phase(str, Enum):
    """Which tokens are sparsified.

    A token is *decode* when the model generated it, *prefill* when it belongs to the
    prompt. That depends on its position alone, never on how tokens were batched.
    """

    DECODE = "decode"
    PREFILL = "prefill"
    BOTH = "both"


PatternField: TypeAlias = Annotated[
    NMPattern | Unstructured,
    BeforeValidator(parse_pattern),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["8:16", "50%"]}),
]


class _Strict(BaseModel):
    """Frozen; unknown keys are refused with a suggestion."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(unknown("key", str(key), cls.model_fields))
        return data


class ActivationSparsity(_Strict):
    """How the input of a linear layer is sparsified at run time."""

    pattern: PatternField
    criterion: str = DEFAULT_CRITERION
    mitigation: tuple[str, ...] = ()

    @field_validator("criterion")
    @classmethod
    def _known_criterion(cls, name: str) -> str:
        if name not in criteria:
            raise ValueError(unknown("criterion", name, criteria))
        return name

    @field_validator("mitigation")
    @classmethod
    def _one_mitigation_a_slot(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_mitigations(names)
        return names

    @property
    def needs_parameters(self) -> bool:
        """Whether it needs tensors from a parameters file."""
        learned = any(item.parameters for item in check_mitigations(self.mitigation))
        return learned or criteria.get(self.criterion).needs == "calibration"


class WeightSparsity(_Strict):
    """What the pruner did to the weights: a record, the weights hold the zeros."""

    pattern: PatternField
    sparsity: float | None = Field(default=None, ge=0.0, le=1.0, allow_inf_nan=False)


class Group(_Strict):
    """One rule: these targets get this sparsity."""

    targets: tuple[str, ...] = Field(min_length=1)
    activation: ActivationSparsity | None = None
    weight: WeightSparsity | None = None

    @field_validator("targets")
    @classmethod
    def _valid_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_target(target) for target in targets)


class ParametersFile(_Strict):
    """The file with learned parameters, in the folder of the configuration."""

    file: str
    sha256: str

    @field_validator("file")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not is_plain(name):
            raise ValueError(
                f"File name {name!r} is invalid. Expected the name of a file beside "
                "the configuration, without directories."
            )
        return name

    @field_validator("sha256")
    @classmethod
    def _hash(cls, digest: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(
                f"Hash {digest!r} is invalid. Expected 64 hexadecimal digits in lower "
                "case, the SHA-256 of the file."
            )
        return digest


class SparsityConfig(_Strict):
    """The whole configuration of a model.

    When several groups match a module, the most specific target decides (full name,
    then ``re:``, then class name), and among equals the first group. ``ignore`` wins
    over every group, and heads, routers, experts and towers (``NEVER_TARGETS``) stay
    dense unless named in full.

    Raises:
        pydantic.ValidationError: on construction; :meth:`parse` gives readable errors.
    """

    # Strict: "2" must not pass as a version that was not compared.
    schema_version: int = Field(default=SCHEMA_VERSION, strict=True)
    phase: Phase = Phase.DECODE
    # The first token of a request is an attention sink: dense whatever the phase.
    dense_first_token: bool = Field(default=False, strict=True)
    groups: dict[str, Group] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    parameters: ParametersFile | None = None
    provenance: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _readable_schema(cls, data: Any) -> Any:
        # First of all: a newer schema may have keys that are unknown here.
        version = data.get("schema_version", 1) if isinstance(data, dict) else 1
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ValueError(
                f"schema_version {version} is newer than this vllm-sparse can read. "
                f"Expected at most {SCHEMA_VERSION}: upgrade vllm-sparse."
            )
        return data

    @field_validator("schema_version")
    @classmethod
    def _positive_version(cls, version: int) -> int:
        if version < 1:
            raise ValueError(
                f"schema_version {version} is invalid. Expected 1 or more."
            )
        # What was read from an older file is written as the version of today.
        return SCHEMA_VERSION

    @field_validator("ignore")
    @classmethod
    def _valid_ignore(cls, ignore: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_target(target) for target in ignore)

    @field_validator("groups", "provenance")
    @classmethod
    def _unicode(cls, data: dict[str, Any]) -> dict[str, Any]:
        # JSON can escape half a character, which no file or log can hold.
        for text in (*data, *data.values()):
            if isinstance(text, str) and any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(
                    f"'{printable(text, limit=80)}' is no Unicode text. Expected whole "
                    "characters, not halves of surrogate pairs."
                )
        return data

    @field_validator("groups")
    @classmethod
    def _few_expressions(cls, groups: dict[str, Group]) -> dict[str, Group]:
        targets = (target for group in groups.values() for target in group.targets)
        count = sum(target.startswith("re:") for target in targets)
        if count > MAX_EXPRESSIONS:
            raise ValueError(
                f"{count} targets are regular expressions. Expected at most "
                f"{MAX_EXPRESSIONS}: name modules in full, which is also faster."
            )
        return groups

    @classmethod
    def uniform(
        cls,
        pattern: str | Pattern,
        *,
        phase: Phase | str = Phase.DECODE,
        criterion: str = DEFAULT_CRITERION,
        mitigation: tuple[str, ...] = (),
    ) -> SparsityConfig:
        """Return one activation pattern for all decoder linears.

        Raises:
            ConfigError: if the pattern, phase, criterion or a mitigation is invalid.
        """
        activation = {
            "pattern": pattern,
            "criterion": criterion,
            "mitigation": mitigation,
        }
        group = {"targets": list(DEFAULT_TARGETS), "activation": activation}
        data = {"phase": phase, "groups": {"default": group}}
        return cls.parse(data, source="sparsity options")

    @classmethod
    def parse(cls, data: Any, *, source: str) -> SparsityConfig:
        """Validate JSON data.

        Args:
            data: a mapping, as read from JSON.
            source: what the data came from, named in errors.

        Raises:
            ConfigError: with one line for each problem.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(describe_errors(error, source)) from None

    def to_json(self) -> str:
        """Return the JSON text stored in a model folder."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    @property
    def fingerprint(self) -> str:
        """Hash of everything that changes results: part of vLLM's compile-cache key."""
        relevant = self.model_dump(mode="json", exclude={"provenance"})
        # Unsorted: of groups that match equally well the first decides.
        text = json.dumps(relevant)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_errors(error: ValidationError, source: str) -> str:
    """Return pydantic's errors as ``source: key.path: message`` lines."""
    lines = []
    for item in error.errors(include_url=False)[:_MAX_LINES]:
        where = printable(".".join(str(part) for part in item["loc"]))
        message = printable(item["msg"].removeprefix("Value error, "), limit=2000)
        lines.append(
            f"{source}: {where}: {message}" if where else f"{source}: {message}"
        )
    if error.error_count() > _MAX_LINES:
        lines.append(f"{source}: and {error.error_count() - _MAX_LINES} more problems")
    return "\n".join(lines)
