"""The command as a whole: its help is there at once, and every verb is where the table says."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

import softprompt
from cli.shell import Shell
from softprompt.cli.main import VERBS, group

RUN = "import sys; from softprompt.cli.main import run; code = run({args}); "
HEAVY = "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pydantic', 'rich')))"


@pytest.mark.parametrize("args", [["--help"], [], ["--version"], ["train", "--help"]], ids=str)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = RUN.format(args=args) + HEAVY
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
    )


def test_the_help_reads_no_package_metadata() -> None:
    """Which takes as long as all the rest of it."""
    code = RUN.format(args=["--help"]) + "sys.exit('importlib.metadata' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def test_garbage_is_looked_for_again_once_all_is_imported() -> None:
    code = "import gc, sys; from softprompt.cli.screen import wake; wake(); "
    code += "sys.exit(not (gc.isenabled() and gc.get_freeze_count() and 'torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("verb", [verb for verb, (home, _) in VERBS.items() if find_spec(home)])
def test_every_verb_has_help(shell: Shell, verb: str) -> None:
    done = shell(verb, "--help")
    assert done.code == 0
    assert f"softprompt {verb}" in done.out
    assert "--json" in done.out


@pytest.mark.parametrize("verb", [verb for verb, (home, _) in VERBS.items() if find_spec(home)])
def test_every_option_has_help(verb: str) -> None:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def test_without_a_verb_the_help_is_shown(shell: Shell) -> None:
    done = shell()
    assert done.code == 0
    assert all(verb in done.out for verb in VERBS)


def test_the_version_is_told(shell: Shell) -> None:
    assert softprompt.__version__ in shell("--version").out


@pytest.mark.parametrize("args", [["list"], ["show", "x"], ["generate", "x", "hi"], ["train", "bbc-topics"]])
def test_something_is_on_the_screen_before_torch_is_there(args: list[str], tmp_path: Path) -> None:
    """On a terminal, with a torch that takes for ever to be imported."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(300)\n", encoding="utf-8")
    screen, terminal = os.openpty()
    code = f"from softprompt.cli.main import run; run({args!r})"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "TERM": "xterm"},
    )
    try:
        seen = b""
        while b"Starting" not in seen and b"Reading" not in seen:
            assert select.select([screen], [], [], 60)[0], seen
            seen += os.read(screen, 1000)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        os.close(screen)
        os.close(terminal)
