"""Classifiers on frozen features: equal to scikit-learn and transformers by hand, and methods like others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers

import tiny
from softprompt.checkpoints.encoder import load_encoder
from softprompt.checkpoints.freeze import load_base
from softprompt.comparison import classifier
from softprompt.comparison.results import Results
from softprompt.comparison.run import compare
from softprompt.comparison.settings import load_comparison
from softprompt.config import ClassifierConfig, TextConfig, parse
from softprompt.errors import BaseModelError, ConfigError, DataError
from softprompt.training.job import Job
from softprompt.training.run import train

text_features = pytest.importorskip("sklearn.feature_extraction.text", reason="needs the extra 'compare'")
linear = pytest.importorskip("sklearn.linear_model")

SUBJECTS = {"x": "apple pear plum", "y": "iron tin zinc", "z": "rain snow hail"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def rows(first: int, count: int = 18) -> list[dict[str, str]]:
    labels = ["xyz"[i % 3] for i in range(first, first + count)]
    words = [SUBJECTS[label].split()[i // 3 % 3] for i, label in enumerate(labels)]
    return [
        {"text": f"{i * 7 % 10} {w} {i * 3 % 10}", "label": label}
        for i, (w, label) in enumerate(zip(words, labels, strict=True), first)
    ]


def data(folder: Path) -> dict[str, Any]:
    for split, first in (("train", 0), ("validation", 1000), ("test", 2001)):
        lines = (json.dumps(row) + "\n" for row in rows(first))
        (folder / f"{split}.jsonl").write_text("".join(lines))
    paths = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return {**paths, "input": "Say {text}", "target": ":{label}", "labels": {"x": "a", "y": "b", "z": "c"}}


def job(folder: Path, base: Path, **method: Any) -> Job:
    config = parse({"data": data(folder), "method": {"kind": "text", **method}})
    return Job.prepare(load_base(str(base), dtype="float32"), config)


def test_tf_idf_is_scikit_learn_s_on_the_fields_alone(tmp_path: Path, base: Path) -> None:
    made, method = job(tmp_path, base), ClassifierConfig(c=3.0)
    fitted = classifier._fit(method, classifier._features(method, made), made.task)
    words = text_features.TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    by_hand = linear.LogisticRegression(C=3.0, max_iter=2000)
    by_hand.fit(words.fit_transform([r["text"] for r in rows(0)]), [r["label"] for r in rows(0)])
    expected = by_hand.predict_proba(words.transform([r["text"] for r in rows(2001)]))
    found = fitted.probabilities(made.task.tables["test"])
    assert numpy.abs(found - expected).max() < 1e-9
    assert found.argmax(1).tolist() == ["xyz".index(r["label"]) for r in rows(2001)]
    assert fitted.numbers == by_hand.coef_.size + 3 + len(words.vocabulary_)


def test_hidden_states_are_those_of_the_plain_model_behind_the_front(tmp_path: Path, base: Path) -> None:
    made, method = job(tmp_path, base, front="Which? "), ClassifierConfig(features="hidden")
    found = classifier._features(method, made)(made.task.tables["test"])
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    for row, vector in zip(rows(2001), found, strict=True):
        ids = torch.tensor([tokenizer(f"Which? Say {row['text']}").input_ids])
        with torch.no_grad():
            expected = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        assert numpy.abs(vector - expected.numpy()).max() < 1e-4


def test_an_encoder_s_vector_of_a_text_is_the_mean_of_its_tokens_alone(encoder: Path) -> None:
    texts = ["a b", "some longer text", "c" * 60]
    found = load_encoder(str(encoder), device="cpu").vectors(texts)
    model = transformers.BertModel.from_pretrained(encoder).eval()
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([tiny.tokenizer()(text).input_ids[:24]])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5), text


def test_what_is_no_encoder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for source in (str(tmp_path), str(tmp_path / "nothing" / "there" / "at all")):
        with pytest.raises(BaseModelError, match="encoder"):
            load_encoder(source)


def test_a_label_without_training_rows_has_no_share(tmp_path: Path, base: Path) -> None:
    whole = data(tmp_path)
    few = [row for row in rows(0) if row["label"] != "y"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    model = load_base(str(base), dtype="float32")
    made = Job.prepare(model, parse({"data": whole, "method": {"kind": "text"}}))
    method = ClassifierConfig()
    fitted = classifier._fit(method, classifier._features(method, made), made.task)
    found = fitted.probabilities(made.task.tables["test"])
    assert (found[:, 1] == 0).all()
    assert numpy.allclose(found.sum(1), 1)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few[::2]))
    made = Job.prepare(model, parse({"data": whole, "method": {"kind": "text"}}))
    with pytest.raises(DataError, match="one label"):
        classifier._fit(method, classifier._features(method, made), made.task)


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, base: Path, encoder: Path
) -> tuple[dict[str, Any], Results, list[str]]:
    folder, said = tmp_path_factory.mktemp("whole"), list[str]()
    settings = {
        "name": "things",
        "base": {"model": str(base), "dtype": "float32"},
        "data": data(folder),
        "train": {"epochs": 1, "batch_size": 6},
        "compare": {"seeds": [0, 1], "folder": str(folder / "out"), "latency_requests": 2},
        "methods": [
            {"name": "untuned", "method": {"kind": "text"}},
            {"name": "soft", "method": {"front": "{soft:2}"}, "trials": [{}, {"train.learning_rate": 0.1}]},
            {
                "name": "my encoder",
                "method": {"kind": "classifier", "features": "encoder", "encoder": str(encoder)},
                "trials": [{"method.c": 1.0}, {"method.c": 10.0}],
            },
        ],
    }
    return settings, compare(settings, notify=said.append), said


Done = tuple[dict[str, Any], Results, list[str]]


def test_they_stand_beside_the_methods_of_every_file(done: Done) -> None:
    _, results, _ = done
    assert [m.name for m in results.methods] == ["untuned", "soft", "my encoder", "TF-IDF", "hidden states"]
    assert results.finished
    for method in results.methods[2:]:
        assert (method.kind, method.trained, method.trouble) == ("classifier", True, "")
        assert len(method.trials) == len(results.methods[1].trials)  # tuned as hard as the others
        assert [len(run.predictions) for run in method.runs] == [18, 18]
        costs = method.runs[0].costs
        assert costs.trained_parameters > 0
        assert costs.artifact_bytes >= 4 * costs.trained_parameters
        assert costs.latency_seconds
        assert costs.peak_memory_bytes
        assert method.runs[0].perturbed.keys() == {"typos", "case", "spacing", "worst"}
        assert {"accuracy", "macro_f1", "ece"} <= method.summary.keys()
    assert results.methods[3].summary["accuracy"].mean == 1.0
    assert len(results.pairs) == 10


def test_nothing_of_them_is_left_in_the_library_and_nothing_is_done_twice(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, results, _ = done
    folder = Path(settings["compare"]["folder"]) / "things"
    assert {p.name.split("-")[1] for p in (folder / "prompts").iterdir()} == {"untuned", "soft"}
    monkeypatch.setattr(classifier, "_fit", None)
    again = compare(settings)
    assert [m.summary for m in again.methods] == [m.summary for m in results.methods]


def test_they_are_left_out_where_they_are_not_wanted_or_cannot_be() -> None:
    about = {"train": "a", "test": "b", "input": "{text}", "target": " {label}", "labels": ["no", "yes"]}
    names = ["TF-IDF", "sentence embeddings", "hidden states"]

    def found(**settings: Any) -> list[str]:
        return [one.name for one in load_comparison({"data": about, **settings})[1] if one.name in names]

    assert found() == names
    assert found(compare={"alternatives": False}) == []
    assert found(compare={"metric": "nll"}) == []
    assert found(methods=[{"name": "words", "method": {"kind": "classifier"}}]) == names[1:]
    assert found(data={k: v for k, v in about.items() if k != "labels"}) == []
    comparison, contenders = load_comparison({"data": about, "compare": {"trials": 2}})
    assert [entry.name for entry in comparison.methods][-3:] == names
    tried = [contenders[-1].config(trial, 0).method.c for trial in range(2)]  # type: ignore[union-attr]
    assert tried[1] == pytest.approx(10 * tried[0])


def test_a_classifier_is_refused_where_there_is_nothing_for_it(tmp_path: Path, base: Path) -> None:
    about = {"train": "a", "test": "b", "input": "{text}", "target": " {text}"}
    entry = {"name": "words", "method": {"kind": "classifier"}}
    with pytest.raises(ConfigError, match="tells labels apart and writes nothing"):
        load_comparison({"data": about, "methods": [entry]})
    config = parse({"data": data(tmp_path), "method": {"kind": "classifier"}, "train": {"epochs": 1}})
    with pytest.raises(ConfigError, match="for softprompt compare only"):
        train(load_base(str(base), dtype="float32"), config)
    assert TextConfig().learns is False
