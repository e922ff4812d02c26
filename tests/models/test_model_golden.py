"""The published network's tensors and logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flairhub.models import Accounting, Network, Output, read_published
from tests.helpers.model_makers import GOLDEN, golden_batch, golden_cases, golden_spec, golden_state, relative_error

CASES = tuple(golden_cases())


@pytest.fixture(scope="module", params=CASES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Network, Accounting]:
    """A case's weights file, as Lightning names it, read through the published-weights path."""
    case = golden_cases()[request.param]
    file = tmp_path_factory.mktemp("weights") / f"{request.param}.safetensors"
    save_file({f"model.{name}": value for name, value in golden_state(case).items()}, file)
    return request.param, *read_published(file, golden_spec(case))


def run(network: Network, name: str) -> Output:
    case = golden_cases()[name]
    with torch.no_grad():
        return network(*golden_batch(case), size=(case["output_size"],) * 2, aux=True)


def test_every_published_tensor_is_accounted_for(loaded: tuple[str, Network, Accounting]) -> None:
    name, network, accounting = loaded
    published = golden_cases()[name]["state_dict"]
    assert accounting.complete
    assert not accounting.reshaped
    assert not accounting.reinitialised
    assert sorted([*accounting.matched, *accounting.unused]) == sorted(published)
    for tensor, value in network.state_dict().items():
        assert list(value.shape) == published[tensor]


def test_logits_equal_the_published_ones(loaded: tuple[str, Network, Accounting]) -> None:
    name, network, _ = loaded
    output = run(network, name)
    with np.load(GOLDEN / f"{name}.npz") as golden:
        result = {f"logits/{task}": values[:, :, ::4, ::4] for task, values in output.logits.items()}
        result |= {f"aux/aux_{m}_{task}": values[:, :, ::8, ::8] for (m, task), values in output.aux.items()}
        assert sorted(result) == sorted(golden.files)
        for key, values in result.items():
            expected = torch.from_numpy(golden[key])
            assert values.shape == expected.shape
            # Both are float32, of two processors.
            assert relative_error(values, expected) < 1e-4


def test_image_sizes_are_told_from_the_position_tables(tmp_path: Path) -> None:
    case = golden_cases()["aerial_swin_tiny_upernet"]
    file = tmp_path / "swin.safetensors"
    save_file(golden_state(case), file)
    network, accounting = read_published(file, golden_spec(case))
    # A window of 4 in the last stage belongs to images below the 7 windows of 224 pixels.
    assert network.spec.sizes["AERIAL_RGBI"] == 128
    resized, accounting = read_published(file, golden_spec(case), fit_sizes=False)
    assert resized.spec.sizes["AERIAL_RGBI"] == 512
    assert len(accounting.reshaped) == 2
    table = "encoders.AERIAL_RGBI.seg_model.model.layers_3.blocks.0.attn.relative_position_bias_table"
    assert network.state_dict()[table].shape == (49, 24)
    assert resized.state_dict()[table].shape == (169, 24)
