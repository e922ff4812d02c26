"""Running mean of weights and test-time augmentation against formulas written out."""

from copy import deepcopy

import numpy as np
import torch
from torch import nn

from flairhub.data import PreparedBatch, apply_dihedral, undo_dihedral
from flairhub.models import NetworkSpec, SeriesOptions, build_network
from flairhub.models.network import Output
from flairhub.training.logits import mean_probabilities, network_output
from flairhub.training.optimizers import update_mean


def test_the_mean_of_weights() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    mean = deepcopy(network)
    expected = [value.detach().double() for value in network.parameters()]
    for n in range(12):
        with torch.no_grad():
            for value in network.parameters():
                value += torch.randn(value.shape) + n
            network[1].running_mean += 1
            network[1].num_batches_tracked += 1
        keep = min(0.5, (1 + n) / (10 + n))
        pairs = zip(expected, network.parameters(), strict=True)
        expected = [keep * old + (1 - keep) * new.detach() for old, new in pairs]
        update_mean(mean, network, 0.5, n)
    for value, wanted in zip(mean.parameters(), expected, strict=True):
        np.testing.assert_allclose(value.detach(), wanted, rtol=1e-4)
    assert torch.equal(mean[1].running_mean, network[1].running_mean)
    assert int(mean[1].num_batches_tracked) == 12
    assert (mean[0].weight - network[0].weight).abs().max() > 1


def test_every_symmetry_can_be_undone() -> None:
    values = torch.arange(2 * 3 * 16.0).view(2, 3, 4, 4)
    for code in range(8):
        assert torch.equal(undo_dihedral(apply_dihedral(values, torch.full((2,), code)), code), values)


class Sloped(nn.Module):
    """Adds the row to class 0, so that orientation matters."""

    def forward(self, inputs, dates=None, masks=None, size=None, aux=False, present=None) -> Output:
        image = inputs["AERIAL_RGBI"]
        rows = torch.arange(image.shape[-2], dtype=torch.float32).view(1, -1, 1)
        return Output({"T": torch.stack([image[:, 0] + rows, image[:, 1], image[:, 1] * 0], dim=1)})


def test_probabilities_are_averaged_over_the_eight_symmetries() -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, 4, 4)).astype(np.float32))
    batch = PreparedBatch({"AERIAL_RGBI": image}, {}, {}, {}, torch.arange(2))
    expected = np.zeros((2, 3, 4, 4))
    rows = np.arange(4).reshape(1, 4, 1)
    for flipped in (False, True):
        for turns in range(4):
            x = image.numpy()[..., ::-1] if flipped else image.numpy()
            x = np.rot90(x, turns, axes=(2, 3)).astype(np.float64)
            shares = np.exp(np.stack([x[:, 0] + rows, x[:, 1], x[:, 1] * 0], axis=1))
            shares = np.rot90(shares / shares.sum(axis=1, keepdims=True), -turns, axes=(2, 3))
            expected += (shares[..., ::-1] if flipped else shares) / 8
    result = mean_probabilities(Sloped(), batch)["T"]
    np.testing.assert_allclose(result, expected, rtol=1e-4)
    np.testing.assert_allclose(result.sum(dim=1), 1, rtol=1e-4)


def test_a_patch_goes_without_the_input_that_it_lacks() -> None:
    torch.manual_seed(0)
    options = SeriesOptions(encoder_widths=(8, 8), decoder_widths=(8, 8), n_head=4, d_model=16)
    spec = NetworkSpec({"AERIAL_RGBI": 4, "SENTINEL2_TS": 10}, {"T": 3}, "test_resnet-linknet", series=options)
    network = build_network(spec).eval()
    inputs = {"AERIAL_RGBI": torch.randn(2, 4, 64, 64).double(), "SENTINEL2_TS": torch.randn(2, 3, 10, 8, 8).double()}
    series = ({"SENTINEL2_TS": torch.tensor([[0, 30, 60]] * 2)}, {"SENTINEL2_TS": torch.ones(2, 3, dtype=torch.bool)})
    present = {"AERIAL_RGBI": torch.tensor([True, False])}
    batch = PreparedBatch(inputs, *series, {"T": torch.zeros(2, 64, 64, dtype=torch.uint8)}, torch.arange(2), present)
    network.double()
    with torch.no_grad():
        result = network_output(network, batch)[0]["T"]
        alone = network({"SENTINEL2_TS": inputs["SENTINEL2_TS"]}, *series, size=(64, 64)).logits["T"]
        both = network(inputs, *series, size=(64, 64)).logits["T"]
    torch.testing.assert_close(result[0], both[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result[1], alone[1], rtol=1e-9, atol=1e-9)
    assert (result[1] - both[1]).abs().max() > 1e-3
