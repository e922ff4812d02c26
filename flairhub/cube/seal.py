"""The seal of a store: by it a reader knows that root metadata is whole and the store still the one that was opened.

A finished store names in its root attributes the SHA-256 of its journal (`contents`), which holds the checksum of every
other file, and the SHA-256 of its own root metadata file (`digest`), taken while 64 zeros stood in the digest's place.
Stores without either were written before there was a seal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flairhub.errors import CubeError
from flairhub.jobs import Journal

ROOT_FILE = "zarr.json"
"""Metadata of the root group, with that of all groups and arrays below it."""

CONTENTS, DIGEST = "contents", "digest"
"""Root attributes of the seal."""

METADATA_JOB = "metadata"
"""Record in the journal of all files that no shard's record names: metadata, tables, report."""

_NO_DIGEST = "0" * 64
_PLACE = re.compile(rb'"digest": "([0-9a-f]{64})"')
_KEPT = ("job", "state", "files", "skipped")


def sealed(document: Mapping[str, Any], key: str, contents: str) -> bytes:
    """Return the root metadata file of a finished store.

    Args:
        document: The metadata, without a seal.
        key: Root attribute that makes it a store of ours.
        contents: From `contents_digest`.
    """
    attributes = document["attributes"]
    own = {**attributes[key], CONTENTS: contents, DIGEST: _NO_DIGEST}
    raw = json.dumps({**document, "attributes": {**attributes, key: own}}, indent=2).encode()
    return _with_digest(raw, hashlib.sha256(raw).hexdigest())


def _with_digest(raw: bytes, digest: str) -> bytes:
    return _PLACE.sub(b'"%s": "%s"' % (DIGEST.encode(), digest.encode()), raw)


def unsealed(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the root metadata without its seal, as it is while a store is written."""
    attributes = document["attributes"]
    own = {name: value for name, value in attributes[key].items() if name not in (CONTENTS, DIGEST)}
    return {**document, "attributes": {**attributes, key: own}}


def seal_problem(raw: bytes, own: Mapping[str, Any]) -> str:
    """Return what is wrong with the root metadata of a store, empty when nothing is or it has no seal.

    Args:
        raw: The file.
        own: Our attributes as zarr read them.
    """
    if DIGEST not in own and CONTENTS not in own and not _PLACE.search(raw):
        return ""
    places = _PLACE.findall(raw)
    if len(places) != 1 or own.get(DIGEST) != places[0].decode():
        return "its digest is damaged, or was another one a moment ago"
    if hashlib.sha256(_with_digest(raw, _NO_DIGEST)).hexdigest() != own[DIGEST]:
        return "it does not fit its digest"
    return ""


def contents_digest(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of a finished store's journal, whatever more a longer one says of its jobs.

    Args:
        records: Of the journal, in any order; of a job that was done again, the last counts.
    """
    kept = {record["job"]: {name: record[name] for name in _KEPT} for record in records}
    return hashlib.sha256(Journal.content(kept[job] for job in sorted(kept))).hexdigest()


class OpenedStore:
    """Tells whether a store is still the one that was opened. Small; threads may share it.

    Attributes:
        where: The store, for messages.
        identity: SHA-256 of the root metadata.
    """

    def __init__(self, where: str, identity: str, read: Callable[[], bytes], file: Path | None):
        """Remember the store.

        Args:
            where: The store, for messages.
            identity: What `identity_of` said of its root metadata when it was opened.
            read: Gives the root metadata file as it is now.
            file: That file, when it is one of this machine's.
        """
        self.where, self.identity = where, identity
        self._read, self._file, self._stamp = read, file, None

    def check(self) -> None:
        """Look whether the store is still the same: after something in it was opened, before that is used.

        On this machine that takes a microsecond, of a remote store it reads the root metadata again.

        Raises:
            CubeError: It was changed, replaced or removed.
        """
        stamp: Any = None
        try:
            if self._file is not None:
                found = os.stat(self._file)
                stamp = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
            if stamp is not None and stamp == self._stamp:
                return
            same = identity_of(self._read()) == self.identity
        except OSError:
            same = False
        if not same:
            raise CubeError(
                f"{self.where}: the store was changed, replaced or removed after it was opened. What was read until "
                "now is of the former one: start again, and leave a store alone while something reads it."
            )
        self._stamp = stamp

    def check_file(self) -> None:
        """`check` for what happens often: of a remote store nothing is asked."""
        if self._file is not None:
            self.check()


def identity_of(raw: bytes) -> str:
    """Return what tells a store from another: its root metadata, which in a sealed one stands for all of it."""
    return hashlib.sha256(raw).hexdigest()


def read_root(group: Any) -> Callable[[], bytes]:
    """Return a function that reads the root metadata file of an open Zarr group, wherever it is.

    Args:
        group: `zarr.Group`.
    """
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    place = group.store_path / ROOT_FILE

    def read() -> bytes:
        found = sync(place.get(default_buffer_prototype()))
        if found is None:
            raise FileNotFoundError(ROOT_FILE)
        return bytes(found.to_bytes())

    return read
