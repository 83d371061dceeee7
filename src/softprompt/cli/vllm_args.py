"""The verb ``vllm-args``: a library in, the flags with which vLLM itself serves its prompts out."""

from __future__ import annotations

import click

from softprompt.cli.options import BaseChoice, examples, json_option, refuse_missing

__all__ = ["command"]

_EXAMPLES = """
python -m vllm.entrypoints.openai.api_server $(softprompt vllm-args prompts)
vllm serve $(softprompt vllm-args prompts --dtype bfloat16) --tensor-parallel-size 2
"""


@click.command("vllm-args", epilog=examples(_EXAMPLES))
@click.argument("library", default="prompts")
@click.option("--base", "model", metavar="M", help="The base.  [default: that of the prompts]")
@click.option(
    "--store",
    default=".softprompt-vllm",
    show_default=True,
    metavar="DIR",
    help="Where prompts are put for vLLM's processes to read; all of its machines must see it.",
)
@click.option("--dtype", default="auto", metavar="T", help="auto, float32, bfloat16 or float16.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with a hub model.")
@json_option
def command(
    library: str, model: str | None, store: str, dtype: str, trust_remote_code: bool, as_json: bool
) -> None:
    """Print the flags with which vLLM's server serves the prompts of LIBRARY.

    Clients then send /v1/completions with the name of a prompt as model. Prompts may come, change and go
    while vLLM serves. LoRA adapters, chats and /v1/classify need `softprompt serve --engine vllm`.
    """
    from pathlib import Path

    from softprompt.cli import screen
    from softprompt.cli.serve import cards_of, served_base
    from softprompt.vllm.flags import engine_fields, flags, refuse_base

    refuse_missing(library, "LIBRARY")
    base = served_base(BaseChoice(model, dtype, "cpu", trust_remote_code), cards_of(library))
    refuse_base(base)
    where = library if "://" in library else str(Path(library).absolute())
    about = {"library": where, "fingerprint": base.fingerprint}
    words = flags(engine_fields(base, str(Path(store).absolute()), **about))
    if as_json:
        screen.print_json(words)
    else:
        print("\n".join(words))
