"""Packages that only some work needs: what needs which, and which extra of softprompt brings them.

It imports none of them. Whoever is about to work asks for all that will be needed, so that nothing is
missing in the middle.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from typing import Literal, get_args

from softprompt.errors import ResourceError

__all__ = ["EXTRAS", "Need", "require"]

Need = Literal[
    "LoRA",
    "a quantised base",
    "a base over several devices",
    "a parquet file",
    "a data set of the hub",
    "scoring written texts",
    "McNemar's test",
    "logistic regression",
    "an HTML page",
    "a UMAP map",
    "relating prompts",
    "TensorBoard's log",
    "a tracker",
    "the harness",
    "serving",
    "traces",
    "vLLM",
    "a library on S3",
    "a library on Google's store",
    "a library on Azure's store",
    "a cluster",
]

_MODULES: dict[Need, tuple[str, ...]] = {
    "LoRA": ("peft",),
    "a quantised base": ("accelerate", "bitsandbytes"),
    "a base over several devices": ("accelerate",),
    "a parquet file": ("pyarrow",),
    "a data set of the hub": ("datasets",),
    "scoring written texts": ("rouge_score", "sacrebleu"),
    "McNemar's test": ("scipy",),
    "logistic regression": ("sklearn",),
    "an HTML page": ("jinja2", "matplotlib"),
    "a UMAP map": ("umap",),
    "relating prompts": ("scipy",),
    "TensorBoard's log": ("tensorboard",),
    "a tracker": ("accelerate",),
    "the harness": ("lm_eval",),
    "serving": ("fastapi", "llguidance", "prometheus_client", "python_multipart", "uvicorn"),
    "traces": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
    "vLLM": ("vllm",),
    "a library on S3": ("s3fs",),
    "a library on Google's store": ("gcsfs",),
    "a library on Azure's store": ("adlfs",),
    "a cluster": ("ray",),
}
assert _MODULES.keys() == set(get_args(Need))

EXTRAS: dict[str, tuple[str, ...]] = {
    "data": ("datasets", "pyarrow"),
    "tensorboard": ("tensorboard",),
    "trackers": ("accelerate",),
    "devices": ("accelerate",),
    "lora": ("peft",),
    "quantised": ("accelerate", "bitsandbytes"),
    "report": ("jinja2", "matplotlib", "scipy"),
    "compare": ("jinja2", "matplotlib", "peft", "rouge_score", "sacrebleu", "scipy", "sklearn"),
    "umap": ("umap",),
    "harness": ("lm_eval",),
    "serve": ("fastapi", "llguidance", "prometheus_client", "python_multipart", "uvicorn"),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
    "vllm": ("vllm",),
    "s3": ("s3fs",),
    "gs": ("gcsfs",),
    "az": ("adlfs",),
    "ray": ("ray",),
}
"""By extra, the modules it brings, as pyproject.toml lists their packages."""

_PACKAGES = {"sklearn": "scikit-learn", "umap": "umap-learn"}
"""Packages that are not called as their module is, but for dashes and dots."""


def require(*needs: Need, otherwise: str = "") -> None:
    """See that everything for ``needs`` is installed, before any work.

    Args:
        needs: what will be done.
        otherwise: what the user could do instead of installing.

    Raises:
        ResourceError: something is not; the sentence names all of it, and one command that brings it.
    """
    absent = {need: [m for m in _MODULES[need] if not _installed(m)] for need in dict.fromkeys(needs)}
    absent = {need: modules for need, modules in absent.items() if modules}
    if not absent:
        return
    said = _listed([f"{need} needs {_named(modules)}" for need, modules in absent.items()])
    modules = {module for some in absent.values() for module in some}
    verb = "is" if len(modules) == 1 else "are"
    remedy = f"run pip install 'softprompt[{','.join(_extras(modules))}]'"
    remedy += f", or {otherwise}" if otherwise else ""
    raise ResourceError(f"{said[0].upper()}{said[1:]}, which {verb} not installed; {remedy}.")


def _installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor is what it would be a part of
        return False


def _extras(modules: set[str]) -> list[str]:
    """Few extras that bring ``modules``: always the one that brings most of what is left, and least else."""
    chosen, left = list[str](), set(modules)
    while left:
        best = max(EXTRAS, key=lambda extra: (len(left & {*EXTRAS[extra]}), -len(EXTRAS[extra])))
        chosen.append(best)
        left -= {*EXTRAS[best]}
    return chosen


def _named(modules: list[str]) -> str:
    packages = [_PACKAGES.get(module, re.sub("[._]", "-", module)) for module in modules]
    return f"the package{'' if len(packages) == 1 else 's'} {_listed(packages)}"


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
