"""Weights files with flipped bits, cut off or too long: refused, or read as they were written."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flairhub.errors import WeightsError
from flairhub.models import load_into, load_model, read_pickled
from flairhub.models.weights_files import read_tensors
from flairhub.prepare import ImagePreparation
from tests.helpers.bundle_makers import make_bundle


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer{i}.weight": torch.randn(40, generator=generator) for i in range(3)}


def flipped(content: bytes, place: int) -> bytes:
    damaged = bytearray(content)
    damaged[place] ^= 1 << place % 8
    return bytes(damaged)


@pytest.mark.parametrize("name", ["a.ckpt", "a.pth", "a.pt", "a.bin"])
def test_a_flipped_bit_never_gives_other_weights(tensors: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    whole = tmp_path / name
    torch.save({"state_dict": tensors, "ema": {key: value + 1 for key, value in tensors.items()}}, whole)
    content, path = whole.read_bytes(), tmp_path / f"damaged-{name}"
    refused = 0
    for place in range(0, len(content), 11):
        path.write_bytes(flipped(content, place))
        try:
            read = read_pickled(path)
        except WeightsError:
            refused += 1
            continue
        for key, value in tensors.items():
            assert torch.equal(read["state_dict"][key], value)
            assert torch.equal(read["ema"][key], value + 1)
    # What is left is padding between the members.
    assert refused > len(content) / 11 / 3


def test_a_flipped_bit_in_the_numbers_is_named(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": tensors}, path)
    content = path.read_bytes()
    numbers = tensors["layer1.weight"].numpy().tobytes()
    path.write_bytes(flipped(content, content.index(numbers) + 17))
    with pytest.raises(WeightsError, match=r"a\.ckpt: damaged: .*/data/1 has another checksum \(CRC-32\)"):
        read_tensors(path)


def test_files_without_an_archive_are_still_read(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(path)["layer2.weight"], tensors["layer2.weight"])


def test_safetensors_of_another_length_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    content = path.read_bytes()
    assert torch.equal(read_tensors(path)["layer0.weight"], tensors["layer0.weight"])
    header = content.index(b"}}") + 2
    for damaged in (
        content[:-1],
        content + b"\0",
        content[:5],
        flipped(content, 2),
        content[:header] + content[header + 8 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"a\.safetensors: damaged or not a safetensors file"):
            read_tensors(path)


def test_a_bundle_whose_weights_were_changed_starts_no_training(tmp_path: Path) -> None:
    whole = make_bundle(tmp_path / "whole", {"AERIAL_RGBI": ImagePreparation()})
    damaged = Path(shutil.copytree(whole, tmp_path / "damaged.bundle"))
    weights = damaged / "weights.safetensors"
    weights.write_bytes(flipped(weights.read_bytes(), weights.stat().st_size - 9))
    network = load_model(whole).network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_into(network, whole)
    with pytest.raises(WeightsError, match=r"weights\.safetensors: damaged: sha256"):
        load_into(network, damaged)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    whole = make_bundle(tmp_path / "whole", {"AERIAL_RGBI": ImagePreparation()})
    network = load_model(whole).network
    state = {name: value.clone() for name, value in network.state_dict().items()}
    name = next(name for name, value in state.items() if name.endswith(".weight"))
    save_file({**state, name: state[name].to(torch.int32)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=rf"{name}: holds torch.int32 numbers, expected torch.float32"):
        load_into(network, tmp_path / "a.safetensors")
