"""What the figures of the source count, on a small made-up tree."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import house as script

SOURCE = {
    "softprompt": "from softprompt.high import High\n",
    "softprompt.high": dedent("""
        from typing import TYPE_CHECKING

        import softprompt.middle
        from softprompt import low

        if TYPE_CHECKING:
            from softprompt.beside import Beside

        class Part: ...

        def shown():
            return _once() + _often() + _often()

        def _once():
            return 1

        def _often():
            from softprompt.beside import late
            return 2
    """).lstrip(),
    "softprompt.middle": dedent("""
        try:
            from softprompt.low import name
        except ImportError:
            class Other: ...
    """).lstrip(),
    "softprompt.low": "import torch\nclass Part:\n    def __init__(self):\n        pass\n",
    "softprompt.beside": "from softprompt.beside import itself\n",
}


def test_everything_is_counted() -> None:
    house = script.measure(SOURCE, engine="softprompt.high")
    assert house.files == [1, 19, 4, 4, 1]
    assert sorted(house.functions) == [2, 2, 2, 3]
    assert house.once == ["softprompt.high._once"]
    assert house.chain == ["softprompt", "softprompt.high", "softprompt.middle", "softprompt.low"]
    assert house.pulled == {"softprompt.high", "softprompt.middle", "softprompt.low"}
    assert house.twice == {"Part": ["softprompt.high", "softprompt.low"]}


def test_a_circle_has_an_end() -> None:
    house = script.measure({"softprompt.a": "import softprompt.b", "softprompt.b": "import softprompt.a"})
    assert len(house.chain) == 2
    assert house.pulled == set()


def test_an_empty_tree_has_no_length() -> None:
    assert "lines of source       0" in str(script.measure({}))


def test_the_working_tree_can_be_measured() -> None:
    command = [sys.executable, str(script.__file__), "--names"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "longest import chain" in done.stdout
    assert "softprompt.serving.engine" in script.read(None)
