"""The work folder of a map in the making: finished blocks in a Zarr store and a journal of them.

A killed run continues from here. Every block fills one chunk of one array per task, so that blocks can be written
in any order, by threads or machines; what is in the journal is complete, with its checksum.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from flairhub.errors import OutputExistsError, ZoneError
from flairhub.jobs import Journal, sweep, write_text, writer_lock

Block = tuple[int, int]


@dataclass(frozen=True)
class BlockRecord:
    """A finished block.

    Attributes:
        crc: crc32 of its chunk, by task.
        counts: Output pixels per class, by task.
        nodata: Output pixels without data.
    """

    crc: Mapping[str, int]
    counts: Mapping[str, tuple[int, ...]]
    nodata: int

    def to_json(self, block: Block) -> dict[str, Any]:
        """Return a JSON-ready dictionary with the place of the block, the inverse of `from_json`."""
        return {
            "block": list(block),
            "crc": dict(self.crc),
            "counts": {k: list(v) for k, v in self.counts.items()},
            "nodata": self.nodata,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> BlockRecord:
        """Build from the dictionary of `to_json`."""
        counts = {task: tuple(numbers) for task, numbers in fields["counts"].items()}
        return cls(dict(fields["crc"]), counts, int(fields["nodata"]))


@dataclass(frozen=True)
class BlockStore:
    """Where blocks lie: small enough to travel with every job.

    Attributes:
        path: Zarr group, one array (band, y, x) uint8 per task, one chunk per block.
        row_edges: Block edges along y, output pixels.
        col_edges: Block edges along x.
        n_bands: Bands by task.
        fill: Value of nothing written, by task.
    """

    path: str
    row_edges: tuple[int, ...]
    col_edges: tuple[int, ...]
    n_bands: Mapping[str, int]
    fill: int = 255

    @property
    def block_shape(self) -> tuple[int, int]:
        """Largest block: the chunk along y and x."""
        return int(np.diff(self.row_edges).max()), int(np.diff(self.col_edges).max())

    def create(self) -> None:
        """Write the metadata of all arrays."""
        height, width = self.block_shape
        shape = (len(self.row_edges) - 1) * height, (len(self.col_edges) - 1) * width
        for task, n_bands in self.n_bands.items():
            zarr.create_array(
                self.path,
                name=task,
                shape=(n_bands, *shape),
                chunks=(n_bands, height, width),
                dtype="uint8",
                fill_value=self.fill,
                compressors=BloscCodec(cname="zstd", clevel=1, shuffle="noshuffle"),
            )

    def write(self, task: str, block: Block, values: NDArray[np.uint8]) -> int:
        """Write a block, (band, y, x), as one whole chunk and return its crc32."""
        chunk = np.full((self.n_bands[task], *self.block_shape), self.fill, dtype=np.uint8)
        chunk[:, : values.shape[1], : values.shape[2]] = values
        self._array(task, "r+")[self._place(block)] = chunk
        return zlib.crc32(chunk.tobytes())

    def checksum(self, task: str, block: Block) -> int | None:
        """Return the crc32 of a block as it is stored; None when it cannot be read."""
        try:
            return zlib.crc32(np.asarray(self._array(task, "r")[self._place(block)]).tobytes())
        except (OSError, ValueError, RuntimeError):
            return None

    def read(self, task: str, rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[np.uint8]:
        """Return a region of the map, (band, y, x), in output pixels; from however many blocks."""
        array, (height, width) = self._array(task, "r"), self.block_shape
        result = np.empty((self.n_bands[task], rows[1] - rows[0], cols[1] - cols[0]), dtype=np.uint8)
        for row, top, bottom in _overlaps(self.row_edges, *rows):
            for col, left, right in _overlaps(self.col_edges, *cols):
                y, x = row * height - self.row_edges[row], col * width - self.col_edges[col]
                part = np.asarray(array[:, top + y : bottom + y, left + x : right + x])
                result[:, top - rows[0] : bottom - rows[0], left - cols[0] : right - cols[0]] = part
        return result

    def _array(self, task: str, mode: Any) -> Any:
        return zarr.open_array(self.path, path=task, mode=mode)

    def _place(self, block: Block) -> tuple[slice, slice, slice]:
        (row, col), (height, width) = block, self.block_shape
        return slice(None), slice(row * height, (row + 1) * height), slice(col * width, (col + 1) * width)


def _overlaps(edges: tuple[int, ...], first: int, last: int) -> list[tuple[int, int, int]]:
    """Blocks that overlap `[first, last)`, each with the shared range."""
    low = int(np.searchsorted(edges, first, side="right")) - 1
    high = int(np.searchsorted(edges, last, side="left"))
    return [(i, max(first, edges[i]), min(last, edges[i + 1])) for i in range(low, high)]


@dataclass
class Work:
    """The work folder of a map, open for the one who holds its lock.

    Attributes:
        folder: The folder; removed when the map is finished.
        key: What the blocks are made of: model, configuration, data, block layout.
        store: The blocks.
        done: Finished blocks.
    """

    folder: Path
    key: str
    store: BlockStore
    done: dict[Block, BlockRecord] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(
        cls, folder: Path, key: str, store: BlockStore, *, resume: bool, discard_other: bool, lock: bool = True
    ) -> Iterator[Self]:
        """Create a work folder or continue one.

        Args:
            folder: The folder.
            key: See the class.
            store: Where its blocks go.
            resume: Continue what is there; False starts over.
            discard_other: Throw away what another model or configuration has begun; otherwise refuse.
            lock: Use the locks of the file system; see `flairhub.jobs.writer_lock`.

        Raises:
            LockError: Another process is at work here, or the file system has no locks.
            OutputExistsError: Something else has been begun here.
        """
        with writer_lock(folder, "map", lock):
            work = cls(folder, key, store)
            work._prepare(resume, discard_other)
            yield work

    def _prepare(self, resume: bool, discard_other: bool) -> None:
        begun = found_key(self.folder)
        if begun is not None and begun != self.key and resume and not discard_other:
            raise OutputExistsError(
                f"{self.folder} holds an unfinished map of another model, configuration or data. Finish that run with "
                f"its own configuration, or drop it with --overwrite."
            )
        if begun != self.key or not resume:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.store.create()
            write_text(self.folder / "key.json", json.dumps({"key": self.key}))
        sweep(self.folder)
        for fields in self._journal.read():
            block, record = tuple(fields["block"]), BlockRecord.from_json(fields)
            if all(self.store.checksum(task, block) == crc for task, crc in record.crc.items()):
                self.done[block] = record
        self._journal.rewrite(record.to_json(block) for block, record in self.done.items())

    @property
    def _journal(self) -> Journal:
        return Journal(self.folder / "journal.jsonl")

    def record(self, block: Block, record: BlockRecord) -> None:
        """Add a finished block to the journal."""
        self._journal.append(record.to_json(block))
        self.done[block] = record

    def check_stored(self) -> None:
        """Raise ZoneError when a finished block is no longer what it was."""
        for block, record in self.done.items():
            for task, crc in record.crc.items():
                if self.store.checksum(task, block) != crc:
                    raise ZoneError(f"{self.store.path}: block {block} of {task} is damaged. Run again to repair it.")

    def remove(self) -> None:
        """Delete the folder: the map is in its place."""
        # The key goes first: what a kill leaves of the rest is then recognised as nothing.
        (self.folder / "key.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder)


def found_key(folder: Path) -> str | None:
    """Return the key of the work begun in a folder; None when there is none."""
    try:
        return str(json.loads((folder / "key.json").read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
