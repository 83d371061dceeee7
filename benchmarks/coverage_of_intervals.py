"""How often a 95% interval of a comparison holds the truth, in made-up worlds whose truth is known.

    python benchmarks/coverage_of_intervals.py             # some minutes; writes results/coverage.jsonl

A row is right where a latent normal number is above a line: the row's own part, which all methods and seeds
share, plus the seed's, plus chance. So rows and seeds are crossed, as they are in a comparison, and the true
accuracy over all rows and seeds is known. Four intervals are counted: over rows alone; over rows and seeds
that are drawn anew from those there are; the same with the seeds' distances times the root of n / (n - 1);
and ``evaluation.paired``'s. "alarms" is how often two methods that are equally good differ with p < 0.05.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from softprompt.evaluation.intervals import Sampled, sampled_mean
from softprompt.evaluation.paired import over_seeds, paired_difference

RESULTS = Path(__file__).parent.parent / "results" / "coverage.jsonl"
WAYS = ("rows", "drawn", "drawn, widened", "ours")


class World(NamedTuple):
    """Test rows, training seeds, and standard deviations of the latent parts; chance has 1."""

    rows: int = 300
    seeds: int = 3
    of_rows: float = 1.5
    of_seeds: float = 0.0
    line: float = 1.5

    @property
    def truth(self) -> float:
        return NormalDist(0, math.sqrt(1 + self.of_rows**2 + self.of_seeds**2)).cdf(self.line)

    def methods(self, count: int, chance: torch.Generator) -> list[Tensor]:
        """For each of so many methods that are equally good: [seeds, rows], 1 where a row is right."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=chance, dtype=torch.float64)

        of_rows = self.of_rows * normal(self.rows)
        shape = (self.seeds, self.rows)
        latent = (of_rows + self.of_seeds * normal(self.seeds, 1) + normal(*shape) for _ in range(count))
        return [(self.line + one > 0).double() for one in latent]


def drawn(runs: Sequence[Sampled], chance: torch.Generator, *, widened: bool) -> Sampled:
    """The mean over seeds that are drawn with replacement, row draw by row draw."""
    draws = torch.stack([run.draws for run in runs])  # [S, R]
    count, resamples = draws.shape
    picked = draws.gather(0, torch.randint(count, (count, resamples), generator=chance)).mean(0)
    centre = draws.mean(0)
    if widened:
        picked = centre + (picked - centre) * math.sqrt(count / max(1, count - 1))
    return Sampled(sum(run.value for run in runs) / count, picked)


def counted(world: World, trials: int, resamples: int) -> dict[str, float]:
    """Shares of the trials in which each interval held the truth, its mean width, and false alarms."""
    chance = torch.Generator().manual_seed(0)
    held, widths, alarms = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0)
    spread = 0.0
    for _ in range(trials):
        pair = [
            [sampled_mean(row.tolist(), resamples=resamples) for row in scores]
            for scores in world.methods(2, chance)
        ]
        mine = over_seeds(pair[0])
        spread += mine.spread / trials
        means = [Sampled(0.0, torch.stack([run.draws for run in runs]).mean(0)) for runs in pair]
        plain, wide = ([drawn(runs, chance, widened=w) for runs in pair] for w in (False, True))
        intervals = [m[0].interval()[1:] for m in (means, plain, wide)] + [mine[2:]]
        gaps = [Sampled(0.0, a.draws - b.draws).interval()[1:] for a, b in (means, plain, wide)]
        p = paired_difference(*pair).p
        for way, (low, high) in zip(WAYS, intervals, strict=True):
            held[way] += low <= world.truth <= high
            widths[way] += (high - low) / trials
        for way, (low, high) in zip(WAYS, gaps, strict=False):
            alarms[way] += low > 0 or high < 0
        alarms["ours"] += p < 0.05
    found = {f"held, {way}": held[way] / trials for way in WAYS}
    found |= {f"width, {way}": widths[way] for way in WAYS}
    return {"spread": spread} | found | {f"alarms, {way}": alarms[way] / trials for way in WAYS}


def main() -> None:
    """Count in worlds from no variance over seeds to nothing else, and write a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000)
    asked = parser.parse_args()
    worlds = [World(of_seeds=s) for s in (0.0, 0.1, 0.2, 0.5, 1.0)]
    worlds += [World(of_seeds=0.2, seeds=5), World(of_seeds=0.2, rows=56), World(of_seeds=0.2, seeds=2)]
    lines = []
    for world in worlds:
        found = counted(world, asked.trials, asked.resamples)
        lines.append(world._asdict() | {"trials": asked.trials, "truth": world.truth} | found)
        print(json.dumps({k: round(v, 4) for k, v in lines[-1].items()}), flush=True)
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
