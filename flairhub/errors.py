"""Exceptions of flairhub.

Library code raises them; only `flairhub.cli` turns them into a message and an exit code
(1 = failure, 2 = usage or configuration).
"""

from __future__ import annotations

from collections.abc import Sequence


class FlairhubError(Exception):
    """Base class: a failure that has a message for the user instead of a traceback."""

    exit_code = 1


class UsageError(FlairhubError):
    """The call itself is wrong: unknown name, contradictory options."""

    exit_code = 2


class OutputExistsError(UsageError):
    """An output exists already and overwriting was not asked for."""


class ConfigError(UsageError):
    """One or several problems in a configuration.

    Attributes:
        problems: One sentence per problem, each starting with the full path of its key.
    """

    def __init__(self, source: str, problems: Sequence[str]):
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{source}: {count}\n{lines}")


class DataError(FlairhubError):
    """A source file (raster, table, label, date) is missing, damaged or not what was declared."""


class CubeError(FlairhubError):
    """A cube is missing, incomplete, damaged, of another format, or asked for what it does not hold."""


class WeightsError(FlairhubError):
    """Weights or a bundle are missing, damaged, or do not fit the network."""


class ZoneError(FlairhubError):
    """The rasters of a zone do not fit each other or the model."""


class TrainingError(FlairhubError):
    """Training or evaluation cannot go on."""


class JobError(FlairhubError):
    """A job killed its workers again and again, or nobody is left to do it."""


class OutputError(FlairhubError):
    """The system refuses to write: a full disk, a missing right, a name that cannot be."""


class LockError(FlairhubError):
    """Another process is writing the same thing, or the file system cannot say whether one is."""
