"""How numbers are written for people: scores, differences, p values, sizes, times.

It knows metrics by name; it does not know where a number comes from or is shown.
"""

from __future__ import annotations

import math

__all__ = [
    "NOTHING",
    "bytes_text",
    "count_text",
    "difference_text",
    "interval_text",
    "is_share",
    "lower_is_better",
    "metric_name",
    "metric_text",
    "p_text",
    "round_text",
    "seconds_text",
    "tick_text",
]

NOTHING = "–"
"""What stands where there is no number."""

_SHARES = {"accuracy", "balanced_accuracy", "exact_match", "em", "token_f1", "f1a", "precision", "recall"}
_SHARES |= {"f1", "macro_f1", "micro_f1", "weighted_f1", "macro_precision", "macro_recall"}
_OFFICIAL = "official "
_LOWER = {"nll", "loss", "perplexity", "ece", "brier", "wer", "cer", "ter"}
_NAMES = {
    "nll": "loss per token",
    "ece": "ECE",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER",
    "mcc": "Matthews correlation",
    "wer": "word error rate",
    "cer": "letter error rate",
    "f1": "F1",
    "f1a": "F1a",
    "em": "EM",
    "token_f1": "token F1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "weighted_f1": "weighted F1",
}


def metric_name(metric: str) -> str:
    """A metric's name in words."""
    prefix, plain = _split(metric)
    return prefix + _NAMES.get(plain, plain.replace("_", " "))


def _split(metric: str) -> tuple[str, str]:
    """``official f1`` is an F1 that a benchmark computes in its own way."""
    plain = metric.removeprefix(_OFFICIAL)
    return metric[: len(metric) - len(plain)], plain


def is_share(metric: str) -> bool:
    """Whether it goes from 0 to 1 and is written in percent."""
    return _split(metric)[1] in _SHARES


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return _split(metric)[1] in _LOWER


def metric_text(metric: str, value: float | None, *, unit: bool = True) -> str:
    """A score: shares in percent, all else in three decimals, large numbers in one."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if is_share(metric):
        return _minus(f"{100 * value:.1f}{'%' if unit else ''}")
    return _minus(f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}")


def interval_text(metric: str, low: float | None, high: float | None) -> str:
    """A 95% interval without its unit; nothing where a bound is missing."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{metric_text(metric, low, unit=False)}–{metric_text(metric, high, unit=False)}"


def difference_text(metric: str, value: float, *, unit: bool = False) -> str:
    """A difference with its sign; of shares in percentage points."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{100 * value:+.1f}" if is_share(metric) else f"{value:+.3f}"
    if float(text) == 0:
        text = text[1:]
    return _minus(text) + (" points" if unit and is_share(metric) else "")


def p_text(p: float, *, at_most: bool = False) -> str:
    """A p value, such as ``p = 0.031`` or ``p < 0.001``; ``at_most``: it may be smaller still."""
    if not math.isfinite(p):
        return "p unknown"
    if p < 0.001 or at_most:
        return f"p < {math.ceil(1000 * p) / 1000:.3g}" if p else "p < 0.001"
    return f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def count_text(value: float) -> str:
    """A whole number in groups of three digits."""
    return f"{value:,.0f}"


def bytes_text(size: float) -> str:
    """A size in the unit that suits it, in three digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale * 0.9995:
            return f"{_three(size / scale)} {unit}"
    return f"{size:.0f} B"


def seconds_text(seconds: float) -> str:
    """A span of time: ms below a second, then s, min, h."""
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{_three(1000 * seconds)} ms"
    if seconds < 99.95:
        return f"{_three(seconds)} s"
    whole = round(seconds)
    if whole < 600:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def tick_text(metric: str, value: float) -> str:
    """A score beside an axis, as short as it can be told."""
    return f"{_minus(f'{100 * value:.4g}')}%" if is_share(metric) else _minus(f"{value:.4g}")


def round_text(value: float, unit: str) -> str:
    """A round count, size (unit ``B``) or time (``s``) beside an axis: 20k, 5 MB, 200 s."""
    if unit == "s":
        return f"{value:,.4g} s" if value >= 1 or value == 0 else f"{1000 * value:.4g} ms"
    space = " " if unit else ""
    for letter, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.4g}{space}{letter if unit or letter != 'G' else 'B'}{unit}"
    return f"{value:.4g}{space}{unit}"
