"""Ray, where it is installed, imported once: kept on loopback, and without its own warnings."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # it reads these as it is imported
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
with warnings.catch_warnings(), contextlib.suppress(ImportError):
    warnings.simplefilter("ignore")
    importlib.import_module("ray.serve.schema")
