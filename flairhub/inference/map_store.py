"""The work folder of a map in the making: the map as a Zarr store that blocks are written to, and a journal of them.

A killed run continues from here. Every block fills whole chunks, so that blocks can be written in any order, by threads
or machines; what is in the journal is complete, with its checksum.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from flairhub.errors import OutputExistsError, ZoneError
from flairhub.jobs import Journal, sweep, write_text, writer_lock

Block = tuple[int, int]
Span = tuple[int, int]


@dataclass(frozen=True)
class BlockRecord:
    """A finished block.

    Attributes:
        crc: crc32 of its pixels, by array of the store.
        counts: Output pixels per class, by task.
        nodata: Output pixels without data; those outside the area of interest do not count.
        not_finite: Output pixels with data for which the network gave no finite logits, by task.
    """

    crc: Mapping[str, int]
    counts: Mapping[str, tuple[int, ...]]
    nodata: int
    not_finite: Mapping[str, int] = field(default_factory=dict)

    def to_json(self, block: Block) -> dict[str, Any]:
        """Return a JSON-ready dictionary with the place of the block, the inverse of `from_json`."""
        return {
            "block": list(block),
            "crc": dict(self.crc),
            "counts": {k: list(v) for k, v in self.counts.items()},
            "nodata": self.nodata,
            "not_finite": dict(self.not_finite),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> BlockRecord:
        """Build from the dictionary of `to_json`."""
        counts = {task: tuple(numbers) for task, numbers in fields["counts"].items()}
        return cls(dict(fields["crc"]), counts, int(fields["nodata"]), dict(fields["not_finite"]))


@dataclass(frozen=True)
class MapStore:
    """A georeferenced map on disk that blocks are written to in any order: small enough to travel with every job.

    A Zarr v3 group as xarray writes it, one array per task (and confidence, probabilities, validity) of the map's exact
    shape, with coordinates and CRS. No chunk lies in two blocks.

    Attributes:
        path: The group.
        row_edges: Block edges along y, output pixels.
        col_edges: Block edges along x.
    """

    path: str
    row_edges: tuple[int, ...]
    col_edges: tuple[int, ...]

    def create(self, maps: xr.Dataset) -> None:
        """Write the metadata and the coordinates of a map, whose variables say in their encoding how they are stored:
        `chunks`, which divide all edges, and `fill_value`, what is read where nothing was written."""
        for variable in maps.data_vars.values():
            variable.encoding["compressors"] = (ZstdCodec(level=1),)
        maps.to_zarr(self.path, mode="w", compute=False, zarr_format=3, consolidated=False)

    def write(self, name: str, block: Block, values: NDArray[np.uint8]) -> int:
        """Write a block, (y, x) or (class, y, x), as whole chunks and return its crc32."""
        self._array(name, "r+")[self._place(block)] = values
        return checksum_of(values)

    def checksum(self, name: str, block: Block) -> int | None:
        """Return the crc32 of a block as it is stored; None when it cannot be read."""
        try:
            return checksum_of(np.asarray(self._array(name, "r")[self._place(block)]))
        except (OSError, ValueError, RuntimeError):
            return None

    def read(self, name: str, rows: Span, cols: Span) -> NDArray[np.uint8]:
        """Return a region of the map, (y, x) or (class, y, x), in output pixels; from however many blocks.

        Raises:
            ZoneError: A chunk is damaged.
        """
        try:
            return np.asarray(self._array(name, "r")[..., slice(*rows), slice(*cols)])
        except (OSError, ValueError, RuntimeError) as error:
            raise ZoneError(
                f"{self.path}: {name} is damaged in rows {rows[0]}-{rows[1] - 1}, columns {cols[0]}-{cols[1] - 1} "
                f"({error}). Run again to repair it."
            ) from error

    def _array(self, name: str, mode: Any) -> Any:
        return zarr.open_array(self.path, path=name, mode=mode)

    def extent(self, block: Block) -> tuple[Span, Span]:
        """First row and one past the last, and the same for columns, of a block."""
        row, col = block
        return (self.row_edges[row], self.row_edges[row + 1]), (self.col_edges[col], self.col_edges[col + 1])

    def _place(self, block: Block) -> tuple[Any, slice, slice]:
        rows, cols = self.extent(block)
        return ..., slice(*rows), slice(*cols)


def checksum_of(values: NDArray[np.uint8]) -> int:
    """crc32 of a block, (y, x) or (class, y, x)."""
    return zlib.crc32(np.ascontiguousarray(values).data)


@dataclass
class Work:
    """The work folder of a map, open for the one who holds its lock.

    Attributes:
        folder: The folder; removed when the map is finished.
        key: What the blocks are made of: model, configuration, data, block layout.
        store: The map.
        done: Finished blocks.
    """

    folder: Path
    key: str
    store: MapStore
    done: dict[Block, BlockRecord] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: Path,
        key: str,
        store: MapStore,
        maps: xr.Dataset,
        *,
        resume: bool,
        discard_other: bool,
        lock: bool = True,
    ) -> Iterator[Self]:
        """Create a work folder or continue one.

        Args:
            folder: The folder.
            key: See the class.
            store: Where its blocks go.
            maps: The map to make there, see `MapStore.create`.
            resume: Continue what is there; False starts over.
            discard_other: Throw away what another model or configuration has begun; otherwise refuse.
            lock: Use the locks of the file system; see `flairhub.jobs.writer_lock`.

        Raises:
            LockError: Another process is at work here, or the file system has no locks.
            OutputExistsError: Something else has been begun here.
        """
        with writer_lock(folder, "map", lock):
            work = cls(folder, key, store)
            work._prepare(maps, resume, discard_other)
            yield work

    def _prepare(self, maps: xr.Dataset, resume: bool, discard_other: bool) -> None:
        begun = stored_key(self.folder)
        if begun is not None and begun != self.key and resume and not discard_other:
            raise OutputExistsError(
                f"{self.folder} holds an unfinished map of another model, configuration or data. Finish that run with "
                f"its own configuration, or drop it with --overwrite."
            )
        if begun != self.key or not resume:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.store.create(maps)
            write_text(self.folder / "key.json", json.dumps({"key": self.key}))
        sweep(self.folder)
        for fields in self._journal.read():
            block, record = tuple(fields["block"]), BlockRecord.from_json(fields)
            if all(self.store.checksum(name, block) == crc for name, crc in record.crc.items()):
                self.done[block] = record
        self._journal.rewrite(record.to_json(block) for block, record in self.done.items())

    @property
    def _journal(self) -> Journal:
        return Journal(self.folder / "journal.jsonl")

    def record(self, block: Block, record: BlockRecord) -> None:
        """Add a finished block to the journal."""
        self._journal.append(record.to_json(block))
        self.done[block] = record

    def read(self, array: str, rows: Span, cols: Span) -> NDArray[np.uint8]:
        """Return a region of the map; see `MapStore.read`."""
        return self.store.read(array, rows, cols)

    def checksums(self, array: str) -> list[tuple[Span, Span, int]]:
        """Rows, columns and checksum of all blocks of an array, in their order.

        Blocks outside the area of interest were never written: theirs is that of what is read in their place.
        """
        regions = []
        for block in product(range(len(self.store.row_edges) - 1), range(len(self.store.col_edges) - 1)):
            rows, cols = self.store.extent(block)
            record = self.done.get(block)
            checksum = checksum_of(self.read(array, rows, cols)) if record is None else record.crc[array]
            regions.append((rows, cols, checksum))
        return regions

    def remove(self) -> None:
        """Delete the folder: the map is in its place."""
        # The key goes first: what a kill leaves of the rest is then recognised as nothing.
        (self.folder / "key.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder)


def stored_key(folder: Path) -> str | None:
    """Return the key of the work begun in a folder; None when there is none."""
    try:
        return str(json.loads((folder / "key.json").read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
