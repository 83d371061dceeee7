"""The settings of ``[base]``, ``[train]`` and ``[output]``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from softprompt.config.section import Section, on_disk
from softprompt.config_io import BrokenRuleError
from softprompt.packages import Need

__all__ = ["BaseConfig", "OutputConfig", "TrainConfig"]


class BaseConfig(Section):
    """The frozen model."""

    model: str = Field(default="smollm2-135m", min_length=1)
    """A bundled name, a hub id, a folder or a .gguf file."""
    revision: str | None = Field(default=None, min_length=1)
    """The branch, tag or commit of a hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The number format of the weights."""
    quantisation: Literal["none", "nf4", "int8"] = "none"
    """How the linear layers are stored: as they are, in 4 bits (NF4, double quantisation) or in 8."""
    device: str = Field(default="auto", min_length=1)
    """Where the model runs, such as cpu or cuda:0."""
    trust_remote_code: bool = False
    """Whether Python code that comes with a hub model may run."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return () if self.quantisation == "none" else ("a quantised base",)


Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]


class TrainConfig(Section):
    """How the method is trained."""

    later: ClassVar[tuple[str, ...]] = ("report_to", "min_steps")
    learning_rate: float = Field(default=0.02, gt=0)
    """The highest learning rate of the schedule; when not given, one that suits the method."""
    epochs: int = Field(default=3, ge=0)
    """How many times every training row is seen."""
    max_steps: int | None = Field(default=None, ge=0)
    """The most steps to take, whatever the epochs."""
    min_steps: int | None = Field(default=None, ge=0)
    """The fewest steps to take, of 16 epochs at most; when no length is given, what suits the method."""
    batch_size: int = Field(default=16, ge=1)
    """How many rows make one step."""
    accumulation: int = Field(default=1, ge=1)
    """How many micro-batches a batch is split into, to save memory."""
    recompute: bool = False
    """Whether layers keep only what enters them and are computed again for gradients, to save memory."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """The optimizer."""
    weight_decay: float = Field(default=0.0, ge=0)
    """How strongly the optimizer pulls towards zero."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warmup."""
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """The share of all steps in which the learning rate rises."""
    clip: float | None = Field(default=1.0, gt=0)
    """The largest norm of a gradient; none means no limit."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; none means once an epoch."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations without gain before stopping early; none means never."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between checkpoints."""
    select: Literal["auto", "accuracy", "nll"] = "auto"
    """The validation score that picks the best state."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; none leaves the choice to torch."""
    report_to: list[Tracker] | None = None
    """The trackers a run is followed by, such as wandb or mlflow, through accelerate."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("a tracker",) if self.report_to else ()

    @field_validator("accumulation")
    @classmethod
    def _micro_batches_have_rows(cls, accumulation: int, info: ValidationInfo) -> int:
        rows = info.data.get("batch_size", accumulation)
        if accumulation > rows:
            raise BrokenRuleError(f"expected at most train.batch_size, which is {rows}, got {accumulation}")
        return accumulation


class OutputConfig(Section):
    """Where results go."""

    library: str = Field(default="prompts", min_length=1)
    """The folder of artifacts."""
    runs: str = Field(default="runs", min_length=1)
    """The folder of logs and checkpoints."""
    tensorboard: bool = False
    """Whether to log for TensorBoard too."""
    overwrite: bool = False
    """Whether an artifact of the same name may be replaced."""

    @field_validator("runs")
    @classmethod
    def _runs_are_here(cls, runs: str) -> str:
        return on_disk(runs)

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("TensorBoard's log",) if self.tensorboard else ()
