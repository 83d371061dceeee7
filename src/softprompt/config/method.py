"""The settings of ``[method]``: one class a kind, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from softprompt.config.section import Section
from softprompt.config_io import BrokenRuleError
from softprompt.packages import Need

__all__ = [
    "ClassifierConfig",
    "FullConfig",
    "Ia3Config",
    "LoraConfig",
    "MethodConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "TextConfig",
]


class _Method(Section):
    learns: ClassVar[bool] = True
    rate: ClassVar[float]
    """The learning rate, where none is given."""
    steps: ClassVar[int | None] = 100
    """The fewest steps to take, where no length of the training is given."""
    needs: ClassVar[tuple[Need, ...]] = ()
    searched: ClassVar[tuple[str, float]] = ("train.learning_rate", 10**0.5)
    """The setting that decides most, and by what factor to try others."""


class PromptTuningConfig(_Method):
    """A soft prompt: vectors in front of the text, learnt while the model stays as it is."""

    rate: ClassVar[float] = 0.15
    steps: ClassVar[int | None] = 200
    kind: Literal["prompt-tuning"] = "prompt-tuning"
    """The method."""
    front: str = "{soft:20}"
    """What stands in front of every row: text, and {soft:N} for N learnt vectors."""
    init: Literal["text", "labels", "vocabulary", "random", "artifact"] = "vocabulary"
    """What the vectors start from; when not given: init_text, else init_artifact, else the labels, if any."""
    init_text: str | None = Field(default=None, min_length=1)
    """The text to start from."""
    init_artifact: str | None = Field(default=None, min_length=1)
    """The saved prompt to start from."""
    reparametrisation: Literal["none", "residual", "mlp"] = "none"
    """What the vectors pass through while they are learnt: nothing, a network beside them, a network."""
    reparametrisation_width: int = Field(default=64, ge=1)
    """The width of that network."""

    def of_length(self, positions: int) -> PromptTuningConfig:
        """The same with a front of so many vectors alone."""
        return self.model_copy(update={"front": f"{{soft:{positions}}}"})

    @field_validator("init_text", "init_artifact")
    @classmethod
    def _init_has_its_source(cls, source: str | None, info: ValidationInfo) -> str | None:
        if source is None and f"init_{info.data.get('init')}" == info.field_name:
            raise BrokenRuleError(f'required and missing, because method.init is "{info.data["init"]}"')
        return source


class PrefixTuningConfig(_Method):
    """A KV prefix: the keys and values of every layer for P positions, learnt directly."""

    rate: ClassVar[float] = 0.05
    kind: Literal["prefix-tuning"] = "prefix-tuning"
    """The method."""
    front: str = "{demos:4}"
    """The text whose keys and values are the start; {demos:N} stands for N solved training rows."""
    positions: int | None = Field(default=None, ge=2)
    """P; a shorter text is repeated, of a longer one so much is kept. None means the whole text."""
    most: int | None = Field(default=None, ge=2)
    """The most positions where their number is not given; kept are those that rows look at most."""
    keep: Literal["last", "first", "attended", "matched"] = "last"
    """What stays of a longer text: the last, the first, what rows look at most, or that fitted to all."""
    init: Literal["text", "artifact", "random"] = "text"
    """What keys and values start from: the text, a saved prompt, or random ones behind a small network."""
    init_artifact: str | None = Field(default=None, min_length=1)
    """The saved prompt to start from."""
    projection_width: int = Field(default=128, ge=1)
    """The width of that network."""
    freeze_first: bool = True
    """Whether the first position of a text stays as it is: models lean on it as an attention sink."""

    def of_length(self, positions: int) -> PrefixTuningConfig:
        """The same with so many positions."""
        return self.model_copy(update={"positions": positions})

    @model_serializer(mode="wrap")
    def _without_later_settings(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was not there at first is left out where it is off, so that older runs keep their digest."""
        later = {"keep": "last", "init_artifact": None, "most": None}
        return {k: v for k, v in write(self).items() if k not in later or v != later[k]}

    @field_validator("init_artifact")
    @classmethod
    def _init_has_its_source(cls, source: str | None, info: ValidationInfo) -> str | None:
        if source is None and info.data.get("init") == "artifact":
            raise BrokenRuleError('required and missing, because method.init is "artifact"')
        return source

    @field_validator("init")
    @classmethod
    def _random_has_a_length(cls, init: str, info: ValidationInfo) -> str:
        if init == "random" and info.data.get("positions", 2) is None:
            raise BrokenRuleError('"random" needs method.positions, which is missing')
        return init


class TextConfig(_Method):
    """Text only: an instruction, demonstrations or nothing; no training."""

    learns: ClassVar[bool] = False
    steps: ClassVar[int | None] = None
    rate: ClassVar[float] = 0.02
    kind: Literal["text"] = "text"
    """The method."""
    front: str = ""
    """The text that stands in front of every row; {demos:N} stands for N solved training rows."""


class LoraConfig(_Method):
    """Low-rank adapters in the model's linear layers; on a quantised base this is QLoRA."""

    rate: ClassVar[float] = 0.001
    needs: ClassVar[tuple[Need, ...]] = ("LoRA",)
    kind: Literal["lora"] = "lora"
    """The method."""
    front: str = ""
    """The text that stands in front of every row."""
    rank: int = Field(default=8, ge=1)
    """The inner width of an adapter."""
    alpha: float = Field(default=16.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """The layers that get an adapter, by the end of their names."""
    rslora: bool = False
    """Whether the scale is alpha / sqrt(rank) (rsLoRA)."""
    dora: bool = False
    """Whether direction and magnitude are learnt apart (DoRA)."""


class Ia3Config(_Method):
    """IA3: what the model's linear layers give is multiplied, one learnt number for each output."""

    rate: ClassVar[float] = 0.005
    kind: Literal["ia3"] = "ia3"
    """The method."""
    front: str = ""
    """The text that stands in front of every row."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """The layers whose outputs are multiplied, by the end of their names."""


class FullConfig(_Method):
    """Full fine-tuning: every weight of a copy of the model is learnt."""

    rate: ClassVar[float] = 3e-5
    kind: Literal["full"] = "full"
    """The method."""
    front: str = ""
    """The text that stands in front of every row."""


class ClassifierConfig(_Method):
    """Logistic regression on frozen features: what one would use without tuning; for comparisons only."""

    rate: ClassVar[float] = 0.02
    needs: ClassVar[tuple[Need, ...]] = ("logistic regression",)
    searched: ClassVar[tuple[str, float]] = ("method.c", 10.0)
    kind: Literal["classifier"] = "classifier"
    """The method."""
    features: Literal["tf-idf", "encoder", "hidden"] = "tf-idf"
    """What a text becomes: its words, a sentence encoder's vector, or the base's last hidden state."""
    encoder: str = Field(default="all-minilm-l6-v2", min_length=1)
    """The sentence encoder: all-minilm-l6-v2, a folder or a hub id."""
    front: str = ""
    """The text that stands in front of every row where the base reads it."""
    c: float = Field(default=10.0, gt=0)
    """How much the training rows weigh against small weights: scikit-learn's C on features of length 1."""


# A new method is a new class here with a `kind` of its own, and a builder in methods/build.py.
MethodConfig = Annotated[
    PromptTuningConfig
    | PrefixTuningConfig
    | TextConfig
    | LoraConfig
    | Ia3Config
    | FullConfig
    | ClassifierConfig,
    Field(discriminator="kind"),
]
