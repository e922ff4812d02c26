"""An open cube."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.reader import ArrayReader, Backend
from flairhub.cube.seal import ROOT_FILE, OpenedStore, identity_of, read_root, seal_problem
from flairhub.cube.spec import FORMAT_VERSION, HAS_MASK, NO_DAY, NODATA, PATCHES, ROOT_KEY, VALID
from flairhub.cube.table import NUMBER_COLUMNS, TEXT_COLUMNS, AverageInfo, PatchTable, SeriesInfo, Validity
from flairhub.cube.zone_spec import ZONE_KEY
from flairhub.errors import CubeError, UsageError
from flairhub.modalities import MODALITIES, modality
from flairhub.shown import facts_html
from flairhub.timeseries import NO_DATE, CloudFilter

if TYPE_CHECKING:
    import xarray as xr

_ROOT_KEYS = ("plan", "n_patches", "modalities", "crs_wkt", "footprint_m")


class Cube:
    """A finished cube, open for reading. Make one with `open_cube`; threads may share it, it can be pickled.

    Attributes:
        path: Where the store is.
    """

    def __init__(self, path: str | Path, backend: Backend = "auto", identity: str | None = None):
        """Keep the place, which is looked at when it is needed; use `open_cube`.

        Args:
            path: Folder or URL.
            backend: See `open_cube`.
            identity: That of the cube that must be there; None = any.
        """
        self.path, self._backend, self._expected = path, backend, identity
        self._readers: dict[str, ArrayReader] = {}
        self._presence: dict[str, NDArray[np.bool_]] = {}
        self._series: dict[str, SeriesInfo] = {}
        self._validities: dict[str, Validity] = {}

    def __reduce__(self) -> Any:
        # Another process must not read another cube that has the same place by then.
        return Cube, (self.path, self._backend, self.identity)

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, str(self.path), self.identity

    @cached_property
    def _opened(self) -> tuple[Any, OpenedStore]:
        """The root group, and what tells whether the store is still the one that was opened."""
        group, raw = _open_root(self.path)
        check_attributes(self.path, dict(group.attrs), raw)
        file = Path(self.path).absolute() / ROOT_FILE if is_local(self.path) else None
        store = OpenedStore(str(self.path), self._expected or identity_of(raw), read_root(group), file)
        store.check()
        return group, store

    @property
    def _group(self) -> Any:
        return self._opened[0]

    @property
    def store(self) -> OpenedStore:
        """Tells whether the store is still the one that was opened."""
        return self._opened[1]

    @property
    def identity(self) -> str:
        """What tells this cube from any other, also from one of the same plan with other pixels (hexadecimal)."""
        return self.store.identity

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """The cube's own attributes (format, plan, codec, ...)."""
        return dict(self._group.attrs[ROOT_KEY])

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Names of the inputs, masks and labels it holds, in the registry's order."""
        stored = set(self.attributes["modalities"])
        return tuple(name for name in MODALITIES if name in stored)

    def __repr__(self) -> str:
        return f"<Cube {self.path}: {self.n_patches} patches, {', '.join(self.modalities)}>"

    def _repr_html_(self) -> str:
        facts = {"path": self.path, "modalities": ", ".join(self.modalities), **self.patches.facts()}
        return facts_html("Cube", facts)

    @cached_property
    def patches(self) -> PatchTable:
        """The patch table."""
        texts = {name: np.array(self._table(f"{PATCHES}/{name}").tolist(), dtype=np.str_) for name in TEXT_COLUMNS}
        numbers: dict[str, Any] = {name: self._table(f"{PATCHES}/{name}") for name in NUMBER_COLUMNS}
        attributes = self.attributes
        width, height = attributes["footprint_m"]
        columns: dict[str, Any] = texts | numbers
        return PatchTable(**columns, crs_wkt=attributes["crs_wkt"], footprint_m=(width, height))

    @cached_property
    def patch_ids(self) -> list[str]:
        """Ids in storage order."""
        return self.patches.patch_id.tolist()

    @property
    def n_patches(self) -> int:
        """Number of patches."""
        return int(self.attributes["n_patches"])

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {patch_id: position for position, patch_id in enumerate(self.patch_ids)}

    def indices(self, patch_ids: Iterable[str]) -> NDArray[np.int64]:
        """Return the positions of patches.

        Raises:
            CubeError: Some are not in the cube; the message names the first ones.
        """
        wanted = list(patch_ids)
        missing = [patch_id for patch_id in wanted if patch_id not in self._positions]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise CubeError(f"{self.path}: {len(missing)} of {len(wanted)} patches are not in the cube: {shown}")
        return np.array([self._positions[patch_id] for patch_id in wanted], dtype=np.int64)

    def info(self, name: str) -> Mapping[str, Any]:
        """Return a modality's attributes: kind, bands, gsd_m, size_px, statistics, invalid counts, ..."""
        return dict(self._modality_group(name).attrs)

    def present(self, name: str) -> NDArray[np.bool_]:
        """Return (patch,) which patches have the modality."""
        if name not in self._presence:
            self._modality_group(name)
            self._presence[name] = self._table(f"{name}/present")
        return self._presence[name]

    def array(self, name: str) -> ArrayReader:
        """Return the reader of a modality: images (patch, band, y, x), series (patch, time, band, y, x),
        labels (patch, level, y, x) uint8 with 255 = ignore."""
        return self._reader(f"{name}/data", name)

    def read(self, name: str, indices: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        """Return the patches (n, ...) at `indices` in native dtype; see `ArrayReader.read_into` for errors."""
        return self.array(name).read(indices)

    def read_into(self, name: str, indices: Sequence[int] | NDArray[Any], out: NDArray[Any]) -> None:
        """Read the patches at `indices` into `out` (n, ...); see `ArrayReader.read_into`."""
        self.array(name).read_into(indices, out)

    def read_valid(
        self,
        name: str,
        indices: Sequence[int] | NDArray[Any],
        channels: Sequence[int] | None = None,
        every_band: bool = False,
        values: NDArray[Any] | None = None,
    ) -> NDArray[np.bool_] | None:
        """Return where patches of an image or a series hold data, by the rule of `flairhub.validity.valid_pixels`.

        Args:
            name: Modality.
            indices: Positions in storage order. Patches that are recorded as missing need `values`.
            channels: 1-based bands that are used; None = all, as for series, whatever the network takes.
            every_band: An integer pixel, too, needs all its bands.
            values: What `read` gave for these patches; read here where it is needed and not given.

        Returns:
            (n, y, x) or (n, time, y, x) bool; None where every pixel holds data. Nothing is said of the padding behind
            a patch's dates.

        Raises:
            CubeError: Damaged or absent chunks and tables.
        """
        validity = self.validity(name)
        if validity.everywhere(self.array(name).dtype):
            return None
        return validity.of(self.read(name, indices) if values is None else values, indices, channels, every_band)

    def validity(self, name: str) -> Validity:
        """Return what says where the patches of a modality hold data, besides their numbers."""
        if name not in self._validities:
            self._validities[name] = self._read_validity(name)
        return self._validities[name]

    def _read_validity(self, name: str) -> Validity:
        arrays = self._modality_group(name).attrs.get("validity", [])
        nodata = self._table(f"{name}/{NODATA}") if NODATA in arrays else None
        if VALID not in arrays:
            return Validity(nodata, None, None)
        has_mask = self._table(f"{name}/{HAS_MASK}")
        return Validity(nodata, self._reader(f"{name}/{VALID}", name, has_mask), has_mask)

    def series(self, name: str) -> SeriesInfo:
        """Return the dates of a series or mask series.

        Raises:
            UsageError: The modality has no dates.
        """
        self._modality_group(name)
        if not modality(name).is_series:
            raise UsageError(f"{name} is no time series, it has no dates.")
        if name not in self._series:
            days = _days(self._table(f"{name}/date"))
            self._series[name] = SeriesInfo(self._table(f"{name}/n_dates"), days)
        return self._series[name]

    def averages(self, name: str) -> dict[str, AverageInfo]:
        """Return the stored period means of a modality by `monthly` / `semi-monthly`; empty when there are none."""
        group = self._modality_group(name)
        result = {}
        for average in group.attrs.get("averages", []):
            rule = group[average].attrs["cloud_filter"]
            result[average] = AverageInfo(
                average,
                None if rule is None else CloudFilter(**rule),
                self._table(f"{name}/{average}/n_observations"),
                _days(self._table(f"{name}/{average}/date")),
            )
        return result

    def average(self, name: str, average: str) -> ArrayReader:
        """Return the reader of stored period means: (patch, period, band, y, x) float32.

        0 in empty periods, NaN where a pixel has no observation in a period that has others.
        """
        stored = self._modality_group(name).attrs.get("averages", [])
        if average not in stored:
            raise CubeError(f"{self.path}: {name} has no {average} averages, found: {', '.join(stored) or 'none'}.")
        return self._reader(f"{name}/{average}/data", name)

    def read_average(self, name: str, average: str, indices: Sequence[int] | NDArray[Any]) -> NDArray[np.float32]:
        """Return stored period means (n, period, band, y, x) float32."""
        return self.average(name, average).read(indices)

    def to_xarray(self, name: str) -> xr.Dataset:
        """Return all patches of a modality as a lazy dataset, read through the same reader as training.

        Returns:
            `data` with the stored dimensions and dtype, in dask blocks of whole patches; `present` (patch), which is
            False where `data` holds the fill value because the patch is recorded as missing; `valid` (patch, y, x) or
            (patch, time, y, x), where images and series hold data, when some pixel does not; for series `n_dates`
            (patch) and `date` (patch, time). `patch` is an index of ids, with the coordinates domain, roi, row, col,
            x_min, y_max (upper left corner in the CRS of `spatial_ref`) and split.
        """
        from flairhub.cube.views import patches_dataset

        return patches_dataset(self, name)

    def __getitem__(self, name: str) -> xr.Dataset:
        """Return all patches of a modality: `cube["SENTINEL2_TS"].sel(patch=ID, band="B08")`; see `to_xarray`."""
        return self.to_xarray(name)

    @property
    def rois(self) -> list[str]:
        """Names of the regions of interest, as `roi` takes them: with their domain where several domains have one."""
        return self.patches.rois

    def roi(self, name: str) -> xr.DataTree:
        """Return a region of interest as lazy mosaics, one node per modality; see `flairhub.open_roi`."""
        from flairhub.cube.roi import open_roi

        return open_roi(self, name)

    def _reader(self, path: str, name: str, present: NDArray[np.bool_] | None = None) -> ArrayReader:
        if path not in self._readers:
            self._modality_group(name)
            folder = Path(self.path) / path if is_local(self.path) else None
            self._readers[path] = ArrayReader(
                self._node(path),
                name=path,
                store=str(self.path),
                patch_ids=self.patch_ids,
                present=self.present(name) if present is None else present,
                folder=folder,
                opened=self.store,
                backend=self._backend,
            )
        return self._readers[path]

    def _node(self, path: str) -> Any:
        try:
            return self._group[path]
        except (KeyError, ValueError, OSError) as error:
            raise CubeError(f"{self.path}: {path} is absent: {error}. Ingest again with --overwrite.") from error

    def _table(self, path: str) -> NDArray[Any]:
        """Read a small array whole; zarr would give fill values for a chunk that is gone, this does not."""
        try:
            array = self._group[path]
            self.store.check()
            if array.nchunks_initialized != array.nchunks:
                raise CubeError(
                    f"{self.path}: {path}: {array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks "
                    "are absent. Ingest again with --overwrite."
                )
            values = np.asarray(array[...])
            self.store.check()
            return values
        except (KeyError, ValueError, RuntimeError, OSError) as error:
            raise CubeError(f"{self.path}: {path} is damaged: {error}. Ingest again with --overwrite.") from error

    def _modality_group(self, name: str) -> Any:
        if name not in self.modalities:
            modality(name)
            raise CubeError(f"{self.path}: {name} is not in the cube, it holds {', '.join(self.modalities)}.")
        return self._group[name]


def open_cube(path: str | Path | Cube, backend: Backend = "auto", identity: str | None = None) -> Cube:
    """Open a finished cube for reading.

    Args:
        path: Folder of the store, or a URL that zarr-python can open; an open cube is returned as it is.
        backend: `direct` (shard files, local stores), `zarr` (zarr-python), `auto` = direct where possible.
        identity: That of the cube that must be there (`Cube.identity`); None = any.

    Raises:
        CubeError: Nothing there, no cube, not finished, damaged metadata, another format version or identity.
    """
    if isinstance(path, Cube):
        return path
    cube = Cube(path, backend, identity)
    cube.store.check()
    return cube


def _open_root(path: str | Path) -> tuple[Any, bytes]:
    """Open the root group of a store, and read its metadata file."""
    import zarr

    if is_local(path) and not os.path.isfile(Path(path) / ROOT_FILE):
        state = "is no cube (no zarr.json)" if os.path.exists(path) else "does not exist"
        raise CubeError(f"{path}: {state}. Make a cube with `flairhub ingest --cube {path}`.")
    try:
        group = zarr.open_group(str(path), mode="r")
        return group, read_root(group)()
    except Exception as error:
        raise CubeError(f"{path}: cannot be opened as a Zarr group: {error}") from error


def check_attributes(path: str | Path, attributes: Mapping[str, Any], raw: bytes) -> None:
    """Raise CubeError unless the root attributes are those of a finished cube of this format.

    Args:
        path: The store.
        attributes: Of its root group.
        raw: The file that holds them.
    """
    root = attributes.get(ROOT_KEY)
    if ZONE_KEY in attributes:
        raise CubeError(
            f"{path}: a zone cube (rasters of one area), not a cube of patches. "
            "It is for zonal YAMLs: `cube: PATH`, without `roi`."
        )
    if not isinstance(root, Mapping):
        raise CubeError(f"{path}: a Zarr store, but no cube of flairhub (attribute {ROOT_KEY!r} is missing).")
    if root.get("format") != FORMAT_VERSION:
        raise CubeError(
            f"{path}: cube format {root.get('format')!r}, this version reads format {FORMAT_VERSION}. "
            "Ingest again, or use the version of flairhub that wrote it."
        )
    problem = seal_problem(raw, root)
    if problem:
        raise CubeError(f"{path}: damaged metadata: {ROOT_FILE}: {problem}. Ingest again with --overwrite.")
    if root.get("status") != "complete":
        raise CubeError(
            f"{path}: the cube is not complete (status {root.get('status')!r}). Run the same `flairhub ingest` again: "
            "it continues where it stopped."
        )
    missing = [key for key in _ROOT_KEYS if key not in root]
    if missing:
        raise CubeError(f"{path}: damaged metadata: {', '.join(missing)} missing. Ingest again with --overwrite.")


def is_local(path: str | Path) -> bool:
    """True for a path of this machine's file system, False for a URL."""
    return "://" not in str(path)


def _days(stored: NDArray[np.int32]) -> NDArray[np.datetime64]:
    days = stored.astype(np.int64).astype("datetime64[D]")
    days[stored == NO_DAY] = NO_DATE
    return days
