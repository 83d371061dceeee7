"""What one would use instead of tuning: logistic regression on features that nothing was learnt for.

Its cells are like those of prompts, but there is no artifact: a fit takes a second and is made again for the
test. It knows rows, features and scikit-learn; it does not know which cells a comparison needs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from numpy.typing import NDArray

from softprompt.base.model import Base, Batch, ends
from softprompt.base.packing import TokenRow, batches
from softprompt.checkpoints.encoder import load_encoder
from softprompt.comparison.cell import Tested, Trained, changed_rows
from softprompt.comparison.measure import Measurement, Observation
from softprompt.comparison.results import Costs
from softprompt.config import ClassifierConfig, Config, TextConfig
from softprompt.data.table import Table
from softprompt.data.task import Task
from softprompt.errors import DataError
from softprompt.evaluation.score import BATCH_TOKENS
from softprompt.library.folder import Library
from softprompt.listener import Report
from softprompt.training.job import Job, tokens
from softprompt.training.memory import Peak
from softprompt.training.threads import threads

__all__ = ["test", "train"]

Matrix = Any
"""Features ``[B, F]``, dense or sparse, as scikit-learn takes them."""

_STEPS = 2000


def train(
    base: Base,
    config: Config,
    measurement: Measurement,
    library: Library,
    identity: str,
    watch: Callable[[Report], None],
    stop: Callable[[], bool],
) -> Trained:
    """Fit one classifier and score it on validation; arguments as ``cell.train`` has them."""
    if stop():
        raise KeyboardInterrupt
    method, job = _read(base, config)
    featurise = _features(method, job)
    with threads(config.train.threads), Peak(base.device) as peak:
        began = time.perf_counter()
        fitted = _fit(method, featurise, job.task)
        seconds = time.perf_counter() - began
        seen = fitted.observe(job.task, "validation")
    return Trained(
        identity=identity,
        name="",
        weights_sha256="",
        costs=Costs(
            trained_parameters=fitted.numbers,
            artifact_bytes=4 * fitted.numbers + fitted.other_bytes,
            positions=0,
            train_seconds=round(seconds, 2),
            peak_memory_bytes=peak.bytes,
        ),
        steps=0,
        best_step=0,
        losses=[],
        validations=[],
        validation=measurement.measured(seen, job.task, "validation"),
    )


def test(
    base: Base,
    config: Config,
    cell: Trained,
    measurement: Measurement,
    library: Library,
    identity: str,
    *,
    changes: bool,
    requests: int,
) -> Tested:
    """Fit the same once more and score it on the test rows; arguments as ``cell.test`` has them."""
    method, job = _read(base, config)
    fitted = _fit(method, _features(method, job), job.task)
    found = measurement.measured(fitted.observe(job.task, "test"), job.task, "test")
    changed = {
        kind: measurement.measured(fitted.observe(other, "test"), other, "test")
        for kind, other in (changed_rows(job.task) if changes else ())
    }
    taken = []
    for row in job.task.tables["test"].rows[: requests + 1] if requests else ():
        began = time.perf_counter()
        fitted.probabilities(replace(job.task.tables["test"], rows=(row,)))
        taken.append(time.perf_counter() - began)
    latency = statistics.median(taken[1:] or taken) if taken else None
    return Tested(identity=identity, test=found, perturbed=changed, latency_seconds=latency)


def _read(base: Base, config: Config) -> tuple[ClassifierConfig, Job]:
    """The classifier's settings, and its rows with what the base reads in front of them."""
    method = config.method
    assert isinstance(method, ClassifierConfig)
    return method, Job.prepare(base, config.model_copy(update={"method": TextConfig(front=method.front)}))


@dataclass(frozen=True)
class _Fitted:
    """A fitted pipeline behind its features.

    Attributes:
        featurise: rows -> features.
        model: scikit-learn's pipeline on them.
        labels: how many labels the job has, of which training rows may lack some.
        numbers: how many numbers were fitted.
        other_bytes: what else must be kept, such as the words that are counted.
    """

    featurise: Callable[[Table], Matrix]
    model: Any
    labels: int
    numbers: int
    other_bytes: int

    def probabilities(self, table: Table) -> NDArray[numpy.float64]:
        """``[B, C]`` of every label; a label without training rows has none."""
        found = self.model.predict_proba(self.featurise(table))
        whole = numpy.zeros((len(found), self.labels))
        whole[:, self.model.classes_] = found
        return whole

    def observe(self, task: Task, split: str) -> Observation:
        """What it says of the rows of a split; losses are those of the label among all labels."""
        table = task.tables[split]
        found, right = self.probabilities(table), _label_numbers(task, split)
        predictions = found.argmax(1).tolist()
        likely = found[numpy.arange(len(right)), right].clip(1e-12)
        return Observation(
            losses=(-numpy.log(likely)).tolist(),
            tokens=[1.0] * len(right),
            predictions=predictions,
            confidences=found.max(1).tolist(),
            hits=[p == r for p, r in zip(predictions, right, strict=True)],
        )


def _fit(method: ClassifierConfig, featurise: Callable[[Table], Matrix], task: Task) -> _Fitted:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    right = _label_numbers(task, "train")
    if len(set(right)) < 2:
        raise DataError(
            "All training rows have one label, so there is nothing to tell apart; give it others."
        )
    unit: dict[str, Callable[[], list[Any]]] = {
        "tf-idf": lambda: [TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))],
        "hidden": lambda: [StandardScaler(), Normalizer()],
        "encoder": list,
    }
    model = make_pipeline(*unit[method.features](), LogisticRegression(C=method.c, max_iter=_STEPS))
    model.fit(featurise(task.tables["train"]), right)
    regression = model[-1]
    words = getattr(model[0], "vocabulary_", {})
    numbers = regression.coef_.size + regression.intercept_.size
    numbers += sum(getattr(model[0], name, numpy.empty(0)).size for name in ("idf_", "mean_", "scale_"))
    assert task.template.labels is not None
    return _Fitted(
        featurise, model, len(task.template.labels), numbers, sum(len(word.encode()) + 1 for word in words)
    )


def _label_numbers(task: Task, split: str) -> list[int]:
    found = [task.template.label_index(row) for row in task.tables[split].rows]
    return [number for number in found if number is not None]


def _features(method: ClassifierConfig, job: Job) -> Callable[[Table], Matrix]:
    """From rows to what the classifier reads of them."""
    if method.features == "hidden":
        return lambda table: _hidden(job, table)
    if method.features == "tf-idf":
        return lambda table: _texts(job.task, table)
    encoder = load_encoder(method.encoder, device=str(job.base.device))
    return lambda table: encoder.vectors(_texts(job.task, table)).numpy()


def _texts(task: Task, table: Table) -> list[str]:
    """The fields of every row, without the template's words, which all rows share."""
    return ["\n".join(task.template.input_values(row).values()) for row in table.rows]


def _hidden(job: Job, table: Table) -> NDArray[numpy.float32]:
    """The base's last hidden state at the end of every input, ``[B, E]``: what it expects to follow."""
    base = job.base
    task = replace(job.task, tables={**job.task.tables, "": table})
    rows = [TokenRow(example.input_ids) for example in tokens(task, "", base, job.config).examples]
    found = torch.empty(len(rows), base.width)
    with torch.no_grad():
        prefix = base.prefill(job.method.front())
        for numbers in batches(rows, BATCH_TOKENS):
            batch = Batch([rows[number] for number in numbers], prefix)
            found[list(numbers)] = base.hidden([batch], [ends(batch)]).float().cpu()
    return found.numpy()
