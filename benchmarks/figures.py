"""Writes figures of README and docs from the committed results: ``python benchmarks/figures.py``.

``results/demo.txt`` is what ``softprompt demo`` printed; the others are what the benchmarks wrote.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from serve_results import Cell, latest, read
from softprompt.cli.compare_table import markdown_table
from softprompt.comparison.results import Results, Seeds
from softprompt.comparison.words import verdict
from softprompt.numbers import count_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
JOBS = {"sst2": "SST-2", "ag_news": "AG News", "cb": "CB", "rte": "RTE", "boolq": "BoolQ"}
"""Comparisons that the README shows side by side."""


def main() -> None:
    """Rewrite the marked parts of every page that has some."""
    for name, made_anew in PAGES.items():
        path = ROOT / name
        path.write_text(made_anew(path.read_text(encoding="utf-8")), encoding="utf-8")


def rendered(readme: str) -> str:
    """The README with its marked parts made anew."""
    shown = _excerpt((RESULTS / "demo.txt").read_text(encoding="utf-8").strip("\n"))
    readme = _put(readme, "demo", f"```\n{shown}\n```")
    return _put(readme, "comparison", _overview())


def _excerpt(shown: str) -> str:
    """Of the demo's output the first opening of each prompt, which is the tutorials' own, and the scores.

    Not a word is changed, and what is shown depends on no answer.
    """
    kept, openings = list[str](), 0
    for part in shown.split("\n\n"):
        lines = part.splitlines()
        if lines[0].startswith("One batch") or " trained parameters " in lines[0]:
            break
        answered = len(lines) > 1 and lines[1].lstrip().startswith("before")
        openings = openings + 1 if answered else 0
        if openings <= 1 or not answered:
            kept.append(part)
    return "\n\n".join(kept)


def results_page(page: str) -> str:
    """The page of all results with its marked parts made anew."""
    page = _put(page, "comparisons", "\n\n".join(_comparisons()))
    parts = [_steps(), _method_steps(), _many(), _serving(), _thousand(), _soak(), _cookbook(), _sst2()]
    return _put(page, "figures", "\n\n".join(part for part in parts if part))


def _overview() -> str:
    """One table: accuracy by method and job."""
    kept = {name: Results.load(RESULTS / "compare" / f"{name}.json") for name in JOBS}
    methods = [m.name for m in kept["sst2"].methods if all(_of(found, m.name) for found in kept.values())]
    heads = ("accuracy, %", *JOBS.values(), "trained numbers")
    rows = []
    for name in methods:
        summaries = [_of(found, name) for found in kept.values()]
        shown = [f"{100 * s.mean:.1f} ({100 * s.low:.0f}–{100 * s.high:.0f})" for s in summaries if s]
        trained = next(m for m in kept["sst2"].methods if m.name == name).runs[0].costs.trained_parameters
        rows.append((name, *shown, count_text(trained)))
    sizes = ", ".join(f"{found.data['train']['rows']}" for found in kept.values())
    caption = (
        f"SmolLM2-135M, {sizes} training rows, 3 seeds. In brackets 95% intervals, over other test rows and "
        "other seeds (of the vote, rows alone)."
    )
    table = [heads, ("---", *("---:" for _ in heads[1:])), *rows]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in table), "", caption])


def _of(results: Results, name: str) -> Seeds | None:
    """A method's headline score over seeds."""
    return next((m.summary[results.metric] for m in results.methods if m.name == name and m.summary), None)


def read_again(page: str) -> str:
    """The page on reading prompts with its marked part made anew."""
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((RESULTS / "inspect").glob("*.json"))
    }
    page = _put(page, "claims", "\n".join(_verdicts(found)))
    return _put(page, "found", "\n".join(_findings(found)))


def _verdicts(found: dict[str, Any]) -> list[str]:
    """A table of claims, and how many prompts of each job they hold for."""
    judged = {claim["claim"]: claim for one in found.values() for claim in one["claims"]}
    rows = [("claim", "holds when", *found), ("---",) * (2 + len(found))]
    for name, about in judged.items():
        held = [_held(next((c for c in one["claims"] if c["claim"] == name), None)) for one in found.values()]
        rows.append((f"{name} ({about['source']})", about["rule"], *held))
    return [f"| {' | '.join(row)} |" for row in rows]


def _held(claim: dict[str, Any] | None) -> str:
    return f"{claim['holds']} of {len(claim['each'])}" if claim else "–"


def _findings(found: dict[str, Any]) -> list[str]:
    """What was found in each prompt, by job and claim."""
    lines = []
    for job, one in found.items():
        prompts = one["inspection"]["prompts"]
        lines += [f"**{job}**, {len(prompts)} prompts, {prompts[0]['rows']['count']} rows each:", ""]
        for claim in one["claims"]:
            lines.append(f"- {claim['claim']}:")
            lines += [f"  - {prompt['figures']}" for prompt in claim["each"].values()]
        lines.append("")
    return lines[:-1]


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
    machine = f"{results.base['name']} in {about['dtype']}, {_count(about['threads'], 'thread')} of a CPU"
    return f"**{results.name}** ({split}, {_count(seeds, 'seed')}, {machine}). {verdict(results)}"


def _count(number: int, what: str) -> str:
    return f"one {what}" if number == 1 else f"{number} {what}s"


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
        f"{r['prompts']} prompts trained together for {r['steps']} steps in {r['together_seconds']:.0f} s, "
        f"one after another in {r['one_after_another_seconds']:.0f} s ({r['ratio']:.2f}x, {r['dtype']}); "
        f"losses apart by {r['loss_error']:.0e} and learnt vectors by {r['vector_error']:.0e}, from a start "
        f"changed by 1e-6 by {r['control_loss_error']:.0e} and {r['control_vector_error']:.0e}."
        for r in _lines("many_prompts.jsonl")
    ]
    return " ".join(said)


def _serving() -> str:
    """Many prompts served at once, beside the others of the same turn."""
    cells = latest(read(RESULTS / "serve.jsonl"))
    heads = (
        "dtype",
        "load",
        "clients",
        "PEFT",
        "transformers",
        "vLLM",
        "one prompt",
        "softprompt",
        "p50, p99",
    )
    entries = ("peft", "transformers", "vllm", "softprompt-one")
    rows = []
    for ours in (cell for key, cell in cells.items() if key.entry == "softprompt"):
        beside = [cells.get(ours.key._replace(entry=entry)) for entry in entries]
        waits = "" if ours.latency_p50 is None else f"{ours.latency_p50:.2f}, {ours.latency_p99:.2f} s"
        rates = [f"{_rate(cell):.1f} ({cell.speedup:.2f}x)" if cell else "" for cell in beside]
        rows.append((ours.dtype, ours.load, str(ours.clients), *rates, f"**{_rate(ours):.1f}**", waits))
    exact = min(cell.same_answers for cell in cells.values() if cell.dtype == "float32")
    gap = max(cell.worst_gap for cell in cells.values())
    said = (
        "Served behind 32 prompts at once, two CPU cores: requests a second, or tokens where 64 are written, "
        "of each side, in brackets softprompt's rate over it in the same turn; `one prompt` is its own "
        "with all requests naming the same one. vLLM answers over HTTP, the others in process. Of all "
        f"sides' checked answers in fp32 {exact:.0%} are those of a plain pass of transformers; in bf16 no "
        f"token's logit lies more than {gap:.2f} below the likeliest one's in fp32."
    )
    return "\n".join([said, "", *(f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows))])


def _rate(cell: Cell) -> float:
    return cell.tokens_per_second if cell.load == "generate" else cell.requests_per_second


def _thousand() -> str:
    """A thousand prompts and memory for fifty."""
    if not (RESULTS / "thousand.jsonl").exists():
        return ""
    found = _lines("thousand.jsonl")[-1]
    ms = {name: 1000 * found[name] for name in ("cold_median", "cold_p99", "warm_median", "warm_p99")}
    mib = {name: found[name] / 2**20 for name in ("most_bytes", "budget_bytes")}
    return (
        f"{found['prompts']:,} prompts in the library, {found['called']} called in random order, memory for "
        f"{found['held']}: {found['wrong']} wrong answers of {3 * found['called']}, {mib['most_bytes']:.1f} "
        f"MiB of prompts at most where {mib['budget_bytes']:.1f} are allowed. A call of "
        f"{found['new_tokens']} tokens takes {ms['cold_median']:.0f} ms (p99 {ms['cold_p99']:.0f}) cold, "
        f"{ms['warm_median']:.0f} ms (p99 {ms['warm_p99']:.0f}) warm."
    )


def _soak() -> str:
    """Minutes of mixed traffic with everything that can go wrong."""
    if not (RESULTS / "soak.jsonl").exists():
        return ""
    found = _lines("soak.jsonl")[-1]
    mib = {name: found[name] / 2**20 for name in ("memory_first", "memory_last", "memory_most")}
    return (
        f"{found['minutes']:.0f} minutes of mixed traffic with cancels, bursts, hot swaps, evictions, broken "
        f"artifacts and bad requests: {found['requests']:,} requests, {found['checked']:,} answers checked, "
        f"{len(found['wrong'])} wrong, {found['stuck']} stuck; memory {mib['memory_first']:.0f} MiB once "
        f"warm, {mib['memory_last']:.0f} at the end, {mib['memory_most']:.0f} at most; at SIGTERM "
        f"{found['cut']} answers cut, exit status {found['exit_code']}."
    )


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


PAGES = {"README.md": rendered, "docs/results.md": results_page, "docs/reading.md": read_again}
"""By page, what makes its marked parts anew."""


if __name__ == "__main__":
    main()
