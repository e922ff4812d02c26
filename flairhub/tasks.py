"""Nomenclatures: what can be predicted, one row per class."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from flairhub.errors import UsageError

IGNORE_INDEX = 255
"""Class index of pixels that have no label: never trained on, never scored, never class 0."""

MAX_CLASSES = IGNORE_INDEX
"""Classes are stored as uint8, of which 255 stands for none."""

_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that no name has: controls, surrogates, line and paragraph breaks."""

Language = Literal["en", "fr"]
"""Languages of the class names."""


@dataclass(frozen=True)
class LabelClass:
    """One class of a nomenclature.

    Attributes:
        index: Value in the label raster and in maps.
        name: English name.
        name_fr: French name.
        colour: Published colour as (red, green, blue), 0-255.
    """

    index: int
    name: str
    name_fr: str
    colour: tuple[int, int, int]

    @property
    def css(self) -> str:
        """The colour as `#rrggbb`."""
        return "#{:02x}{:02x}{:02x}".format(*self.colour)


@dataclass(frozen=True)
class Task:
    """What one head of a network predicts: a label set at one nomenclature level.

    Attributes:
        label: Published name of the label set; also the name of the task.
        level: Level of the nomenclature, 1-based (band of the label file).
        classes: Classes, `classes[i].index == i`.
    """

    label: str
    level: int
    classes: tuple[LabelClass, ...]

    def __post_init__(self) -> None:
        indices = [label_class.index for label_class in self.classes]
        if indices != list(range(len(indices))):
            raise UsageError(f"{self.label}: class indices must be 0..{len(indices) - 1} in order, got {indices}.")
        if not 1 <= len(indices) <= MAX_CLASSES:
            raise UsageError(f"{self.label}: got {len(indices)} classes, expected 1 to {MAX_CLASSES}.")

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """English class names in index order."""
        return self.names_in("en")

    def names_in(self, language: Language) -> tuple[str, ...]:
        """Class names in index order, in one of the two languages."""
        return tuple(row.name_fr if language == "fr" else row.name for row in self.classes)


def name_problem(names: Mapping[int, str]) -> str:
    """Return what is wrong with class names, as a sentence; empty when nothing is.

    Scores, legends and tables go by name: each class needs one of its own, of characters that a file can hold.
    """
    seen: dict[str, int] = {}
    for index, name in names.items():
        if not isinstance(name, str) or not name.strip():
            return f"class {index}: got {name!r}, expected a name."
        wrong = sorted({character for character in name if unicodedata.category(character) in _NO_TEXT})
        if wrong:
            return f"class {index}: {name!r} holds the control character {wrong[0]!r}."
        key = " ".join(unicodedata.normalize("NFC", name).casefold().split())
        if key in seen:
            return f"classes {seen[key]} and {index} are both called {name!r}: names must differ."
        seen[key] = index
    return ""


def parse_colour(text: str) -> tuple[int, int, int]:
    """Return (red, green, blue), 0-255, of `#rrggbb`.

    Raises:
        UsageError: The text is no such colour.
    """
    try:
        if len(text) != 7 or text[0] != "#":
            raise ValueError
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    except ValueError:
        raise UsageError(f"colour: got {text!r}, expected #rrggbb.") from None


def _classes(rows: tuple[tuple[str, str, str], ...]) -> tuple[LabelClass, ...]:
    return tuple(LabelClass(i, en, fr, parse_colour(colour)) for i, (en, fr, colour) in enumerate(rows))


_COSIA = _classes(
    (
        ("building", "bâtiment", "#db0e9a"),
        ("greenhouse", "serre", "#9999ff"),
        ("swimming_pool", "piscine", "#3de6eb"),
        ("impervious surface", "zone imperméable", "#f80c00"),
        ("pervious surface", "zone perméable", "#938e7b"),
        ("bare soil", "sol nu", "#a97101"),
        ("water", "eau", "#1553ae"),
        ("snow", "neige", "#ffffff"),
        ("herbaceous vegetation", "surface herbacée", "#55ff00"),
        ("agricultural land", "culture", "#fff30d"),
        ("plowed land", "terre labourée", "#e4df7c"),
        ("vineyard", "vigne", "#660082"),
        ("deciduous", "feuillu", "#46e483"),
        ("coniferous", "conifère", "#194a26"),
        ("brushwood", "broussaille", "#f3a60d"),
        ("clear cut", "coupe", "#8ab3a0"),
        ("ligneous", "ligneux", "#c5dc42"),
        ("mixed", "mixte", "#6b714f"),
        ("undefined", "indéterminé", "#000000"),
    )
)

_LPIS_23 = _classes(
    (
        ("Grasses", "Herbe prédominante", "#92d050"),
        ("Wheat", "Blé", "#d7e600"),
        ("Barley", "Orge", "#e0e000"),
        ("Maize", "Maïs", "#fff100"),
        ("Other cereals", "Autres céréales", "#ffff00"),
        ("Rice", "Riz", "#e8e8e8"),
        ("Hemp/Flax/Tobacco", "Lin/Chanvre/Tabac", "#dceaf7"),
        ("Sunflower", "Tournesol", "#d29ead"),
        ("Rapeseed", "Colza", "#d29ed0"),
        ("Other oilseed crops", "Autres oléagineux", "#ffbe99"),
        ("Soy", "Soja", "#ffc000"),
        ("Other protein crops", "Autres protéagineux", "#ff9000"),
        ("Fodder legumes", "Légumineuse fourragères", "#009999"),
        ("Beetroots", "Betterave", "#808000"),
        ("Potatoes", "Pomme de terre", "#a7a700"),
        ("Other arable crops", "Autres arables", "#89896d"),
        ("Vineyard", "Vigne", "#f2cfee"),
        ("Olive groves", "Oliveraie", "#6f6633"),
        ("Fruit orchards", "Verger fruits", "#ac8141"),
        ("Nut orchards", "Verger noix", "#996633"),
        ("Other permanent crops", "Autres pérenne", "#80c1d7"),
        ("Mixed crops", "Mélange", "#000000"),
        ("Background", "Autres", "#000000"),
    )
)


def _spread_colour(index: int, count: int) -> tuple[int, int, int]:
    """Evenly spaced hues for nomenclatures without published colours."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(index / count, 0.65, 0.95 if index % 2 else 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def numbered_classes(count: int) -> tuple[LabelClass, ...]:
    """Classes of a nomenclature whose names are not published: `class 0`, `class 1`, ..."""
    return tuple(LabelClass(i, f"class {i}", f"classe {i}", _spread_colour(i, count)) for i in range(count))


_DEFAULTS: Mapping[tuple[str, int], tuple[LabelClass, ...]] = MappingProxyType(
    {
        ("AERIAL_LABEL-COSIA", 1): _COSIA,
        ("ALL_LABEL-LPIS", 1): _LPIS_23,
        ("ALL_LABEL-LPIS", 2): numbered_classes(31),
        ("ALL_LABEL-LPIS", 3): numbered_classes(46),
    }
)


def default_task(label: str, level: int = 1) -> Task:
    """Return the published task of a label set.

    Args:
        label: `AERIAL_LABEL-COSIA` (one level) or `ALL_LABEL-LPIS` (three levels).
        level: Nomenclature level, 1-based.

    Raises:
        UsageError: The label set has no such level.
    """
    try:
        return Task(label, level, _DEFAULTS[label, level])
    except KeyError:
        known = ", ".join(f"{name} level {number}" for name, number in _DEFAULTS)
        raise UsageError(f"no nomenclature for {label} level {level}. Known: {known}.") from None


def level_sizes(label: str) -> tuple[int, ...]:
    """Number of classes of each level of a label set, level 1 first; empty for unknown label sets."""
    return tuple(len(classes) for (name, _), classes in _DEFAULTS.items() if name == label)


def named_task(label: str, level: int, names: Mapping[int, str]) -> Task:
    """Return a task whose class names come from a configuration.

    Published classes keep their colour and French name; names that differ from the published ones replace both.
    Classes beyond the published ones get spread colours.

    Args:
        label: Name of the label set.
        level: Nomenclature level, 1-based.
        names: Class name by index; empty means the published nomenclature.

    Raises:
        UsageError: The indices are not 0..N-1.
    """
    if not names:
        return default_task(label, level)
    known = {row.index: row for row in _DEFAULTS.get((label, level), ())}
    if sorted(names) != list(range(len(names))):
        raise UsageError(f"{label}: class indices must be 0..{len(names) - 1}, got {sorted(names)}.")
    classes = []
    for index in range(len(names)):
        row, name = known.get(index), names[index]
        colour = row.colour if row else _spread_colour(index, len(names))
        name_fr = row.name_fr if row and row.name.casefold() == name.casefold() else name
        classes.append(LabelClass(index, name, name_fr, colour))
    return Task(label, level, tuple(classes))
