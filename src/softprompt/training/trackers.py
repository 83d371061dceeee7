"""What teams watch runs with (Weights & Biases, MLflow, TensorBoard, ...), all through accelerate's trackers.

It knows their names and packages; it does not know what is followed, nor training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from softprompt.config import Config
from softprompt.errors import ConfigError, ResourceError
from softprompt.packages import require

__all__ = ["Trackers", "refuse_unfollowable"]

PROJECT = "softprompt"
"""What a run is filed under where a tracker has projects."""

_PACKAGES = {"comet_ml": "comet-ml"}
_RUN_NAME = {"wandb": "name", "mlflow": "run_name", "trackio": "name", "swanlab": "experiment_name"}
"""By tracker, the argument that takes the name of a run."""


def refuse_unfollowable(config: Config) -> None:
    """See before any work that every tracker is there, and that there is one run to follow.

    Raises:
        ConfigError: a search trains several runs at once.
        ResourceError: a package is not installed.
    """
    names = config.train.report_to or []
    if names:
        require("a tracker")
    if names and config.search is not None:
        raise ConfigError(
            "train.report_to follows one run, but [search] trains several at once; take one of them out."
        )
    for name in names:
        if find_spec(name) is None:
            package = _PACKAGES.get(name, name)
            raise ResourceError(
                f"train.report_to names {name}, which is not installed; install the package {package}, or "
                "leave it out."
            )


class Trackers:
    """Every tracker a run is followed by, told the same."""

    def __init__(self, names: Sequence[str], run: str, folder: Path, settings: Mapping[str, Any]) -> None:
        """Start them.

        Args:
            names: as accelerate calls them.
            run: the name of the run.
            folder: where those that keep files put them.
            settings: the configuration, by section.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._each: list[Any] = []
        for name in names:
            made = LOGGER_TYPE_TO_CLASS[name]
            options: dict[str, Any] = {_RUN_NAME[name]: run} if name in _RUN_NAME else {}
            if made.requires_logging_directory:
                options["logging_dir"] = str(folder)
            tracker = made(PROJECT, **options)
            tracker.start()
            tracker.store_init_configuration(_flat(settings))
            self._each.append(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell the numbers of one step."""
        for tracker in self._each:
            tracker.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run everywhere."""
        for tracker in self._each:
            tracker.finish()


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by dotted name; what is no number, truth or text is written as text."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
