"""Options that several verbs share, and opening what they name: a library, a base, a prompt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from softprompt.base.model import Base
    from softprompt.config import BaseConfig, Config
    from softprompt.generation.sampler import Sampling
    from softprompt.library.card import BaseCard, Card
    from softprompt.library.prompt import Prompt

__all__ = [
    "BaseChoice",
    "base_options",
    "examples",
    "json_option",
    "library_option",
    "load_base_of",
    "open_prompt",
    "plain_text",
    "ray_option",
    "refuse_missing",
    "refuse_taken",
    "require_ray",
    "run_options",
    "sampling_of_options",
    "sampling_options",
]

LIBRARY = "prompts"

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for programs.")
library_option = click.option(
    "--library",
    default=LIBRARY,
    show_default=True,
    metavar="DIR",
    help="The folder of saved prompts, or their address on an object store: s3://, gs:// or az://.",
)


ray_option = click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Use a Ray cluster: HOST:PORT of its head, auto, or with no address a new one on this machine.",
)


def require_ray(address: str, otherwise: str) -> None:
    """See that Ray is there, and say where it may listen, which it reads as it is imported.

    Raises:
        ResourceError: it is not installed.
    """
    from softprompt.packages import require

    require("a cluster", otherwise=otherwise)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on loopback only


@dataclass(frozen=True)
class BaseChoice:
    """Which base to load and how; ``model`` None means the one the prompt was learnt on."""

    model: str | None
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    quantisation: str = "none"

    def load(self, model: str, revision: str | None = None, quantisation: str | None = None) -> Base:
        """Load ``model`` while a spinner turns."""
        from softprompt.checkpoints.freeze import load_base
        from softprompt.cli import screen

        with screen.waiting(f"Loading {model}"):
            return load_base(
                model,
                revision=revision,
                dtype=self.dtype,
                device=self.device,
                quantisation=quantisation or self.quantisation,
                trust_remote_code=self.trust_remote_code,
                notify=screen.say,
            )

    def load_for(self, about: BaseCard) -> Base:
        """The base a prompt was learnt on, by its name for people, or the one asked for instead."""
        if self.model is not None:
            return self.load(self.model, quantisation=about.quantisation)
        return replace(self.load(about.name, about.revision, about.quantisation), name=about.called)

    def settings_for(self, about: BaseCard) -> BaseConfig:
        """What ``load_for`` loads, as settings."""
        from softprompt.config import BaseConfig

        named = (self.model, None) if self.model is not None else (about.name, about.revision)
        found = {"model": named[0], "revision": named[1], "quantisation": about.quantisation}
        how = {name: value for name, value in vars(self).items() if name not in found}
        return BaseConfig.model_validate(how | found)


def base_options(command: Command) -> Command:
    """Add the options that say how to load the base; they arrive as ``model``, ``dtype``, ``device``, ..."""
    for option in (
        click.option(
            "--trust-remote-code", is_flag=True, help="Run Python code that comes with a hub model."
        ),
        click.option("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 or mps."),
        click.option("--dtype", default="auto", metavar="T", help="auto, float32, bfloat16 or float16."),
        click.option(
            "--model",
            metavar="M",
            help="The base: a bundled name, hub id, folder or .gguf file.  [default: the prompt's own]",
        ),
    ):
        command = option(command)
    return command


def sampling_options(command: Command) -> Command:
    """Add an option for every field of ``Sampling`` but ``logprobs``; they arrive by the fields' names, those
    that are left out None or empty.
    """
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


def sampling_of_options(options: Mapping[str, Any]) -> Sampling:
    """The sampling that these options ask for.

    Raises:
        ConfigError: a value that is out of its range, or no number where there must be one.
    """
    from softprompt.errors import ConfigError
    from softprompt.generation.request import sampling_of

    asked = {name: value for name, value in options.items() if value not in (None, ()) and value is not False}
    biases = {}
    for word in asked.pop("logit_bias", ()):
        token, _, bias = word.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise ConfigError(f"--logit-bias takes TOKEN=X, such as 42=-100, not {word!r}.") from None
    return sampling_of(asked | ({"logit_bias": biases} if biases else {}))


_SAMPLING = (
    click.option(
        "--max-new-tokens", type=int, metavar="N", help="Longest answer, a label at most.  [default: 64]"
    ),
    click.option("--min-new-tokens", type=int, metavar="N", help="An answer does not end before so many."),
    click.option("--temperature", type=float, metavar="X", help="0 takes the likeliest token.  [default: 0]"),
    click.option("--top-k", type=int, metavar="N", help="Draw among the N likeliest."),
    click.option("--top-p", type=float, metavar="X", help="Draw among the likeliest that hold this much."),
    click.option("--min-p", type=float, metavar="X", help="Leave out what is less likely than this share."),
    click.option("--repetition-penalty", type=float, metavar="X", help="Divides logits of tokens seen."),
    click.option("--presence-penalty", type=float, metavar="X", help="Taken off a token that was written."),
    click.option("--frequency-penalty", type=float, metavar="X", help="Taken off for each time it was."),
    click.option(
        "--logit-bias", multiple=True, metavar="TOKEN=X", help="Added to a token's logit; may repeat."
    ),
    click.option("--seed", type=int, metavar="N", help="Fixes the draws."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End an answer before this; may repeat."),
    click.option(
        "--stop-token",
        "stop_tokens",
        type=int,
        multiple=True,
        metavar="ID",
        help="End an answer before this token; may repeat.",
    ),
    click.option("--ignore-end", is_flag=True, help="The end token does not end an answer."),
)


def run_options(command: Command) -> Command:
    """Options of verbs that learn and save: any other setting, going on, replacing, and where it is kept."""
    for option in reversed(_RUN):
        command = option(command)
    return command


_RUN = (
    click.option(
        "--set", "assignments", multiple=True, metavar="A.B=C", help="Any other setting; may repeat."
    ),
    click.option("--resume", is_flag=True, help="Go on where a stopped or killed run left off."),
    click.option("--overwrite", is_flag=True, help="Replace a prompt of the same name."),
    click.option("--library", metavar="DIR", help="The folder of saved prompts.  [default: prompts]"),
    json_option,
)


def refuse_taken(config: Config, names: Iterable[str], by: str) -> None:
    """Refuse a run that would replace a prompt and was not told to; ``by``: the option that names it.

    Raises:
        ConfigError: one of the names is taken.
    """
    from softprompt.errors import ConfigError
    from softprompt.library.folder import Library

    library = Library(config.output.library)
    taken = next((name for name in names if library.taken(name)), None)
    if taken is not None and not config.output.overwrite:
        raise ConfigError(
            f"There is a prompt {taken!r} in {config.output.library} already; choose another name with "
            f"{by}, or replace it with --overwrite."
        )


def load_base_of(config: Config) -> Base:
    """The base of a run."""
    about = config.base
    choice = BaseChoice(about.model, about.dtype, about.device, about.trust_remote_code, about.quantisation)
    return choice.load(about.model, about.revision)


def refuse_missing(library: str, told: str = "--library") -> None:
    """Refuse a library that was named and is not there; the default one need not be there yet.

    Raises:
        ArtifactError: there is no such folder or store.
    """
    from softprompt.errors import ArtifactError
    from softprompt.library.folder import Library

    if library != LIBRARY and not Library(library).exists():
        what = "is a file, not a folder of prompts" if Path(library).exists() else "is not there"
        raise ArtifactError(f"The library {library} {what}; check {told}.")


def open_prompt(
    name: str, library: str, choice: BaseChoice, check: Callable[[Card], None] = lambda card: None
) -> Prompt:
    """A saved prompt on its base; its faults, and what ``check`` finds, show before the base is loaded."""
    from softprompt.cli.screen import command_line
    from softprompt.errors import ArtifactError
    from softprompt.library.folder import Library
    from softprompt.library.prompt import load_prompt
    from softprompt.packages import require

    artifact = Library(library).load(name)
    if artifact.card is None:
        again = command_line("import", str(artifact.path), "--name", "NAME")
        raise ArtifactError(f"{name} has no card; bring it in with `{again}`.")
    require(*artifact.payload.needs)
    check(artifact.card)
    return load_prompt(name, choice.load_for(artifact.card.base), library)


def plain_text(text: str) -> str:
    r"""A template as typed in a shell: ``\n`` and ``\t`` are a line break and a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def examples(lines: str) -> str:
    """Command lines for the end of a help text, not to be rewrapped."""
    return f"\b\nExamples:{lines.rstrip()}".replace("\n", "\n  ").replace("  Examples", "Examples")
