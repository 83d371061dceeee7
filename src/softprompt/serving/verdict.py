"""From a text and the candidates of its job to a probability for each: which jobs to hand in, what they mean.

It knows encoded rows and likelihoods; it does not know the engine. The rule is ``evaluation.score``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from softprompt.data.rows import Encoded
from softprompt.errors import ConfigError
from softprompt.evaluation.score import weigh
from softprompt.library.prompt import Text
from softprompt.serving.job import Comparison
from softprompt.serving.version import Version

__all__ = ["Question", "question"]


class Question:
    """One text to be classified.

    Attributes:
        comparisons: the jobs whose likelihoods decide it: that of the text and, where the job calibrates,
            that of its content-free input.
        answers: the labels, or the choices of the row, in order.
    """

    def __init__(self, version: Version, encoded: Encoded, answers: Sequence[str]) -> None:
        (example,) = encoded.examples
        inputs = [example.input_ids, *([example.neutral_ids] if example.neutral_ids is not None else [])]
        candidates, whole = encoded.candidates(example), encoded.needs_whole_words
        self.comparisons = [Comparison(version, ids, candidates, whole) for ids in inputs]
        self.answers = list(answers)
        self._encoded = encoded

    def probabilities(self, likelihoods: Sequence[Sequence[float]]) -> dict[str, float]:
        """The probability of every answer, the likeliest first, from what each comparison found."""
        found, *neutral = (torch.tensor([values]) for values in likelihoods)
        judged = weigh(self._encoded, found, neutral[0] if neutral else torch.zeros_like(found))
        pairs = zip(self.answers, judged.probabilities[0].tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))


def question(version: Version, text: Text) -> Question:
    """What to ask the engine to classify a text.

    Raises:
        ConfigError: a version without labels or choices.
        DataError: a row that does not fit the template, or offers no choices where it should.
    """
    prompt = version.prompt
    if prompt is None or not prompt.template.compares:
        raise ConfigError(f"{version.name} was learnt without labels; let it generate.")
    answers = prompt.template.answers({} if isinstance(text, str) else text)
    return Question(version, prompt.encode_request(text), list(answers))
