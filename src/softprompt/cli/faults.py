"""How a command ends when something goes wrong: knows exceptions and their one sentence, no verbs."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import traceback
from dataclasses import dataclass

import click

from softprompt.errors import SoftpromptError

__all__ = ["Ending", "ending_of"]

DEBUG = "SOFTPROMPT_DEBUG"


@dataclass(frozen=True)
class Ending:
    """An exit code and what to say before it.

    Attributes:
        code: of the process.
        kind: name of the error, for programs.
        message: one sentence, or one a line.
        as_json: whether to say it as a JSON object on stdout instead of text on stderr.
    """

    code: int
    kind: str
    message: str
    as_json: bool = False

    def tell(self) -> None:
        """Print it; silent where nobody listens any more."""
        try:
            self._print()
        except OSError:
            _close_quietly()

    def _print(self) -> None:
        from softprompt.cli import screen

        if not self.message:
            return
        if self.as_json:
            screen.print_json({"error": {"type": self.kind, "message": self.message}})
        else:
            screen.complain(self.message)


def ending_of(error: BaseException, *, as_json: bool = False) -> Ending:
    """What to exit with, and to say, after ``error`` ended a command."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return Ending(130, "Interrupted", "Interrupted." if as_json else "", as_json)
    if isinstance(error, BrokenPipeError):
        _close_quietly()
        return Ending(1, "BrokenPipeError", "")
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    code, message = _judge(error)
    return Ending(code, type(error).__name__, message, as_json)


def _judge(error: BaseException) -> tuple[int, str]:
    if isinstance(error, SoftpromptError):
        return 2, str(error)
    if isinstance(error, click.ClickException):
        return 2, _usage(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            2,
            "There is not enough memory; lower train.batch_size, give fewer texts or take a smaller base.",
        )
    if isinstance(error, OSError) and error.errno is not None:
        from softprompt.atomic import disk_fault

        where = f"{error.filename}: " if error.filename else "The system says: "
        return 2, f"{where}{disk_fault(error) or f'{error.strerror}; check the path'}."
    said = (str(error) or "no message").splitlines()[0].rstrip(". ")
    return 1, (
        f"{type(error).__name__} ({said}): this is a fault in softprompt; run again with {DEBUG}=1 for the "
        "traceback."
    )


def _usage(error: click.ClickException) -> str:
    """Click's words, with the nearest option or where to read on."""
    if isinstance(error, click.NoSuchOption):
        return f"There is no option {error.option_name}; {_instead(error)}"
    message = error.format_message()
    if message.endswith("?") or ";" in message or not isinstance(error, click.UsageError):
        return message
    return f"{message.rstrip('.')}; see {_path(error)} --help."


_MEANT = {
    "base": "model", "base-model": "model", "model-name": "model", "model-id": "model", "checkpoint": "model",
    "lr": "learning-rate", "rate": "learning-rate", "epoch": "epochs", "num-epochs": "epochs",
    "num-train-epochs": "epochs", "bs": "batch-size", "batch": "batch-size",
    "per-device-train-batch-size": "batch-size", "gpu": "device", "cuda": "device", "precision": "dtype",
    "train": "data", "dataset": "data", "file": "data", "val": "validation", "dev": "validation",
    "prompt": "input", "template": "input", "label": "labels", "classes": "labels", "output": "library",
    "output-dir": "library", "out": "library", "dir": "library", "folder": "library", "force": "overwrite",
    "max-tokens": "max-new-tokens", "max-length": "max-new-tokens", "temp": "temperature", "n": "rows",
    "limit": "rows", "config": "set", "random-seed": "seed",
}  # fmt: skip
"""Flags of other tools, and what they are called here where a verb has it."""


def _instead(error: click.NoSuchOption) -> str:
    """The option or setting that was meant, or where to read on."""
    command = error.ctx.command if error.ctx is not None else None
    flags = [flag for param in getattr(command, "params", ()) for flag in param.opts if flag[:2] == "--"]
    word = error.option_name.lstrip("-").replace("_", "-").lower()
    for flag in (f"--{word}", f"--{_MEANT.get(word, word)}"):
        if flag in flags:
            return f"did you mean {flag}?"
    if "--set" in flags and (setting := _setting(word.replace("-", "_"))):
        return f"{setting} is a setting, so give it as --set {setting}=VALUE."
    near = difflib.get_close_matches(f"--{word}", flags, n=1)
    return f"did you mean {near[0]}?" if near else f"see {_path(error)} --help."


def _setting(word: str) -> str | None:
    """The setting that is called so, by its dotted name."""
    from softprompt.config import Config
    from softprompt.config_io import setting_paths

    return next((path for path in setting_paths(Config) if path.rpartition(".")[2] == word), None)


def _path(error: click.UsageError) -> str:
    return error.ctx.command_path if error.ctx is not None else "softprompt"


def _close_quietly() -> None:
    """Point stdout nowhere, so that Python's last flush does not complain about a closed pipe."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
