"""Every error a user can meet, in one small tree.

Each message is one plain sentence: what was wrong, where, and what to do.
Programming mistakes are not here; they stay ``AssertionError`` and friends.

::

    SoftpromptError
    ├── ConfigError        a configuration file, a flag or a Python argument
    ├── DataError          a source, a column, a row, a template, a label
    ├── BaseModelError     finding, loading or using the frozen model
    │   └── WrongBaseError     an artifact that belongs to another base
    ├── ArtifactError      a saved prompt that is damaged, foreign or malformed
    ├── TrainingError      a run that cannot start, resume or go on
    │   └── DivergedError      the loss became NaN or ran away
    ├── ResourceError      disk, permissions, network, memory, a missing extra
    │   └── QueueFullError     a server that has more to do than it may promise
    └── CancelledJobError  an answer nobody waits for any more
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BaseModelError",
    "CancelledJobError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "QueueFullError",
    "ResourceError",
    "SoftpromptError",
    "TrainingError",
    "WrongBaseError",
]


class SoftpromptError(Exception):
    """Base class of everything softprompt raises for a user to read."""


class ConfigError(SoftpromptError):
    """A configuration file, a command-line flag or an argument is wrong."""


class DataError(SoftpromptError):
    """A data source, column, row, template or label is wrong."""


class BaseModelError(SoftpromptError):
    """The frozen model cannot be found, loaded or used."""


class WrongBaseError(BaseModelError):
    """An artifact was learnt on another base than the one it meets."""


class ArtifactError(SoftpromptError):
    """A saved prompt is damaged, malformed or not a prompt at all."""


class TrainingError(SoftpromptError):
    """A training run cannot start, resume or continue."""


class DivergedError(TrainingError):
    """The loss became NaN or ran away; the last good state was kept."""


class ResourceError(SoftpromptError):
    """Disk, permission, network, memory or an optional package is missing."""


class QueueFullError(ResourceError):
    """More work waits than the engine takes on; it may be asked again later."""


class CancelledJobError(SoftpromptError):
    """An answer was called off before it was finished."""
