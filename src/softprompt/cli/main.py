"""The command ``softprompt``: knows the verbs by name and how any fault ends, not what a verb does.

Every exit has one meaning: 0 done, 1 a fault in softprompt, 2 something the user can put right, 130 stopped
with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from softprompt.cli.faults import Ending, ending_of
from softprompt.errors import ConfigError
from softprompt.team import ALONE, Team, join, started_together

__all__ = ["main", "run"]

VERBS = {
    "init": ("softprompt.cli.init", "Look at rows and write a configuration that learns from them."),
    "train": ("softprompt.cli.train", "Teach a base one job and keep the prompt."),
    "distil": ("softprompt.cli.distil", "Learn a long text into a short prompt that answers like it."),
    "plan": ("softprompt.cli.plan", "Say beforehand what a job will need, and whether it fits."),
    "compare": ("softprompt.cli.compare", "Find out which method wins on your rows, and at what cost."),
    "generate": ("softprompt.cli.generate", "Answer texts with a saved prompt."),
    "eval": ("softprompt.cli.eval", "Score a saved prompt on labelled rows."),
    "inspect": ("softprompt.cli.inspect", "Look inside saved prompts: what each position is near and does."),
    "prune": ("softprompt.cli.prune", "Make a shorter prompt of a saved one."),
    "list": ("softprompt.cli.list", "List the saved prompts."),
    "show": ("softprompt.cli.show", "Show all that is known about a saved prompt."),
    "rename": ("softprompt.cli.rename", "Give a saved prompt another name."),
    "rm": ("softprompt.cli.rm", "Remove saved prompts."),
    "export": ("softprompt.cli.export", "Write a saved prompt as a plain PEFT folder."),
    "push": ("softprompt.cli.push", "Put a saved prompt on the model hub."),
    "import": ("softprompt.cli.import_", "Bring a PEFT prompt or prefix into the library."),
    "serve": ("softprompt.cli.serve", "Serve the saved prompts over HTTP, in OpenAI's form."),
    "vllm-args": ("softprompt.cli.vllm_args", "Print the flags with which vLLM itself serves saved prompts."),
    "keys": ("softprompt.cli.keys", "Make, list and revoke the API keys of a server."),
    "models": ("softprompt.cli.models", "List the base models that come by name, or fetch one."),
    "demo": ("softprompt.cli.demo", "See it work: teach the bundled base three jobs, and what that gained."),
}
"""By verb: the module that holds its ``command``, imported when it is used, and its line in the help."""

LIGHT = ("init", "train", "keys", "models")
"""Verbs that need no model, or find many faults before they do and wake the rest up by themselves."""


TOGETHER = ("train",)
"""Verbs that several processes, which torchrun started, can carry out together."""


class _Verbs(click.Group):
    """A group that imports a verb only when it is called, so that the help is there at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(VERBS[cmd_name][0]).command
        if cmd_name in LIGHT or command.callback is None:
            return command
        awake = copy.copy(command)
        awake.callback = _once_awake(command.callback)
        return awake

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb = args[0]
        if verb not in VERBS and not verb.startswith("-"):
            near = difflib.get_close_matches(verb, VERBS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(VERBS)}."
            raise click.UsageError(f"There is no verb {verb!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, about) for verb, (_, about) in VERBS.items()])


@click.command(
    cls=_Verbs,
    invoke_without_command=True,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`softprompt VERB --help` shows what a verb takes.",
)
@click.version_option(package_name="softprompt", prog_name="softprompt")
@click.pass_context
def group(context: click.Context) -> None:
    """Teach one frozen language model many jobs through learnt prefixes."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but a code leaves here."""
    team = ALONE
    try:
        team = _team(args)
        with contextlib.ExitStack() as while_it_runs:
            if not team.leads:  # of a team one process speaks
                nowhere = while_it_runs.enter_context(open(os.devnull, "w"))
                while_it_runs.enter_context(contextlib.redirect_stdout(nowhere))
                while_it_runs.enter_context(contextlib.redirect_stderr(nowhere))
            code = group.main(list(args), prog_name="softprompt", standalone_mode=False, obj=list(args))
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as ended:  # how click and rich leave when nobody reads their output any more
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:
        ending: Ending = ending_of(error, as_json=_wants_json(args))
        if team.first_to_fail():  # what follows from that in the other processes, they need not say
            ending.tell()
        return ending.code


def _team(args: Sequence[str]) -> Team:
    """The processes that carry out a command line together."""
    if not started_together():
        return ALONE
    verb = next((word for word in args if not word.startswith("-")), "")
    if verb not in TOGETHER:
        raise ConfigError(
            f"softprompt {verb} runs in one process; start it without torchrun, which is for "
            f"{' and '.join(TOGETHER)}."
        )
    return join()


def main() -> None:
    """The entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def _once_awake(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The same behind a sign of life: what computes takes seconds to be imported."""

    @functools.wraps(callback)
    def command(*args: Any, **kwargs: Any) -> Any:
        from softprompt.cli.screen import wake

        wake()
        return callback(*args, **kwargs)

    return command


def _wants_json(args: Sequence[str]) -> bool:
    options = args[: list(args).index("--")] if "--" in args else args
    return "--json" in options
