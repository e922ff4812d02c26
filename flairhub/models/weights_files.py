"""Reading weights files: tensors only, never code."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flairhub.errors import WeightsError

_ARCHIVE = b"PK\x03\x04"
_CONTAINERS = ("state_dict", "model_state_dict", "model")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a weights file, one of `WEIGHTS_SUFFIXES`.

    A Lightning checkpoint gives its `state_dict`. Pickles are read with torch's restricted reader: a file that
    wants to run code is refused, whatever the environment says.

    Raises:
        WeightsError: The file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file.")
    if path.suffix.lower() == ".safetensors":
        try:
            return load_file(path, device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path}: damaged or not a safetensors file ({error}). Fetch it again.") from error
    return _state_dict(read_pickled(path), path)


def read_pickled(path: Path) -> Any:
    """Return what `torch.save` wrote, read with torch's restricted reader; the checksums of its archive fit.

    Raises:
        WeightsError: The file is damaged, or holds anything but tensors and plain values.
    """
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused: it is damaged or holds more than tensors and plain values, which could run code. "
            f"Save its state_dict as .safetensors instead. ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:
        raise WeightsError(f"{path}: damaged or not a torch file ({type(error).__name__}: {error}).") from error


def check_archive(path: Path) -> None:
    """Compare every member of an archive of `torch.save` with its CRC-32, which torch does not look at.

    Files from before torch 1.6 are no archives and have no checksums: they pass.

    Raises:
        WeightsError: One differs, or the archive cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(_ARCHIVE)) != _ARCHIVE:
                return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{path}: cannot be read, damaged or not whole ({error}). Fetch it again.") from error
    if damaged is not None:
        raise WeightsError(f"{path}: damaged: {damaged} has another checksum (CRC-32) than when it was written.")


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise WeightsError(f"{path}: holds no named tensors, expected a state_dict.")
    return tensors
