"""Writes the tables of README and of docs/ (results, reading, distil, scale) from the committed results.

    python benchmarks/figures.py


``results/demo.txt`` is what ``softprompt demo`` printed; the others are what the benchmarks wrote.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serve_results import Cell, latest, read
from softprompt.cli.compare_table import markdown_table
from softprompt.comparison.results import MethodResult, Results
from softprompt.comparison.table import Cell as TableCell
from softprompt.comparison.table import comparison, summary_rows
from softprompt.comparison.words import covered, p_of, verdict
from softprompt.numbers import count_text, difference_text, p_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"


def main() -> None:
    """Make the marked parts of every document anew."""
    for name in DOCUMENTS:
        (ROOT / name).write_text(rendered(name), encoding="utf-8")


def rendered(name: str) -> str:
    """A document, by its path from the project's root, with its marked parts made anew."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for mark, content in DOCUMENTS[name].items():
        found = re.search(rf"<!-- {mark} -->.*?<!-- /{mark} -->", text, re.DOTALL)
        assert found, f"{name} has no place for {mark}"
        block = f"<!-- {mark} -->\n{content()}\n<!-- /{mark} -->"
        text = text[: found.start()] + block + text[found.end() :]
    return text


def _demo() -> str:
    """What the demo printed, in short."""
    return f"```\n{_excerpt((RESULTS / 'demo.txt').read_text(encoding='utf-8').strip())}\n```"


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


# What was found inside prompts -------------------------------------------------------------------


def _inspected() -> dict[str, Any]:
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((RESULTS / "inspect").glob("*.json"))
    }


def _claims() -> str:
    """A table of claims, and how many prompts of each job they hold for."""
    found = _inspected()
    judged = {claim["claim"]: claim for one in found.values() for claim in one["claims"]}
    rows = []
    for name, about in judged.items():
        held = [_held(next((c for c in one["claims"] if c["claim"] == name), None)) for one in found.values()]
        rows.append((f"{name} ({about['source']})", about["rule"], *held))
    return _table(("claim", "holds when", *found), rows)


def _held(claim: dict[str, Any] | None) -> str:
    return f"{claim['holds']} of {len(claim['each'])}" if claim else "–"


def _found() -> str:
    """What was found in each prompt, by job and claim."""
    lines = []
    for job, one in _inspected().items():
        prompts = one["inspection"]["prompts"]
        lines += [f"**{job}**, {len(prompts)} prompts, {prompts[0]['rows']['count']} rows each:", ""]
        for claim in one["claims"]:
            lines.append(f"- {claim['claim']}:")
            lines += [f"  - {prompt['figures']}" for prompt in claim["each"].values()]
        lines.append("")
    return "\n".join(lines[:-1])


# Comparisons -------------------------------------------------------------------------------------

_SETS = {"sst2": "SST-2", "ag_news": "AG News", "cb": "CB", "rte": "RTE", "boolq": "BoolQ"}
"""The sets with labels, in the order of the compact table."""


def _compared_sets() -> dict[str, Results]:
    return {path.stem: Results.load(path) for path in sorted((RESULTS / "compare").glob("*.json"))}


def _compact() -> str:
    """Every method on every set with labels, in one table; the best of a set is bold."""
    found = _compared_sets()
    sets = [found[name] for name in _SETS]
    rows = {
        results.name: {row.name: row.cells["test.accuracy"] for row in summary_rows(results)}
        for results in sets
    }
    learnt = {method.name: count_text(_parameters(method)) for one in sets for method in one.methods}
    absent = TableCell()
    cells = {name: [rows[key].get(name, absent) for key in _SETS] for name in learnt}
    names = sorted(cells, key=lambda name: -sum(cell.value or 0 for cell in cells[name]))
    heads = ("method", *_SETS.values(), "trained parameters")
    lines = [[name, *map(_accuracy, cells[name]), learnt[name]] for name in names]
    counts = {
        split: ", ".join(str(results.data[split]["rows"]) for results in sets) for split in ("train", "test")
    }
    base, seeds = sets[0].base["name"], len(sets[0].settings["compare"]["seeds"])
    said = (
        f"Accuracy on test rows in percent, with 95% intervals; {base}, {_count(seeds, 'seed')}, "
        f"{counts['train']} training rows and {counts['test']} test rows. {covered(sets[0])} Costs, p values "
        "and more: [docs/results.md](docs/results.md)."
    )
    return "\n".join([_table(heads, lines, right=True), "", said])


def _parameters(method: MethodResult) -> int:
    return max(run.costs.trained_parameters for run in method.runs)


def _accuracy(cell: TableCell) -> str:
    text = cell.text.rstrip("%")
    shown = f"**{text}**" if cell.best else text
    return f"{shown} ({cell.interval})" if cell.interval else shown


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    rule = ("---", *(("---:" if right else "---",) * (len(heads) - 1)))
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def _comparisons() -> str:
    """A sentence or three and a table for each comparison that is kept."""
    parts = [part for one in _compared_sets().values() for part in (_compared(one), markdown_table(one))]
    return "\n\n".join(parts)


def _compared(results: Results) -> str:
    rows = {split: found["rows"] for split, found in results.data.items()}
    seeds, about = len(results.settings["compare"]["seeds"]), results.hardware
    split = f"{rows['train']} training rows, {rows['validation']} for choices, {rows['test']} test rows"
    machine = f"{results.base['name']} in {about['dtype']}, {_count(about['threads'], 'thread')} of a CPU"
    return f"**{results.name}** ({split}, {_count(seeds, 'seed')}, {machine}). {verdict(results)}"


def _count(number: int, what: str) -> str:
    return f"one {what}" if number == 1 else f"{number} {what}s"


def _pairs() -> str:
    """The pairs that the prose speaks of: prefix tuning against LoRA, on every set."""
    found = _compared_sets()
    rows = []
    for key, name in _SETS.items():
        pair = comparison(found[key], "prefix tuning", "LoRA")
        assert pair is not None
        interval = " to ".join(difference_text("accuracy", bound) for bound in (pair.low, pair.high))
        gap = difference_text("accuracy", pair.difference)
        rows.append(
            (name, gap, interval, p_text(pair.p).removeprefix("p = "), p_of(pair).removeprefix("p = "))
        )
    return _table(("set", "points", "95% interval", "p by itself", "p among all pairs"), rows, right=True)


def _coverage() -> str:
    """How often intervals held the truth of a made-up world."""
    heads = ("test rows", "seeds", "± over seeds", "way", "held the truth", "width", "false alarms")
    ways = {
        "rows": "rows alone",
        "drawn": "seeds drawn, too",
        "drawn, widened": "drawn, times √(n/(n−1))",
        "ours": "**here**",
    }
    rows = [
        (
            str(r["rows"]),
            str(r["seeds"]),
            f"{100 * r['spread']:.1f}",
            said,
            f"{r[f'held, {way}']:.1%}",
            f"{100 * r[f'width, {way}']:.1f}",
            f"{r[f'alarms, {way}']:.1%}",
        )
        for r in _lines("coverage.jsonl")
        for way, said in ways.items()
    ]
    return _table(heads, rows)


# Figures of speed and size -----------------------------------------------------------------------


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
    return f"{said}\n\n{_table(heads, rows)}"


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
    return f"{said}\n\n{_table(heads, rows)}"


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
    return f"{said}\n\n{_table(heads, rows)}"


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
        f"{found['cut']} answers cut, exit status {found['exit_code']}. A key that asks for one token now "
        f"and then waits {1000 * found['peaceful'][1]:.0f} ms at p99, {1000 * found['flooded'][1]:.0f} while "
        f"another floods the server ({found['attacks']['floods refused']:,} of its requests refused), "
        f"{found['attacks']['silent connections']:,} connections say nothing and "
        f"{found['attacks']['hang-ups']:,} clients hang up."
    )


def _structured() -> str:
    """What holding answers to a grammar costs."""
    found = _lines("structured.jsonl")[-1]
    free, held = (statistics.median(found["rates"][name]) for name in ("free", "held"))
    clients = found["clients"]
    return (
        f"{clients} clients whose answers are each held to a JSON schema of its own get {held:.0f} tokens a "
        f"second together, free ones {free:.0f}; in the same turn {found['cost']:.0%} less. {found['valid']} "
        f"of {clients} answers fit; a schema compiles in {1000 * found['compile_seconds']:.0f} ms."
    )


def _batch_invariant() -> str:
    """What the same bits in any company cost."""
    found = _lines("batch_invariant.jsonl")[-1]
    usual, kept = found["same"]["usual"], found["same"]["batch_invariant"]
    times = [
        f"{load} {statistics.median(ways['batch_invariant']):.1f} s instead of "
        f"{statistics.median(ways['usual']):.1f}"
        for load, ways in found["seconds"].items()
    ]
    return (
        f"In {found['dtype']}, on a CPU without instructions for it, of {usual['asked']} requests alone and "
        f"among 31 others {usual['words']} get the same words and {usual['bits']} the same bits, with "
        f"`--batch-invariant` {kept['words']} and {kept['bits']}. It costs: {', '.join(times)}."
    )


def _beside() -> str:
    """Classify requests while 32 chats without a greatest length go on."""
    found = _lines("beside_chats.jsonl")[-1]
    waits = [
        f"{1000 * found['beside'][n]['p99']:,.0f} ms for {_count(int(n), 'client')} instead of "
        f"{1000 * found['alone'][n]['p99']:,.0f} ({ratio:.1f} times)"
        for n, ratio in found["ratio_p99"].items()
    ]
    mb = {name: found[f"bytes_{name}"] / 1e6 for name in ("before", "most", "a_minute_later")}
    return (
        f"Classify requests beside {found['chats']} chats without a greatest length wait at p99 "
        f"{' and '.join(waits)}; memory {mb['before']:,.0f} MB before, {mb['most']:,.0f} at most with "
        f"{found['kv_memory'] / 1e6:,.0f} allowed for keys and values, {mb['a_minute_later']:,.0f} a minute "
        "after the last chat."
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


def _installed() -> str:
    """What the plain install and the extras take, and how soon a command says something."""
    found = json.loads((RESULTS / "first_hour.json").read_text(encoding="utf-8"))
    largest = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in list(found["largest"].items())[:3])
    soonest, *_, latest = sorted(found["first_output_seconds"].items(), key=lambda pair: pair[1])
    times = " and ".join(f"{seconds:.2f} s (`{args}`)" for args, seconds in (soonest, latest))
    extras = json.loads((RESULTS / "extras.json").read_text(encoding="utf-8"))
    beside = ", ".join(f"`{name}` {size / 1e6:,.0f}" for name, size in extras.items() if name != "plain")
    return (
        f"The plain install takes {found['installed_bytes'] / 1e6:,.0f} MB on Linux with torch's CPU build "
        f"({largest}). Extras bring, in MB: {beside}. On two cores a command says something within {times}; "
        f"`generate` has answered after {found['answer_seconds']['later']:.1f} s, the first time after "
        f"{found['answer_seconds']['first']:.1f}."
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


def _second_base() -> str:
    found = json.loads((RESULTS / "second_base.json").read_text(encoding="utf-8"))
    heads = ("job", "training rows", "test rows", "accuracy", "untuned base", "steps", "training")
    rows = []
    for name, run in found["runs"].items():
        learnt, untuned = (_of_rows(run["scores"][split]) for split in ("test", "test, untuned"))
        counts = (str(run["rows"]["train"]), str(run["rows"]["test"]))
        cut = " (cut short)" if run["settings"]["train"]["max_steps"] is not None else ""
        steps = f"{run['steps']}{cut}"
        rows.append((name, *counts, learnt, untuned, steps, f"{run['seconds'] / 60:.0f} min"))
    return (
        f"A soft prompt of 20 on a second base, {found['base']} (270 million parameters, read from a .gguf "
        f"file of 4 bits; layout {found['layout']}), default settings, one seed, one or two threads of a "
        f"busy machine:\n\n{_table(heads, rows, right=True)}"
    )


def _of_rows(score: dict[str, Any]) -> str:
    low, high = score["accuracy_interval"]
    return f"{score['accuracy']:.1%} ({100 * low:.1f}–{100 * high:.1f})"


def _figures() -> str:
    served = (_serving, _beside, _thousand, _soak, _structured, _batch_invariant)
    made = (_steps, _method_steps, _many, *served, _cookbook, _sst2, _second_base)
    return "\n\n".join(part for part in (make() for make in made) if part)


# Long texts learnt into short prompts -------------------------------------------------------------

_SOURCES = {
    "handbook": "a handbook, questions about it",
    "topics": "an instruction and eight examples, news to be sorted",
    "spam": "an instruction and sixteen examples, messages to be told from spam",
    "spam-32": "sixteen examples against spam, one length alone",
    "persona": "a system message that makes a character",
    "adapter": "a LoRA adapter, news to be sorted",
}


def _distilled() -> str:
    """For each source a table: what stands in front of a question, and what it keeps of the text."""
    parts = []
    for source, about in _SOURCES.items():
        path = RESULTS / "distil" / f"{source}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        parts.append(
            _source(
                about[0].upper() + about[1:],
                found["figures"],
                found["next_tokens"],
                max(found["steps"].values()),
                found["machine"]["threads"],
            )
        )
    return "\n\n".join(parts)


def _source(
    title: str, figures: dict[str, Any], plain: dict[str, Any] | None, steps: int, threads: int
) -> str:
    heads = ("in front of a question", "positions", "kept", "same answer", "ROUGE-L", "numbers", "right")
    rows = [_kept(row) for row in figures["rows"]]
    if plain is not None:
        kept = _share(plain["kept"])
        rows.insert(-2, ("trained on the text itself", str(plain["positions"]), kept, "-", "-", "-", "-"))
    costs = figures["costs"]
    read, stored = (f"{1000 * costs[name]:,.0f} ms" for name in ("read", "stored"))
    faster = (
        f"{name} {1000 * took:,.0f} ms ({costs['read'] / took:.0f}x)"
        for name, took in costs["prompts"].items()
    )
    about = f"{figures['teacher']}; {figures['questions']} held-out questions; {steps} steps"
    times = (
        f"the text read each time {read}, its keys and values kept in memory {stored}, {', '.join(faster)}"
    )
    spent = f"Answers and learning took {costs['spent']:,.0f} s with {threads} thread{'s' * (threads > 1)}."
    return f"**{title}** ({about})\n\n{_table(heads, rows, right=True)}\n\nFirst token: {times}. {spent}"


def _kept(row: dict[str, Any]) -> tuple[str, ...]:
    shares = [_percent(row.get(name)) for name in ("same", "rouge", "numbers", "accuracy")]
    return (row["name"], f"{row['positions']:,}", _share(row["kept"]), *shares)


def _share(value: Sequence[float]) -> str:
    share, low, high = (100 * part for part in value)
    return f"{share:.1f}% ({low:.1f} to {high:.1f})".replace("-", "\N{MINUS SIGN}")


def _percent(value: Sequence[float] | None) -> str:
    return "-" if value is None else f"{100 * value[0]:.0f}%"


# Several machines ---------------------------------------------------------------------------------


def _cluster() -> str:
    """Two nodes on one machine: what a second gains, and what the death of one costs."""
    lines = _lines("cluster.jsonl")
    served = next(line["serve"] for line in reversed(lines) if "serve" in line)
    compared = next((line["compare"] for line in reversed(lines) if "compare" in line), None)
    warm, killed, cold = (served[part] for part in ("warm", "replica_killed", "cold_and_exactly_full"))
    rows = [
        ("requests at their prompt's home, warm", f"{warm['at_home']:.1%} of {warm['requests']}"),
        ("a replica killed under load", f"{killed['failed']} failed of {killed['requests']}"),
        ("answered by a wrong prompt", f"{killed['wrong'] + cold['wrong']}"),
        ("sent again inside; the longest wait", f"{killed['sent_again']}; {killed['longest_ms']:,} ms"),
        (
            f"cold, {cold['prompts']} prompts where {cold['prompts']} fit, {cold['requests']} requests",
            f"{cold['loads']} loads",
        ),
    ]
    if compared is not None:
        times = f"{compared['one_node_seconds']:.0f} s and {compared['two_nodes_seconds']:.0f} s"
        same = compared["same_numbers_on_two"] and compared["same_numbers_though_killed"]
        rows += [
            (f"{compared['cells']} cells on one node and on two", f"{times}: {compared['speed_up']:.2f}x"),
            ("one of two nodes killed in the middle", f"{compared['node_killed_seconds']:.0f} s, all cells"),
            ("the same numbers each time", "yes" if same else "no"),
        ]
    return _table(("two nodes of one core, a tiny base", "found"), rows)


def _scale() -> str:
    """What the simulation found."""
    heads = "replicas,door,memory each,Zipf,share,rows,hit rate,loads a second,busy,p50,p99,hours a million"
    rows = []
    for line in json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))["rows"]:
        case, found = line["case"], line["found"]
        about = (f"{case['memory'] / 1e9:g} GB", f"{case['zipf']}", f"{case['share']:.0%}", f"{case['free']}")
        shares = (f"{found['hit_rate']:.1%}", f"{found['loads_a_second']:,.1f}", f"{found['busy']:.0%}")
        times = (f"{found['p50_ms']:,.0f} ms", f"{found['p99_ms']:,.0f} ms")
        hours = f"{found['replica_hours_a_million']:.1f}"
        rows.append((str(case["replicas"]), case["door"], *about, *shares, *times, hours))
    return _table(heads.split(","), rows)


DOCUMENTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"demo": _demo, "comparison": _compact},
    "docs/results.md": {
        "comparisons": _comparisons,
        "pairs": _pairs,
        "coverage": _coverage,
        "figures": _figures,
    },
    "docs/how-to/install.md": {"installed": _installed},
    "docs/reading.md": {"claims": _claims, "found": _found},
    "docs/distil.md": {"distil": _distilled},
    "docs/scale.md": {"measured": _cluster, "simulated": _scale},
}
"""What is made where: document, mark, maker."""


if __name__ == "__main__":
    main()
