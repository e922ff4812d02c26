"""Zone cubes, and regions of interest of patch cubes, as rasters of a zone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flairhub.cube import Cube, RoiLayer, open_cube, open_zone_cube, roi_layers
from flairhub.errors import CubeError, ZoneError
from flairhub.modalities import INPUTS, MODALITIES
from flairhub.zones.raster import Raster, Span

_MOST_OPEN = 16

Opened = TypeVar("Opened")


@dataclass(frozen=True, eq=False)
class ZoneCubeRaster(Raster):
    """One modality of a zone cube.

    Attributes:
        path: The cube.
        plan: Digest of what it was made from.
        changed_ns: Time of change.
        identity: What tells the cube from any other that may come to its place.
        masked: It stores a validity mask.
    """

    path: str = ""
    plan: str = ""
    changed_ns: int = 0
    identity: str | None = None
    masked: bool = False

    @property
    def where(self) -> str:
        return self.path

    @property
    def may_be_masked(self) -> bool:
        return self.masked

    def facts(self) -> dict[str, Any]:
        return {"path": self.path, "plan": self.plan, "mtime_ns": self.changed_ns}

    def is_changed(self) -> bool:
        return _changed_ns(self.path) != self.changed_ns

    def load(self, rows: Span, cols: Span) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        cube = _opened((self.path, self.identity), lambda: open_zone_cube(self.path, self.identity))
        return cube.read(self.name, rows, cols)


@dataclass(frozen=True, eq=False)
class RegionRaster(Raster):
    """One modality of a region of interest of a patch cube: a day counts where a patch has an image of it.

    Attributes:
        path: The cube.
        roi: The region.
        plan: Digest of what the cube was made from.
        changed_ns: Time of change.
        identity: What tells the cube from any other that may come to its place.
        whole: There is a patch, of a series of every day, everywhere, and no mask.
    """

    path: str = ""
    roi: str = ""
    plan: str = ""
    changed_ns: int = 0
    identity: str | None = None
    whole: bool = True

    @property
    def where(self) -> str:
        return self.path

    @property
    def may_be_masked(self) -> bool:
        return not self.whole

    def facts(self) -> dict[str, Any]:
        return {"path": self.path, "roi": self.roi, "plan": self.plan, "mtime_ns": self.changed_ns}

    def is_changed(self) -> bool:
        return _changed_ns(self.path) != self.changed_ns

    def load(self, rows: Span, cols: Span) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        # Of a region only what is read is laid out: another modality of it may have trouble of its own.
        key = self.path, self.roi, self.identity, self.name
        layer = _opened(key, self._layer)
        return layer.read(rows, cols), None if self.whole else layer.known(rows, cols)

    def _layer(self) -> RoiLayer:
        cube = open_cube(self.path, identity=self.identity)
        return region_layers(cube, self.roi, [self.name])[self.name]


_OPEN: OrderedDict[Any, Any] = OrderedDict()
_GUARD = threading.Lock()


def _opened(key: Any, make: Callable[[], Opened]) -> Opened:
    """Return what was opened under a key; a process opens it once."""
    with _GUARD:
        if key not in _OPEN:
            _OPEN[key] = make()
            while len(_OPEN) > _MOST_OPEN:
                _OPEN.popitem(last=False)
        _OPEN.move_to_end(key)
        opened: Opened = _OPEN[key]
        return opened


def zone_cube_rasters(path: Path, names: Sequence[str], without_mask: Collection[str]) -> dict[str, Raster]:
    """Return inputs of a zone cube and the quality masks of its series, by name.

    Args:
        path: The cube.
        names: Inputs.
        without_mask: Series whose quality mask is not wanted.

    Raises:
        CubeError: No such cube, or a damaged one.
        ZoneError: It does not hold an input.
    """
    cube = open_zone_cube(path)
    _check_stored(path, names, cube.layers)
    return {
        name: ZoneCubeRaster(
            name=name,
            geobox=layer.geobox,
            bands=layer.bands,
            dates=layer.dates,
            dtype=layer.dtype,
            nodata=layer.nodata,
            alpha=layer.alpha,
            path=str(cube.path),
            plan=str(cube.attributes["plan"]),
            changed_ns=_changed_ns(str(cube.path)),
            identity=cube.identity,
            masked=layer.has_mask,
        )
        for name in _wanted(names, without_mask, cube.layers)
        for layer in [cube.layers[name]]
    }


def region_rasters(path: Path, roi: str, names: Sequence[str], without_mask: Collection[str]) -> dict[str, Raster]:
    """Return inputs of a region of interest of a patch cube and the quality masks of its series, by name.

    Args:
        path: The cube.
        roi: As `AF-S1-27`, or `D012-2019_AF-S1-27` when several domains have it.
        names: Inputs.
        without_mask: Series whose quality mask is not wanted.

    Raises:
        CubeError: No such cube or region, a modality that is not there, patches that do not lie on one lattice.
        ZoneError: It does not hold an input.
    """
    cube = open_cube(path.absolute())
    _check_stored(path, names, cube.modalities)
    layers = region_layers(cube, roi, _wanted(names, without_mask, cube.modalities))
    return {
        name: RegionRaster(
            name=name,
            geobox=layer.geobox,
            bands=MODALITIES[name].bands,
            dates=layer.dates,
            dtype=str(cube.array(name).dtype),
            nodata=layer.nodata,
            path=str(cube.path),
            roi=roi,
            plan=str(cube.attributes["plan"]),
            changed_ns=_changed_ns(str(cube.path)),
            identity=cube.identity,
            whole=layer.is_whole,
        )
        for name, layer in layers.items()
    }


def region_layers(cube: Cube, roi: str, names: Sequence[str]) -> dict[str, RoiLayer]:
    """Lay out modalities of a region; a quality mask needs its series, and the series its mask.

    Raises:
        CubeError: A modality of which the region has nothing, or a mask that does not fit its series.
    """
    layers = roi_layers(cube, roi, names)
    for name, layer in layers.items():
        if not (layer.cells >= 0).any():
            raise CubeError(f"{cube.path}: ROI {roi} has no {name}: all its patches are recorded as missing.")
        series = MODALITIES[name].dates_of
        if series is not None and series in cube.modalities:
            _check_mask(cube, layer, roi_layers(cube, roi, [series])[series])
    return layers


def _check_mask(cube: Cube, mask: RoiLayer, series: RoiLayer) -> None:
    """Raise CubeError where the series has an image and its quality mask does not."""
    dates, given = cube.series(series.name), cube.series(mask.name)
    for position in series.cells[series.cells >= 0].tolist():
        n_dates = int(dates.n_dates[position])
        same = n_dates == given.n_dates[position] and np.array_equal(
            dates.dates[position, :n_dates], given.dates[position, :n_dates]
        )
        if not same:
            raise CubeError(
                f"{cube.path}: patch {cube.patch_ids[position]} has {n_dates} images of {series.name}, but "
                f"{given.n_dates[position]} of {mask.name}, or of other dates. Set filter_clouds: false for this ROI."
            )


def _wanted(names: Sequence[str], without_mask: Collection[str], stored: Collection[str]) -> list[str]:
    masks = [MODALITIES[name].quality_mask for name in names if name not in without_mask]
    return [*sorted(names, key=INPUTS.index), *(mask for mask in masks if mask is not None and mask in stored)]


def _check_stored(path: Path, names: Sequence[str], stored: Collection[str]) -> None:
    for name in names:
        if name not in stored:
            raise ZoneError(
                f"{path}: holds no {name}, only {', '.join(stored)}. Set modalities.inputs.{name}: false, or ingest it."
            )


def _changed_ns(path: str) -> int:
    """When the root metadata of a store were written, which every ingest does first and last; 0 for other places."""
    file = Path(path) / "zarr.json"
    return file.stat().st_mtime_ns if file.is_file() else 0
