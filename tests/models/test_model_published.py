"""Reading published weights: prefixes, formats, accounting, errors, malicious files."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flairhub.errors import WeightsError
from flairhub.models import Network, NetworkSpec, load_into, load_published, read_published
from flairhub.models.published import resize_table
from flairhub.models.weights_files import read_tensors
from tests.helpers.model_makers import LC, LPIS, make_batch, make_spec

SPEC = make_spec("AERIAL_RGBI", "SENTINEL2_TS", tasks={LC: 19}, aux=("AERIAL_RGBI",))


@cache
def _state(key: str) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return Network(NetworkSpec.from_json(json.loads(key))).state_dict()


def state(spec: NetworkSpec = SPEC) -> dict[str, Tensor]:
    """The same random tensors of a network every time."""
    return {name: value.clone() for name, value in _state(json.dumps(spec.to_json())).items()}


def write(folder: Path, tensors: dict[str, Tensor], name: str = "weights.safetensors") -> Path:
    file = folder / name
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    elif file.suffix == ".ckpt":
        torch.save({"epoch": 3, "hyper_parameters": {"rate": 0.1}, "state_dict": tensors}, file)
    else:
        torch.save(tensors, file)
    return file


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("w.safetensors", ""),
        ("w.safetensors", "model."),
        ("w.ckpt", "model."),
        ("w.ckpt", "model._orig_mod."),
        ("w.pth", ""),
        ("w.pth", "module.model."),
    ],
)
def test_every_format_and_prefix_gives_the_same_network(tmp_path: Path, name: str, prefix: str) -> None:
    tensors = state()
    extra = {"criterion.AERIAL_LABEL-COSIA.weight": torch.ones(19)}
    file = write(tmp_path, {prefix + k: v for k, v in tensors.items()} | extra, name)
    network, accounting = read_published(file, SPEC)
    assert accounting.counts() == {
        "matched": len(tensors),
        "reshaped": 0,
        "unused": 1,
        "missing": 0,
        "unexpected": 0,
        "mismatched": 0,
        "reinitialised": 0,
    }
    assert accounting.unused == dict.fromkeys(extra, "class weights of the loss")
    assert not network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, tensors[key]), key


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    tensors = state()
    first = next(iter(tensors))
    file = write(tmp_path, tensors | {f"model.{first}": tensors[first].clone()})
    with pytest.raises(WeightsError, match=f"{first}' twice, with and without a prefix"):
        load_published(file, SPEC)


def test_missing_and_unexpected_tensors_are_errors_that_count_them(tmp_path: Path) -> None:
    tensors = state()
    gone = [name for name in tensors if name.startswith("encoders.AERIAL_RGBI") and name.endswith(".weight")]
    for name in gone:
        del tensors[name]
    tensors["encoders.AERIAL_RGBI.seg_model.other.weight"] = torch.ones(3)
    file = write(tmp_path, tensors)
    with pytest.raises(WeightsError) as error:
        load_published(file, SPEC)
    text = str(error.value)
    assert str(file) in text
    assert f"{len(gone)} missing: {gone[0]}, {gone[1]}, {gone[2]} and {len(gone) - 3} more" in text
    assert "1 unexpected: encoders.AERIAL_RGBI.seg_model.other.weight" in text
    network, accounting = read_published(file, SPEC, partial=True)
    assert sorted(accounting.missing) == sorted(gone)
    name = "encoders.SENTINEL2_TS.in_conv.conv.conv.0.weight"
    assert torch.equal(network.state_dict()[name], tensors[name])


def test_unrelated_weights_never_load(tmp_path: Path) -> None:
    file = write(tmp_path, {"layer.weight": torch.ones(3, 3)})
    with pytest.raises(WeightsError, match=r"0 tensors match"):
        load_published(file, SPEC)


def test_missing_batch_counters_are_no_loss(tmp_path: Path) -> None:
    tensors = {k: v for k, v in state().items() if not k.endswith("num_batches_tracked")}
    _, accounting = read_published(write(tmp_path, tensors), SPEC)
    assert accounting.complete


def test_another_number_of_classes_is_said_or_started_anew(tmp_path: Path) -> None:
    file = write(tmp_path, state())
    other = replace(SPEC, tasks={LC: 12})
    with pytest.raises(
        WeightsError, match=r"got \[19, 64, 1, 1\], expected \[12, 64, 1, 1\] \(another number of classes"
    ):
        load_published(file, other)
    network, accounting = read_published(file, other, reinit_heads=True)
    heads = [
        f"{kind}.seg_model.segmentation_head.0" for kind in (f"main_decoders.{LC}", f"aux_decoders.AERIAL_RGBI__{LC}")
    ]
    assert sorted(accounting.reinitialised) == sorted(f"{h}.{part}" for h in heads for part in ("bias", "weight"))
    assert network(*make_batch(other)).logits[LC].shape[1] == 12


def test_another_label_set_may_start_anew(tmp_path: Path) -> None:
    file = write(tmp_path, state())
    other = replace(SPEC, tasks={LPIS: 23}, aux=())
    with pytest.raises(WeightsError, match=f"missing: main_decoders.{LPIS}"):
        load_published(file, other)
    _, accounting = read_published(file, other, reinit_heads=True)
    assert all(name.startswith(f"main_decoders.{LPIS}") for name in accounting.reinitialised)
    assert accounting.unused[f"main_decoders.{LC}.seg_model.segmentation_head.0.bias"].startswith("task that")


def test_another_number_of_channels_is_said_or_started_anew(tmp_path: Path) -> None:
    file = write(tmp_path, state())
    other = replace(SPEC, inputs={"AERIAL_RGBI": 4, "SENTINEL2_TS": 5})
    with pytest.raises(WeightsError, match=r"trained with 3 channels, the configuration selects 4"):
        load_published(file, other)
    _, accounting = read_published(file, other, reinit_heads=True)
    assert len(accounting.reinitialised) == 2
    assert "encoders.SENTINEL2_TS.in_conv.conv.conv.0.weight" in accounting.reinitialised


def test_a_task_of_series_that_is_not_asked_for_is_counted(tmp_path: Path) -> None:
    both = make_spec("SENTINEL2_TS")
    one = make_spec("SENTINEL2_TS", tasks={LC: 19})
    file = write(tmp_path, state(both))
    network, accounting = read_published(file, one)
    assert network.spec.other_classes == 23
    assert set(accounting.unused.values()) == {"task that the network does not predict"}
    full, _ = read_published(file, both)
    batch = make_batch(one)
    with torch.no_grad():
        torch.testing.assert_close(network(*batch).logits[LC], full(*batch).logits[LC], rtol=1e-4, atol=1e-4)


def test_load_into_changes_nothing_when_weights_do_not_fit(tmp_path: Path) -> None:
    network = Network(SPEC)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tensors = state()
    tensors.pop("encoders.SENTINEL2_TS.in_conv.conv.conv.0.weight")
    with pytest.raises(WeightsError, match="1 missing"):
        load_into(network, write(tmp_path, tensors))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    load_into(network, write(tmp_path, state(), "whole.pth"))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state().items())


def test_deeplabv3_names_of_older_smp(tmp_path: Path) -> None:
    spec = make_spec("AERIAL_RGBI", arch="mobilenet_v2-deeplabv3", tasks={LC: 4})
    new = state(spec)
    old = {}
    for name, value in new.items():
        for now, then in (
            ("decoder.aspp.", "decoder.0."),
            ("decoder.conv.", "decoder.1."),
            ("decoder.bn.", "decoder.2."),
        ):
            name = name.replace(f"seg_model.{now}", f"seg_model.{then}")
        old[name] = value
    assert set(old) != set(new)
    network, accounting = read_published(write(tmp_path, old), spec)
    assert accounting.complete
    assert all(torch.equal(value, new[name]) for name, value in network.state_dict().items())


def test_position_tables_are_resized_bicubically() -> None:
    rows, columns = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten() * 2, torch.ones(49)], dim=1)
    larger = resize_table(table, 13 * 13).reshape(13, 13, 3)
    # Cubic interpolation keeps constants and, away from the border and nearly, straight lines.
    torch.testing.assert_close(larger[..., 2], torch.ones(13, 13), rtol=0, atol=1e-4)
    centres = (torch.arange(13) + 0.5) * 7 / 13 - 0.5
    torch.testing.assert_close(larger[3:10, 6, 0], centres[3:10], rtol=0, atol=0.05)
    torch.testing.assert_close(larger[6, 3:10, 1], 2 * centres[3:10], rtol=0, atol=0.1)
    assert torch.equal(resize_table(table, 49), table)


class _Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_a_malicious_pickle_never_runs(
    tmp_path: Path, forced: bool, bare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark, file = tmp_path / "ran", tmp_path / "bad.ckpt"
    content = {"state_dict": state() | {"x": _Malicious(mark)}}
    if bare:
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(WeightsError, match=r"bad.ckpt: (refused|damaged)"):
        load_published(file, SPEC)
    assert not mark.exists()
    assert read_tensors(write(tmp_path, state(), "good.ckpt"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.ckpt"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", None])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    file = write(tmp_path, state(), name)
    file.write_bytes(file.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(WeightsError, match=name):
        load_published(file, SPEC)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.ckpt: no such weights file"):
        load_published(tmp_path / "nowhere.ckpt", SPEC)
    torch.save({"epoch": 1}, tmp_path / "empty.ckpt")
    with pytest.raises(WeightsError, match="holds no named tensors"):
        load_published(tmp_path / "empty.ckpt", SPEC)
