"""Building blocks of the configuration schemas: the frozen section and the types of its values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    model_validator,
)
from pydantic_core import PydanticCustomError

from flairhub.errors import UsageError
from flairhub.modalities import INPUTS, LABELS
from flairhub.timeseries import parse_ref_date

WEIGHTS_SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
"""Suffixes of weights files; weights of any other name are a bundle folder, which describes itself."""
WEIGHTS_KINDS = f"{', '.join(WEIGHTS_SUFFIXES[:-1])} or {WEIGHTS_SUFFIXES[-1]}"
"""The suffixes in a sentence."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class FrozenDict(dict[Key, Value]):
    """A dictionary that cannot be edited in place; equal to a plain one with the same content."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a configuration is frozen: load another one with overrides instead of editing it.")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]
    __ior__ = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by content: dask sends configurations to workers."""
        return type(self), (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenDict[Key, Value]:
        return self


class Section(BaseModel):
    """A mapping of the configuration with known keys. A key without a value has its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_means_default(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        # A key that YAML reads as a number or a date is unknown like any other.
        texts = {str(key): value for key, value in data.items()}
        return {key: value for key, value in texts.items() if value is not None or key not in cls.model_fields}


def is_weights_file(path: Path) -> bool:
    """Tell a weights file from a bundle folder by its name, without opening it."""
    return path.suffix.lower() in WEIGHTS_SUFFIXES


def expected(what: str) -> PydanticCustomError:
    """Return the error of a value that is not `what`, a noun phrase."""
    return PydanticCustomError("expected", "{what}", {"what": what})


def unknown_name(what: str, known: tuple[str, ...]) -> PydanticCustomError:
    """Return the error of a name that is not among `known`."""
    return PydanticCustomError("unknown_name", "unknown {what}", {"what": what, "known": list(known)})


def _without_empty(value: Any) -> Any:
    if value is None:
        return {}
    return {key: entry for key, entry in value.items() if entry is not None} if isinstance(value, Mapping) else value


def _none_if_blank(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


def _as_crs(value: Any) -> Any:
    """A bare number is an EPSG code."""
    return f"EPSG:{value}" if isinstance(value, int) and not isinstance(value, bool) else _none_if_blank(value)


def _as_path(value: Any) -> Any:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise expected("a path (quote it when it looks like a number)")
    return Path(value)


def _as_list(value: Any) -> Any:
    """Numbers may be written without brackets where a list of one is meant."""
    return (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _as_text_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _check_ref_date(value: str) -> str:
    try:
        parse_ref_date(value)
    except UsageError:
        raise expected("a day of every year as MM-DD, such as 05-15") from None
    return value


def _check_plain_name(value: str) -> str:
    if not value.strip() or value in (".", "..") or set(value) & set('/\\:*?"<>|\0\n'):
        raise expected("a plain name for files: no slashes, colons or wildcards")
    return value


def _one_of(known: tuple[str, ...], what: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in known:
            raise unknown_name(what, known)
        return value

    return check


def _each_input(default: Any) -> Callable[[Mapping[str, Any]], FrozenDict[str, Any]]:
    def fill(value: Mapping[str, Any]) -> FrozenDict[str, Any]:
        return FrozenDict({name: value.get(name, default) for name in INPUTS})

    return fill


def _check_channels(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or min(value) < 1 or len(set(value)) != len(value):
        raise expected("a list of different band numbers, the first band is 1")
    return value


Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Number = Annotated[float, Strict()]
Positive = Annotated[float, Strict(), Field(gt=0)]
NonNegative = Annotated[float, Strict(), Field(ge=0)]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1)]
Percent = Annotated[float, Strict(), Field(ge=0, le=100)]
LARGEST_COUNT = 10**6
"""More of anything (patches of a batch, pixels of a window, epochs, threads, channels) is a mistake in writing."""
Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST_COUNT)]
CountOrZero = Annotated[int, Strict(), Field(ge=0, le=LARGEST_COUNT)]
BatchSize = Annotated[int, Strict(), Field(ge=1, le=2**16)]
Processes = Annotated[int, Strict(), Field(ge=1, le=2**12)]
ProcessesOrZero = Annotated[int, Strict(), Field(ge=0, le=2**12)]
FilePath = Annotated[Path, BeforeValidator(_as_path)]
OptionalPath = Annotated[FilePath | None, BeforeValidator(_none_if_blank)]
OptionalText = Annotated[Text | None, BeforeValidator(_none_if_blank)]
CrsName = Annotated[Text | None, BeforeValidator(_as_crs)]
PlainName = Annotated[Text, AfterValidator(_check_plain_name)]
RefDate = Annotated[Text, AfterValidator(_check_ref_date)]


def _check_band_names(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or len({name.casefold() for name in value}) != len(value) or not all(map(str.strip, value)):
        raise expected("a list of different band names, one per band of the file")
    return value


BandNames = Annotated[tuple[Text, ...], BeforeValidator(_as_text_list), AfterValidator(_check_band_names)]

InputName = Annotated[Text, AfterValidator(_one_of(INPUTS, "modality"))]
LabelName = Annotated[Text, AfterValidator(_one_of(LABELS, "label set"))]
BandName = Text

FrozenMapping = Annotated[dict[Key, Value], BeforeValidator(_without_empty), AfterValidator(FrozenDict)]
InputFlags = Annotated[dict[InputName, Flag], BeforeValidator(_without_empty), AfterValidator(_each_input(False))]
InputFractions = Annotated[dict[InputName, Fraction], BeforeValidator(_without_empty), AfterValidator(_each_input(0.0))]
Channels = Annotated[tuple[Annotated[int, Strict()], ...], BeforeValidator(_as_list), AfterValidator(_check_channels)]
ClassNames = FrozenMapping[CountOrZero, Text]
ClassWeights = FrozenMapping[CountOrZero, NonNegative]

AverageChoice = Literal[False, "monthly", "semi-monthly"]
FillChoice = Literal["masked", "published"]
NormChoice = Literal["custom", "scaling", "without"]


def _check_statistics(value: Any) -> Any:
    """Accept a list of numbers (per channel or band), one number, or a mapping of band name to number."""
    value = _as_list(value)
    if isinstance(value, Mapping):
        if value and all(isinstance(key, str) and _is_number(entry) for key, entry in value.items()):
            return FrozenDict({key: float(entry) for key, entry in value.items()})
    elif isinstance(value, (list, tuple)) and value and all(_is_number(entry) for entry in value):
        return tuple(float(entry) for entry in value)
    raise expected("a list of finite numbers, or a mapping of band name to number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


Statistics = Annotated[Any, BeforeValidator(_check_statistics)]
"""`tuple[float, ...]`, or `FrozenDict[str, float]` by band name."""
