"""Every verb on a tiny base, from training to a folder that PEFT loads."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from cli.shell import Shell
from softprompt.cli import generate
from softprompt.generation.sampler import Sampling
from softprompt.library.prompt import Prompt

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_train_says_what_came_of_it_and_what_to_type_next(shell: Shell) -> None:
    done = shell.train("--test", "test.jsonl", "--epochs", "1", "--set", "train.batch_size=8")
    assert done.code == 0
    for word in ("validation (8)", "test (12)", "untuned base", "trained parameters", "640", "peak memory"):
        assert word in done.out
    assert "softprompt generate moods 'your text'" in done.out
    assert "step 0/4  validation" in done.err
    assert "step 4/4  validation" in done.err
    assert (shell.folder / "prompts" / "moods" / "softprompt.json").exists()


def test_train_prints_one_json_object(shell: Shell) -> None:
    done = shell.train("--epochs", "1", "--name", "other-name", "--library", "shelf", "--json")
    assert done.code == 0
    assert done.json["name"] == "other-name"
    assert done.json["path"] == str(Path("shelf", "other-name"))
    assert done.json["bytes"] > 640 * 4
    assert done.json["card"]["scores"]["validation"]["rows"] == 8


def test_train_takes_a_file_and_flags_win_over_it(shell: Shell) -> None:
    shell.folder.joinpath("job.toml").write_text(
        'name = "from-file"\n[base]\nmodel = "base"\n[data]\ntrain = "moods.jsonl"\n'
        'input = "{text}\\nMood:"\ntarget = " {label}"\nlabels = ["pos", "neg"]\n'
        "[train]\nepochs = 1\nmax_steps = 1\n",
        encoding="utf-8",
    )
    done = shell("train", "job.toml", "--name", "from-flag", "--seed", "3", "--json")
    assert done.code == 0
    assert done.json["name"] == "from-flag"
    assert done.json["card"]["settings"]["seed"] == 3
    assert done.json["card"]["training"]["steps"] == 1


def test_train_learns_free_text_with_flags_alone(shell: Shell) -> None:
    done = shell("train", "--data", "moods.jsonl", "--model", "base", "--epochs", "1",
                 "--input", "{label}:", "--target", " {text}")  # fmt: skip
    assert done.code == 0
    assert "loss per token" in done.out
    assert "accuracy" not in done.out
    shown = shell("show", "moods")
    assert '" {text}" and end of text' in shown.out


def test_list_shows_sound_prompts_and_names_broken_ones(taught: Shell) -> None:
    broken = taught.folder / "prompts" / "torn"
    broken.mkdir()
    broken.joinpath("softprompt.json").write_text("{", encoding="utf-8")
    done = taught("list")
    assert done.code == 0
    assert "moods" in done.out
    assert "torn is broken." in done.out
    listed = {prompt["name"]: prompt for prompt in taught("list", "--json").json["prompts"]}
    assert "fault" in listed["torn"]
    assert listed["moods"]["positions"] == 20


def test_list_of_nothing_says_so(shell: Shell) -> None:
    assert "no prompts in prompts yet" in shell("list").out
    assert shell("list", "--json").json == {"library": "prompts", "prompts": []}


def test_show_tells_the_card(taught: Shell) -> None:
    done = taught("show", "moods")
    assert done.code == 0
    for word in (r'"{text}\nMood:"', '" {label}"', "pos, neg", "sha256:", "640 learnt", "test (12)"):
        assert word in done.out
    assert taught("show", "moods", "--json").json["card"]["name"] == "moods"


@pytest.mark.parametrize(
    ("args", "field", "value"),
    [
        (["--repetition-penalty", "1.3"], "repetition_penalty", 1.3),
        (["--min-p", "0.1"], "min_p", 0.1),
        (["--min-new-tokens", "3"], "min_new_tokens", 3),
        (["--presence-penalty", "1"], "presence_penalty", 1.0),
        (["--frequency-penalty", "-1"], "frequency_penalty", -1.0),
        (["--logit-bias", "5=-3", "--logit-bias", "7=2"], "logit_bias", ((5, -3.0), (7, 2.0))),
        (["--stop-token", "9", "--stop-token", "8"], "stop_tokens", (9, 8)),
        (["--ignore-end"], "ignore_end", True),
        (["--temperature", "0"], "temperature", 0.0),
    ],
)
def test_generate_takes_every_setting_of_sampling(
    taught: Shell, monkeypatch: pytest.MonkeyPatch, args: list[str], field: str, value: object
) -> None:
    asked: list[dict[str, object]] = []

    def noted(self: Prompt, texts: object, **options: object) -> list[str]:
        asked.append(options)
        return ["x"]

    monkeypatch.setattr(Prompt, "generate", noted)
    assert taught("generate", "moods", "text", *args).code == 0
    assert asked[0][field] == value
    assert {option.name for option in generate.command.params} >= {
        name for name in Sampling.__dataclass_fields__ if name != "logprobs"
    }


@pytest.mark.parametrize("args", [("--logit-bias", "x=1"), ("--logit-bias", "5"), ("--top-p", "0")])
def test_generate_refuses_a_setting_of_no_use_in_a_sentence(taught: Shell, args: tuple[str, str]) -> None:
    done = taught("generate", "moods", "text", *args)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) <= 3


def test_generate_answers_texts_rows_and_files(taught: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    taught.folder.joinpath("texts.txt").write_text("one\r\n\ntwo\n", encoding="utf-8")
    done = taught("generate", "moods", "zero", "--row", "text=row", "--file", "texts.txt", "--json")
    assert done.code == 0
    inputs = [answer["input"] for answer in done.json["answers"]]
    assert inputs == ["zero", {"text": "row"}, "one", "two"]
    plain = taught("generate", "moods", "zero", "one", "two")
    assert len(plain.out.splitlines()) == 3
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo\n")))
    assert len(taught("generate", "moods", "--file", "-").out.splitlines()) == 2


@pytest.mark.parametrize(
    ("args", "note"),
    [
        (("good ",), "The text ends in white space"),
        (("good\n", "bad"), "1 of 2 texts end in white space"),
        (("--row", "text=good\t"), "The text ends in white space"),
        (("",), "The text is empty"),
        (("good", ""), "1 of 2 texts are empty"),
        (("good",), None),
    ],
)
def test_a_text_that_ends_in_white_space_or_is_empty_gets_a_note_and_its_answer(
    taught: Shell, args: tuple[str, ...], note: str | None
) -> None:
    done = taught("generate", "moods", *args, "--json")
    assert done.code == 0
    notes = [line for line in done.err.splitlines() if "white space" in line or "empty" in line]
    assert len(notes) == (note is not None)
    assert note is None or notes[0].startswith(note)
    asked = [answer["input"] for answer in done.json["answers"]]
    assert asked == ([{"text": "good\t"}] if args[0] == "--row" else list(args))  # nothing is stripped


def test_the_lines_to_type_next_work_as_they_stand(shell: Shell) -> None:
    """For a prompt without input fields, one with two, and a library whose name needs quotes."""
    for template in (
        (),
        ("--input", "", "--target", "{text}"),
        ("--input", "{label} {text}:", "--target", " a"),
    ):
        wanted = ("--epochs", "0", "--library", "my prompts", "--overwrite")
        done = shell.train(*wanted, *(template and ("--set", "data.labels=none", *template)))
        assert done.code == 0, done.err
        lines = done.out.split("What one would type next:\n")[1].splitlines()
        assert len(lines) == 2
        for line in lines:
            name, *words = shlex.split(line)
            assert name == "softprompt"
            assert shell(*words).code == 0, line


def test_sampling_options_reach_the_answer(taught: Shell) -> None:
    def answer(*more: str) -> str:
        return str(taught("generate", "moods", "text", "--json", *more).json["answers"][0]["answer"])

    assert len(answer("--max-new-tokens", "2")) == 2  # the tiny tokenizer's tokens are letters
    assert answer("--base-only") != answer()
    drawn = ("--temperature", "2", "--top-k", "50", "--top-p", "0.9")
    assert answer(*drawn, "--seed", "1") == answer(*drawn, "--seed", "1")
    assert len({answer(*drawn, "--seed", str(seed)) for seed in range(4)}) > 1
    whole = answer()
    assert answer("--stop", whole[1]) == whole[: whole.index(whole[1])]


def test_more_texts_than_fit_one_batch_are_answered_in_order(taught: Shell) -> None:
    texts = [f"text {i}" for i in range(20)]
    answers = taught("generate", "moods", *texts, "--json").json["answers"]
    assert [answer["input"] for answer in answers] == texts
    alone = taught("generate", "moods", texts[-1], "--json").json["answers"][0]
    assert answers[-1]["answer"] == alone["answer"]


def test_a_terminal_sees_the_same_answer_as_a_pipe(taught: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("generate", "moods", "text", "--max-new-tokens", "12")
    piped = taught(*args).out.strip()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert taught(*args).out.strip() == piped


def test_classify_gives_every_label_its_probability(taught: Shell) -> None:
    shares = taught("generate", "moods", "fine", "--classify", "--json").json["answers"][0]
    assert set(shares["probabilities"]) == {"pos", "neg"}
    assert sum(shares["probabilities"].values()) == pytest.approx(1)
    assert shares["label"] == next(iter(shares["probabilities"]))
    assert "probability" in taught("generate", "moods", "fine", "--classify").out
    assert "two" in taught("generate", "moods", "one", "two", "--classify").out


def test_eval_gives_the_scores_of_the_card_again(taught: Shell) -> None:
    done = taught("eval", "moods", "test.jsonl", "--json", "--untuned", "--dtype", "float32")
    card = taught("show", "moods", "--json").json["card"]["scores"]
    assert done.code == 0
    assert done.json["scores"]["learnt"]["nll"] == pytest.approx(card["test"]["nll"])
    assert done.json["scores"]["untuned"]["nll"] == pytest.approx(card["test, untuned"]["nll"])
    assert done.json["labels"] == ["pos", "neg"]
    taken = done.json["confusion"]
    right = sum(row[number] for number, row in enumerate(taken))
    assert right / sum(map(sum, taken)) == pytest.approx(card["test"]["accuracy"])
    one = any(not any(column) for column in zip(*taken, strict=True))
    assert ("Every row is given the label" in done.err) == one
    plain = taught("eval", "moods", "test.jsonl", "--rows", "5")
    assert "test.jsonl (5)" in plain.out
    assert "recall" in plain.out
    assert "untuned" not in plain.out


def separated(folder: Path, source: str, mark: str) -> str:
    """The rows of a file as CSV, behind a header whose comma misleads."""
    rows = [json.loads(line) for line in (folder / source).read_text(encoding="utf-8").splitlines()]
    path = folder / f"{Path(source).stem}{ord(mark)}.csv"
    fields = [["text", "label", "seen, when"], *([row["text"], row["label"], "a, b, c"] for row in rows)]
    path.write_text("".join(mark.join(line) + "\n" for line in fields), encoding="utf-8")
    return path.name


def test_eval_is_told_what_stands_between_columns(taught: Shell) -> None:
    rows = separated(taught.folder, "test.jsonl", ";")
    assert "line 2 has 3 fields where the header has 2 columns" in taught("eval", "moods", rows).err
    wanted = taught("eval", "moods", "test.jsonl", "--json").json["scores"]
    assert taught("eval", "moods", rows, "--separator", ";", "--json").json["scores"] == wanted
    tabs = separated(taught.folder, "test.jsonl", "\t")
    assert taught("eval", "moods", tabs, "--separator", r"\t", "--json").json["scores"] == wanted


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("rows.csv", "--separator", "::"), "data.separator"),
        (("test.jsonl", "--separator", ";"), "is for .csv and .tsv files, and no source is one"),
        (("--harness", "piqa", "--separator", ";"), "--separator only with the former"),
    ],
)
def test_a_separator_that_means_nothing_is_refused(args: tuple[str, ...], said: str, taught: Shell) -> None:
    done = taught("eval", "moods", *args)
    assert done.code == 2
    assert said in done.err


def test_a_prompt_reads_files_as_those_it_learnt_from(shell: Shell) -> None:
    rows, test = (separated(shell.folder, name, ";") for name in ("moods.jsonl", "test.jsonl"))
    done = shell.train("--data", rows, "--epochs", "1", "--set", "data.separator=;", "--name", "moods")
    assert done.code == 0, done.err
    plain = shell("eval", "moods", "test.jsonl", "--json").json["scores"]
    assert shell("eval", "moods", test, "--json").json["scores"] == plain
    commas = shell.folder / "commas.csv"
    commas.write_text("text,label\na good film,pos\nbad bad food,neg\n", encoding="utf-8")
    assert shell("eval", "moods", "commas.csv").code == 2
    assert shell("eval", "moods", "commas.csv", "--separator", ",").code == 0
    seen = shell("inspect", "moods", "--data", test, "--only", "ablation", "--no-page", "--dtype", "float32")
    assert seen.code == 0, seen.err


def test_eval_writes_answers_and_scores_them(taught: Shell) -> None:
    done = taught("eval", "moods", "test.jsonl", "--rows", "6", "--write", "4", "--untuned", "--json")
    assert done.code == 0
    for scores in done.json["scores"].values():
        for metric in ("exact_match", "token_f1", "rougeL"):
            low, high = scores[f"{metric}_interval"]
            assert 0 <= low <= scores[metric] <= high <= 1
    plain = taught("eval", "moods", "test.jsonl", "--rows", "6", "--write", "4")
    assert "ROUGE-L" in plain.out
    assert "chrF" in plain.out


def test_export_gives_a_folder_that_peft_loads_and_import_takes_it_back(taught: Shell) -> None:
    import transformers
    from peft import PeftModel

    done = taught("export", "moods", "out")
    assert done.code == 0
    assert sorted(file.name for file in Path("out").iterdir()) == FILES
    model = transformers.AutoModelForCausalLM.from_pretrained("base")
    loaded = PeftModel.from_pretrained(model, "out")
    mine = load_file("out/adapter_model.safetensors")["prompt_embeddings"]
    torch.testing.assert_close(loaded.get_prompt_embedding_to_save("default"), mine)

    back = taught("import", "out", "--name", "back", "--model", "base", "--dtype", "float32",
                  "--input", r"{text}\nMood:", "--target", " {label}", "--labels", "pos,neg")  # fmt: skip
    assert back.code == 0
    again = load_file("prompts/back/adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(again, mine)
    scores = [taught("eval", name, "test.jsonl", "--json").json["scores"] for name in ("moods", "back")]
    assert scores[0] == scores[1]


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # PEFT's, of what its prompts always do
def test_what_is_exported_writes_the_same_in_a_pipeline_of_transformers(taught: Shell) -> None:
    import transformers
    from peft import PeftModel

    written = taught("generate", "moods", "what a day", "--max-new-tokens", "3", "--json")
    assert taught("export", "moods", "out").code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained("base", dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained("base")
    loaded = PeftModel.from_pretrained(model, "out")
    write = transformers.pipeline("text-generation", model=loaded, tokenizer=tokenizer, device="cpu")
    (found,) = write("what a day\nMood:", max_new_tokens=3, do_sample=False, return_full_text=False)
    assert found["generated_text"] == written.json["answers"][0]["answer"]


def test_import_takes_what_peft_wrote(shell: Shell) -> None:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained("base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(model, config).save_pretrained("theirs")
    done = shell("import", "theirs", "--name", "mine", "--model", "base", "--json")
    assert done.code == 0
    assert done.json["card"]["template"]["input"] == "{text}"
    assert done.json["card"]["template"]["target"] == "{target}"
    assert done.json["card"]["positions"] == 3
    assert shell("generate", "mine", "hello", "--max-new-tokens", "3").code == 0


def test_import_keeps_the_card_of_an_artifact(taught: Shell) -> None:
    done = taught("import", "prompts/moods", "--name", "copy", "--json")
    assert done.code == 0
    assert done.json["card"]["name"] == "copy"
    assert done.json["card"]["template"]["labels"] == {"pos": "pos", "neg": "neg"}
    assert taught("import", "prompts/moods", "--name", "copy2", "--input", "{x}").code == 2


def test_export_replaces_an_earlier_export_only_when_told(taught: Shell) -> None:
    assert taught("export", "moods", "out").code == 0
    assert taught("export", "moods", "out").code == 2
    assert taught("export", "moods", "out", "--overwrite", "--json").json["files"] == FILES
    Path("out", "thesis.txt").write_text("mine", encoding="utf-8")
    assert taught("export", "moods", "out", "--overwrite").code == 2
    assert Path("out", "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_models_lists_what_comes_by_name(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    assert "smollm2-135m" in shell("models").out
    assert shell("models", "--json").json["models"][0]["fetched"] is False


def test_models_fetches(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.checkpoints.catalog.bundled", lambda name, notify: Path("cache", name))
    done = shell("models", "--fetch", "smollm2-135m", "--json")
    assert done.code == 0
    assert "smollm2-135m is in" in done.err
    json.loads(done.out)


def test_rm_removes_all_or_none(taught: Shell) -> None:
    assert taught("rename", "moods", "feelings").code == 0
    assert not (taught.folder / "prompts" / "moods").exists()
    assert taught("show", "feelings", "--json").json["card"]["name"] == "feelings"
    assert "feelings" in (taught.folder / "prompts" / "feelings" / "README.md").read_text(encoding="utf-8")
    assert taught("generate", "feelings", "a good film", "--classify", "--json").json["name"] == "feelings"
    refused = taught("rm", "feelings", "nothing")
    assert refused.code == 2
    assert taught("rename", "feelings", "feelings").code == 2
    assert taught("rename", "feelings", "../out").code == 2
    assert [entry.name for entry in (taught.folder / "prompts").iterdir()] == ["feelings"]
    assert "Removed feelings from prompts." in taught("rm", "feelings", "feelings").out
    assert list((taught.folder / "prompts").iterdir()) == []


def test_the_printed_next_step_works_without_input(shell: Shell) -> None:
    done = shell("train", "--data", "moods.jsonl", "--model", "base", "--epochs", "1", "--name", "l0",
                 "--input", "", "--target", "{text}")  # fmt: skip
    assert done.code == 0
    assert "looks like" not in done.err + done.out
    printed = [line for line in done.out.splitlines() if "softprompt generate" in line]
    assert shell(*shlex.split(printed[0])[1:], "--max-new-tokens", "2").code == 0


def test_a_base_in_a_folder_is_found_from_everywhere(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell.train("--epochs", "1").code == 0
    monkeypatch.chdir("/")
    library = ("--library", str(shell.folder / "prompts"))
    done = shell("generate", "moods", "a good film", *library, "--json")
    assert (done.code, done.json["base"]) == (0, "base")
    assert shell("list", *library, "--json").json["prompts"][0]["base"] == str(shell.folder / "base")


def test_a_comparison_s_plan_runs_nothing(taught: Shell) -> None:
    rows = separated(taught.folder, "test.jsonl", ";")
    Path("c.toml").write_text(
        f'[data]\ntrain = "train.jsonl"\ntest = "{rows}"\nseparator = ";"\ninput = "{{text}}"\n'
        'target = " {label}"\nlabels = ["pos", "neg"]\n[compare]\nseeds = [0, 1]\n'
        '[[methods]]\nname = "soft"\n[[methods]]\nname = "vote"\nvotes_of = "soft"\n'
    )
    done = taught("compare", "c.toml", "--plan")
    assert done.code == 0
    assert not Path("comparisons").exists()
    cells = [line.split() for line in done.out.splitlines()]
    assert ["soft", "prompt-tuning", "3", "4"] in cells
    assert ["vote", "ensemble", "1", "0"] in cells
    assert ["TF-IDF", "classifier", "3", "4"] in cells
    assert "16 runs. With " in done.out
    assert "points apart" in done.out
