"""``python -m softprompt.harness``: lm_eval's own command line with the model ``softprompt`` in it.

It knows how to register the model and how a fault ends; everything else is lm_eval's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from softprompt.errors import SoftpromptError
from softprompt.packages import require

__all__ = ["main"]

_OTHER_COMMANDS = ("ls", "validate", "-h", "--help")
_DEFAULTS = {
    ("--model", "-M"): "softprompt",
    ("--batch_size", "-b"): "auto",
    ("--device",): "auto",
}


def main(args: Sequence[str]) -> int:
    """Run lm_eval's command line; 0 done, 2 something the user can put right."""
    try:
        _forward(list(args))
    except SoftpromptError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def _forward(args: list[str]) -> None:
    require("the harness")
    from lm_eval.__main__ import cli_evaluate

    from softprompt.harness.run import plainly  # registers the model on its way

    before = sys.argv
    sys.argv = ["softprompt.harness", *with_defaults(args)]
    try:
        with plainly("The command"):
            cli_evaluate()
    finally:
        sys.argv = before


def with_defaults(args: list[str]) -> list[str]:
    """The model is softprompt on the best device, its batches bounded by tokens, unless the arguments differ.

    lm_eval's own defaults are a Hugging Face model on a CUDA device, one row at a time. With a configuration
    file nothing is added.
    """
    if not args or args[0] in _OTHER_COMMANDS:
        return args
    words = args if args[0] == "run" else ["run", *args]
    given = {word.partition("=")[0] for word in words}
    if given & {"--config", "-C"}:
        return words
    for names, value in _DEFAULTS.items():
        if not given & set(names):
            words = [*words, names[0], value]
    return words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
