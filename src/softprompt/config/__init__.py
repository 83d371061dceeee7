"""The settings of one run: their names, defaults and rules; knows nothing of models, data or training.

``load`` and ``parse`` are the doors: they report every fault at once, in plain words. A setting that may
be off, such as ``train.clip``, is turned off by the word ``"none"``, for TOML has no null.
"""

from softprompt.config.data import DataConfig
from softprompt.config.job import NAME_RULE, Config, candidates, digest, dump_toml, load, parse, rooted
from softprompt.config.method import (
    ClassifierConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TextConfig,
)
from softprompt.config.search import SearchConfig
from softprompt.config.teacher import ANSWER, TeacherConfig
from softprompt.config.train import BaseConfig, OutputConfig, TrainConfig

__all__ = [
    "ANSWER",
    "NAME_RULE",
    "BaseConfig",
    "ClassifierConfig",
    "Config",
    "DataConfig",
    "FullConfig",
    "Ia3Config",
    "LoraConfig",
    "MethodConfig",
    "OutputConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "SearchConfig",
    "TeacherConfig",
    "TextConfig",
    "TrainConfig",
    "candidates",
    "digest",
    "dump_toml",
    "load",
    "parse",
    "rooted",
]
