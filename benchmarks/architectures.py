"""Every decoder that transformers knows, tiny and random: does it load, is it exact, is what it learns kept?

    python benchmarks/architectures.py              # what results/architectures.jsonl does not have yet
    python benchmarks/architectures.py llama gemma2 # these anew
    python benchmarks/architectures.py --table      # into docs/architectures.md

One process a family, with a limit of processor time; a line of results is written as soon as one is done,
and what was stopped by the limit is tried again.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import random
import resource
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional

import softprompt
from families import WORDS, families, tiny_model
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import freeze
from softprompt.errors import SoftpromptError
from softprompt.generation.offline import generate
from softprompt.generation.request import Event, GenerateRequest, TextDelta
from softprompt.generation.sampler import Sampling
from softprompt.library.folder import Library
from softprompt.prefix import Prefix

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "architectures.jsonl"
PAGE = ROOT / "docs" / "architectures.md"
EXACT = 1e-4
SECONDS = 120
"""Of processor time for one family, so that a busy machine says nothing of a model."""
HERE = "ok, not in PEFT"
"""Right, and PEFT has no format for it."""
CRASHES = "ok; PEFT itself fails on"
"""Right by the model's own pass, and in PEFT's format, which PEFT cannot use on this model."""
LENGTHS = (22, 100, 7, 63)
METHODS: dict[str, dict[str, Any]] = {
    "soft": {"kind": "prompt-tuning", "front": "{soft:5}", "init": "random"},
    "kv": {"kind": "prefix-tuning", "front": "say: a b c d"},
    "lora": {"kind": "lora", "front": "", "rank": 2},
}


def check(family: str) -> dict[str, Any]:
    """All that is found out about one family."""
    model = tiny_model(family)
    plain = copy.deepcopy(model)
    try:
        base = freeze(model, tokenizer(), family)
    except SoftpromptError as error:
        return {"loads": False, "reason": str(error)}
    found: dict[str, Any] = {"loads": True, "layout": base.layout.name}
    found |= tried(lambda: exactness(base, plain)) | tried(lambda: answers(base, plain))
    for name, method in METHODS.items():
        found |= {name: learnt(base, plain, method)}
    return found


def tried(what: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return what()
    except Exception as error:
        return {"fault": f"{type(error).__name__}: {error}"[:200]}


def exactness(base: Base, plain: Any) -> dict[str, Any]:
    """Loss and gradient beside the prompt repeated before every row, which may be longer than any window."""
    draw = random.Random(0)
    rows = [TokenRow(tuple(draw.choices(range(4, WORDS), k=length)), 1) for length in LENGTHS]
    torch.manual_seed(0)
    words = base.embed(tuple(range(5, 10)))
    soft = (words + 0.05 * torch.randn(5, base.width)).requires_grad_()
    takes_vectors = reads(plain, soft)
    if not takes_vectors:  # a second embedding is looked up by the word
        soft = words.clone().requires_grad_()
    ours = base.nll(rows, soft).nll.sum()
    (gradient,) = torch.autograd.grad(ours, soft)
    loss, wanted = 0.0, torch.zeros_like(soft)
    for row in rows:
        text = plain.get_input_embeddings()(torch.tensor(row.ids))
        logits = plain(inputs_embeds=torch.cat([soft, text])[None], use_cache=False).logits[0, len(soft) : -1]
        one = functional.cross_entropy(logits.float(), torch.tensor(row.ids[1:]), reduction="sum")
        wanted += torch.autograd.grad(one, soft)[0]
        loss += float(one.detach())
    error = float((gradient - wanted).norm() / wanted.norm())
    return {
        "loss_error": abs(float(ours.detach()) - loss) / loss,
        "gradient_error": error if takes_vectors else None,
    }


def reads(plain: Any, soft: Tensor) -> bool:
    try:
        plain(inputs_embeds=soft.detach()[None], use_cache=False)
    except RuntimeError:
        return False
    return True


def answers(base: Base, plain: Any) -> dict[str, Any]:
    """Greedy tokens of rows alone and in one batch beside the model's own, all computed anew each step.

    Every second row stands behind a prompt.
    """
    draw = random.Random(1)
    rows = [tuple(draw.choices(range(4, WORDS), k=length)) for length in (50, 5, 38, 5, 20)]
    prompt = (11, 60, 7, 33)
    fronts = [prompt if number % 2 else () for number in range(len(rows))]
    expected = [greedy(plain, (*front, *row), base.end_id) for front, row in zip(fronts, rows, strict=True)]
    prefixes = {front: base.prefill(base.embed(front)) for front in ((), prompt)}
    asked = [(row, prefixes[front]) for row, front in zip(rows, fronts, strict=True)]
    alone = [written(base, [one])[0] for one in asked]
    return {"answers_alone": alone == expected, "answers_in_company": written(base, asked) == expected}


def greedy(plain: Any, row: tuple[int, ...], end: int | None, count: int = 6) -> list[int]:
    tokens = list(row)
    with torch.no_grad():
        for _ in range(count):
            token = int(plain(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
            if token == end:
                break
            tokens.append(token)
    return tokens[len(row) :]


def written(base: Base, asked: list[tuple[tuple[int, ...], Prefix]]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in asked]

    def told(row: int, event: Event) -> None:
        if isinstance(event, TextDelta):
            found[row] += [token.id for token in event.tokens]

    sampling = Sampling(max_new_tokens=6)
    wanted = [GenerateRequest(model=base, prefix=prefix, ids=row, sampling=sampling) for row, prefix in asked]
    generate(wanted, on_event=told)
    return found


def learnt(base: Base, plain: Any, method: dict[str, Any]) -> str:
    """What became of training, saving and reading again: ok, the refusal, or what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            prompt = softprompt.train(base, job(folder, method))
        except SoftpromptError as error:
            trained = any((folder / "runs").rglob("checkpoint.safetensors"))
            return f"{'LOST' if trained else 'refused'}: {error}"
        except Exception as error:
            return f"FAILED: {type(error).__name__}: {error}"[:200]
        try:
            return kept(base, plain, prompt, folder / "prompts")
        except Exception as error:
            return f"UNREADABLE: {type(error).__name__}: {error}"[:200]


def kept(base: Base, plain: Any, prompt: Any, library: Path) -> str:
    """Whether what was saved reads as what was trained, here and in PEFT, and PEFT's copy of it here."""
    import peft

    row = tuple(base.encode("17 y and some more"))
    again = softprompt.load_prompt(prompt.name, base, library)
    faults = []
    with torch.no_grad():
        wanted = prompt.base.next_logits([TokenRow(row)], prompt.prefix)[0]
        if apart(again.base.next_logits([TokenRow(row)], again.prefix)[0], wanted) > EXACT:
            faults.append("read again it is another")
        vectors = isinstance(prompt.front, Tensor) and not prompt.change
        if vectors and apart(behind(plain, prompt.front, row), wanted) > EXACT:
            faults.append("the model's own pass reads another")
        if Library(library).load(prompt.name).payload.opened_by == "softprompt":
            return "; ".join(faults) or HERE
        try:
            theirs: Any = peft.PeftModel.from_pretrained(copy.deepcopy(plain), library / prompt.name).eval()
            ids = torch.tensor([(*base.start_ids, *row) if prompt.change else row])
            logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
            if apart(logits, wanted) > EXACT:
                faults.append("PEFT reads another")
            theirs.save_pretrained(library / "peft")
            met = Library(library).load(library / "peft").payload.adopted(base).meet(base)
            if apart(met.base.next_logits([TokenRow(row)], met.front)[0], wanted) > EXACT:
                faults.append("PEFT's is read as another")
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:160]
            if vectors and not faults:
                return f"{CRASHES} {type(plain).__name__} ({said})"
            faults.append(f"PEFT: {said}")
    return "; ".join(faults) or "ok"


def behind(plain: Any, front: Tensor, row: tuple[int, ...]) -> Tensor:
    """The model's own logits of what follows a row behind vectors [P, E]."""
    text = plain.get_input_embeddings()(torch.tensor(row))
    logits: Tensor = plain(inputs_embeds=torch.cat([front, text])[None], use_cache=False).logits
    return logits[0, -1]


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def job(folder: Path, method: dict[str, Any]) -> dict[str, Any]:
    data = {}
    for split, first in (("train", 0), ("validation", 100)):
        rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(first, first + 8)]
        data[split] = str(folder / f"{split}.jsonl")
        Path(data[split]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "name": "tried",
        "data": data | {"input": "{text}", "target": ":{label}", "labels": {"x": "a", "y": "b", "z": "c"}},
        "method": method,
        "train": {"epochs": 2, "learning_rate": 0.05, "batch_size": 4, "threads": 1},
        "output": {"library": str(folder / "prompts"), "runs": str(folder / "runs")},
    }


def tokenizer() -> Any:
    """One token a letter or symbol; 0 to 2 are pad, start and end."""
    letters = [chr(c) for c in range(32, 32 + WORDS - 4)]
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {c: i + 4 for i, c in enumerate(letters)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


# One family a process -----------------------------------------------------------------------------


def apart_from_others(family: str) -> dict[str, Any]:
    """``check`` in a process of its own, which shares what was imported."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_send, args=(theirs, family))
    child.start()
    try:
        theirs.close()
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        return {"loads": None, "reason": f"its process ended, or took more than {SECONDS} s"}
    finally:
        child.kill()
        child.join()


def _send(pipe: Any, family: str) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        found = check(family)
    except Exception as error:
        said = " ".join(str(error).split())
        found = {"loads": None, "reason": f"no tiny model: {type(error).__name__}: {said}"[:200]}
    pipe.send(found)


def read() -> dict[str, dict[str, Any]]:
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {line["family"]: line for line in map(json.loads, lines)}


# The table ----------------------------------------------------------------------------------------


def table(found: dict[str, dict[str, Any]]) -> str:
    """Two lists: what loads, with all that was checked, and what is refused, with its reason."""
    loaded = {family: about for family, about in sorted(found.items()) if about["loads"]}
    right = {family: verdicts(about) for family, about in loaded.items() if all(map(good, verdicts(about)))}
    whole = [family for family, cells in right.items() if not any(c.startswith("refused") for c in cells)]
    refused = {family: about for family, about in sorted(found.items()) if about["loads"] is False}
    unmade = [family for family, about in sorted(found.items()) if about["loads"] is None]
    crashes = sum(any(c.startswith(CRASHES) for c in cells) for cells in right.values())
    lines = [
        f"transformers {transformers.__version__}: of {len(found)} families {len(loaded)} load and "
        f"{len(refused)} are refused at loading; of {len(unmade)} no tiny model could be made or tried. "
        f"{len(whole)} pass every check, {len(right) - len(whole)} more all but a method that is refused "
        f"before the first step, and {len(loaded) - len(right)} fail one. On {crashes} of those that pass, "
        "PEFT itself fails with a soft prompt.",
        "",
        "| family | layout | loss | gradient | answers | in company | soft prompt | KV prefix | LoRA |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {family} | {about['layout']} | {' | '.join(verdicts(about))} |"
            for family, about in loaded.items()
        ),
        "",
        "| refused | reason |",
        "| --- | --- |",
        *(f"| {family} | {cell(about['reason'])} |" for family, about in refused.items()),
    ]
    if unmade:
        lines += ["", f"No tiny model: {', '.join(unmade)}."]
    return "\n".join(lines)


def verdicts(about: dict[str, Any]) -> list[str]:
    if "fault" in about:
        return [f"**{cell(about['fault'])}**"] * 7
    errors = [about[name] for name in ("loss_error", "gradient_error")]
    told = ["yes" if about[name] else "**no**" for name in ("answers_alone", "answers_in_company")]
    return ["–" if e is None else f"{e:.0e}" for e in errors] + told + [cell(about[name]) for name in METHODS]


def good(verdict: str) -> bool:
    """Whether a cell is right, or was refused before any work."""
    number = verdict[:1].isdigit() and float(verdict) <= EXACT
    return number or verdict in ("yes", "ok", HERE, "–") or verdict.startswith(("refused", CRASHES))


def cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def put(page: str, content: str) -> str:
    before, _, rest = page.partition("<!-- families -->")
    _, _, after = rest.partition("<!-- /families -->")
    return f"{before}<!-- families -->\n{content}\n<!-- /families -->{after}"


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--table", action="store_true")
    wanted = parser.parse_args()
    found = read()
    if not wanted.table:
        os.nice(5)
        for family in wanted.families or [f for f in families() if found.get(f, {}).get("loads") is None]:
            found[family] = {"family": family, **apart_from_others(family)}
            lines = [json.dumps(found[name]) + "\n" for name in sorted(found)]
            RESULTS.write_text("".join(lines), encoding="utf-8")
            print(json.dumps(found[family]), flush=True)
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), table(found)), encoding="utf-8")
    print(Counter(about["loads"] for about in found.values()))


if __name__ == "__main__":
    main()
