"""Writes the figures of the README from the committed results: ``python benchmarks/figures.py``.

``results/demo.txt`` is what ``softprompt demo`` printed; the others are what the benchmarks wrote.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from softprompt.cli.compare_table import markdown_table
from softprompt.comparison.results import Results
from softprompt.comparison.words import verdict

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"


def main() -> None:
    """Rewrite the marked parts of the README."""
    readme = ROOT / "README.md"
    readme.write_text(rendered(readme.read_text(encoding="utf-8")), encoding="utf-8")


def rendered(readme: str) -> str:
    """The README with its marked parts made anew."""
    shown = (RESULTS / "demo.txt").read_text(encoding="utf-8").strip("\n")
    readme = _put(readme, "demo", f"```\n{shown}\n```")
    readme = _put(readme, "comparisons", "\n\n".join(_comparisons()))
    parts = [_steps(), _method_steps(), _many(), _serving(), _cookbook(), _sst2()]
    return _put(readme, "figures", "\n\n".join(part for part in parts if part))


def _put(text: str, mark: str, content: str) -> str:
    pattern = re.compile(rf"<!-- {mark} -->.*?<!-- /{mark} -->", re.DOTALL)
    assert pattern.search(text)
    return pattern.sub(lambda found: f"<!-- {mark} -->\n{content}\n<!-- /{mark} -->", text)


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def _steps() -> str:
    """The training step beside PEFT's."""
    heads = (
        "dtype",
        "virtual tokens",
        "PEFT",
        "softprompt",
        "ratio",
        "memory",
        "of GEMM rate",
        "gradients differ",
    )
    rows = [
        (
            r["dtype"],
            str(r["virtual_tokens"]),
            f"{r['peft_seconds']:.2f} s",
            f"{r['softprompt_seconds']:.2f} s",
            f"{r['speedup']:.1f}x",
            f"{r['memory_ratio']:.0%}",
            f"{r['gemm_fraction']:.0%}",
            f"{r['gradient_error']:.0e}",
        )
        for r in _lines("train_step.jsonl")
    ]
    said = (
        "One training step of SmolLM2-135M, 16 rows of 8 to 60 tokens, PEFT and softprompt in one run on "
        "two CPU cores. Memory is what a step needs beyond the base, softprompt's share of PEFT's; the GEMM "
        "rate is what the machine's bare matrix products reach."
    )
    return "\n".join([said, "", *(f"| {' | '.join(row)} |" for row in (heads, ("---",) * 8, *rows))])


def _comparisons() -> list[str]:
    """A sentence and a table for each comparison that is kept."""
    found = [Results.load(path) for path in sorted((RESULTS / "compare").glob("*.json"))]
    return [part for results in found for part in (_compared(results), markdown_table(results))]


def _compared(results: Results) -> str:
    rows = {split: found["rows"] for split, found in results.data.items()}
    seeds, about = len(results.settings["compare"]["seeds"]), results.hardware
    split = f"{rows['train']} training rows, {rows['validation']} for choices, {rows['test']} test rows"
    machine = f"{results.base['name']} in {about['dtype']}, {about['threads']} threads of a CPU"
    return f"**{results.name}** ({split}, {seeds} seeds, {machine}). {verdict(results)}"


def _method_steps() -> str:
    """Steps of the other methods beside PEFT's."""
    if not (RESULTS / "method_step.jsonl").exists():
        return ""
    heads = ("method", "dtype", "PEFT", "softprompt", "ratio", "memory", "gradients differ")
    rows = [
        (
            r["method"],
            r["dtype"],
            f"{r['peft_seconds']:.2f} s",
            f"{r['softprompt_seconds']:.2f} s",
            f"{r['speedup']:.1f}x",
            f"{r['memory_ratio']:.0%}",
            f"{r['gradient_error']:.0e}",
        )
        for r in _lines("method_step.jsonl")
    ]
    said = "The same for a KV prefix of 20 positions and LoRA of rank 8 on all linear layers:"
    return "\n".join([said, "", *(f"| {' | '.join(row)} |" for row in (heads, ("---",) * 7, *rows))])


def _many() -> str:
    """Many prompts in one pass, or one after another."""
    if not (RESULTS / "many_prompts.jsonl").exists():
        return ""
    said = [
        f"{r['prompts']} prompts trained together in {r['together_seconds']:.0f} s, one after another in "
        f"{r['one_after_another_seconds']:.0f} s ({r['ratio']:.2f}x, {r['dtype']}); learnt vectors apart by "
        f"{r['vector_error']:.0e}, and by {r['control_vector_error']:.0e} from a start changed by 1e-6."
        for r in _lines("many_prompts.jsonl")
    ]
    return " ".join(said)


def _serving() -> str:
    """Many prompts served at once, beside PEFT and beside one prompt."""
    beside = {"peft": "PEFT", "transformers": "transformers' padded batches", "vllm": "vLLM"}
    said = []
    for r in _lines("serve.jsonl"):
        load = f"{r['load']}, {r['dtype']}, {r['clients']} clients"
        if r["entry"] == "softprompt":
            unit = "tokens" if r["load"] == "generate" else "requests"
            said.append(f"{load}: {r[f'{unit}_per_second']:.1f} {unit}/s.")
        elif r["entry"] == "softprompt-one":
            said.append(f"{load}: {r['speedup']:.2f} of its rate when all name one prompt.")
        else:
            said.append(f"{load}: {r['speedup']:.1f}x {beside[r['entry']]}.")
    right = min(r["same_answers"] for r in _lines("serve.jsonl"))
    held = f"Of every side's checked answers at least {right:.0%} are those of a plain pass of transformers."
    return "Served behind 32 prompts at once, each ratio within one run: " + " ".join([*said, held])


def _cookbook() -> str:
    roles, quotes, both = _lines("cookbook.jsonl")
    epochs = roles["steps"] // -(-roles["rows"] // 8)
    seconds = f"PEFT's usual loop {both['peft_seconds']:.0f} s, softprompt {both['softprompt_seconds']:.0f} s"
    parts = f"{roles['speedup']:.1f}x on the long rows, {quotes['speedup']:.1f}x on the short ones"
    return (
        "The tutorials' own job (bloomz-560m's shape, 4 virtual tokens, 50 + 25 rows, loss on the whole "
        f"text, two prompts on one base), {epochs} of its 6 epochs: {seconds}, {both['speedup']:.1f}x "
        f"({parts})."
    )


def _sst2() -> str:
    found = json.loads((RESULTS / "sst2.json").read_text(encoding="utf-8"))
    rows, runs = found["runs"][0]["rows"], found["runs"]
    each = ", ".join(f"{run['scores']['test']['accuracy']:.3f}" for run in runs)
    return (
        f"SST-2, {rows['train']} training rows, 20 virtual tokens, {rows['test']} test rows, {len(runs)} "
        f"seeds: accuracy {found['mean_accuracy']:.3f} on average ({each}); the untuned base "
        f"{found['mean_untuned']:.3f}."
    )


if __name__ == "__main__":
    main()
