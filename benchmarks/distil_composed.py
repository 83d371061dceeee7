"""Two distilled prefixes, one behind the other: what each still keeps of its own text.

    python benchmarks/distil_composed.py spam:spam-32 handbook:handbook-64 --data FOLDER --work FOLDER

Each is SOURCE:PROMPT, a source of ``distil.py`` and a prompt that it learnt there (``--work``). The second
one's keys are turned to stand behind the first, and both are held against their teachers, alone and joined.
Writes ``results/distil/composed.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from distil import EXAMPLES, RESULTS, _config
from machine import describe
from softprompt.base.model import Base
from softprompt.base.turning import _turned
from softprompt.checkpoints.freeze import load_base
from softprompt.evaluation.divergence import divergence, kept_share
from softprompt.library.prompt import load_prompt
from softprompt.prefix import Prefix
from softprompt.training.distil import lengths
from softprompt.training.job import Job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("prompts", nargs=2, metavar="SOURCE:PROMPT")
    parser.add_argument("--data", type=Path, default=EXAMPLES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    base, found = load_base(asked.model), dict[str, Any]()
    named = [text.partition(":")[::2] for text in asked.prompts]
    prefixes = [load_prompt(prompt, base, asked.work / "prompts").prefix for _, prompt in named]
    for (source, prompt), own, other in zip(named, prefixes, reversed(prefixes), strict=True):
        job = Job.prepare(base, lengths(_config(source, asked.data, asked.work))[0], reserve=True)
        assert job.lessons is not None
        bare, alone, first, last = divergence(
            base,
            [job.lessons.bare, own, joined(base, own, other), joined(base, other, own)],
            job.lessons.rows["test"],
        )
        ways = {"alone": alone, "with the other behind it": first, "behind the other": last}
        found[prompt] = {name: kept_share(one, bare).interval() for name, one in ways.items()}
        print(prompt, found[prompt], flush=True)
    text = json.dumps({"kept": found, "machine": describe()}, indent=1)
    (RESULTS / "composed.json").write_text(text + "\n")


@torch.no_grad()
def joined(base: Base, first: Prefix, second: Prefix) -> Prefix:
    """Both, the second one's keys moved on by the length of the first."""
    steps = torch.full((1, second.length), first.length, device=base.device)
    pairs = zip(first.places, first.keys, second.keys, strict=True)
    keys = [torch.cat([k, _turned(base, layer, more, steps)], 1) for layer, k, more in pairs]
    values = [torch.cat(pair, 1) for pair in zip(first.values, second.values, strict=True)]
    return first.over(keys, values)


if __name__ == "__main__":
    main()
