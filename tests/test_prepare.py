import numpy as np
import pytest
import torch

from flairhub.errors import UsageError
from flairhub.prepare import ImagePreparation, channel_statistics, prepare_image

RNG = np.random.default_rng(0)


def image(dtype: str, bands: int) -> np.ndarray:
    return (RNG.random((2, bands, 5, 4)) * 250).astype(dtype)


CASES = [
    (image("uint8", 4), ImagePreparation((4, 1, 2), None, "custom", (1.0, 2.0, 3.0), (2.0, 4.0, 5.0))),
    (image("uint16", 4), ImagePreparation((2,), None, "scaling")),
    (image("uint8", 1), ImagePreparation(None, None, "scaling")),
    (image("float32", 2), ImagePreparation(None, "dsm_dtm", "custom", (3.0, 4.0), (2.0, 2.0))),
    (image("float32", 2), ImagePreparation(None, "ndsm", "without")),
    (image("float32", 2), ImagePreparation(None, "dsm_ndsm", "custom", (3.0, 4.0), (2.0, 2.0))),
    (image("int16", 2), ImagePreparation(None, "dsm_ndsm", "without")),
]


@pytest.mark.parametrize(("values", "preparation"), CASES, ids=str)
def test_numpy_and_torch_are_equal(values: np.ndarray, preparation: ImagePreparation) -> None:
    before = values.copy()
    expected = prepare_image(values, preparation)
    result = prepare_image(torch.from_numpy(values), preparation)
    assert expected.dtype == np.float32
    assert result.dtype == torch.float32
    np.testing.assert_array_equal(result.numpy(), expected)
    np.testing.assert_array_equal(values, before)
    assert expected.shape[-3] == preparation.n_channels(values.shape[-3])


def test_custom_subtracts_the_mean_of_the_selected_channel() -> None:
    values = np.array([10, 20, 30, 40], np.uint8).reshape(4, 1, 1)
    preparation = ImagePreparation((4, 1, 2), None, "custom", (4.0, 1.0, 2.0), (2.0, 3.0, 6.0))
    assert prepare_image(values, preparation).ravel().tolist() == [18.0, 3.0, 3.0]


def test_scaling_divides_by_the_dtype_maximum() -> None:
    assert prepare_image(np.full((1, 1, 1), 255, np.uint8), ImagePreparation(normalisation="scaling")) == 1
    assert prepare_image(np.full((1, 1, 1), 13107, np.uint16), ImagePreparation(normalisation="scaling")) == 0.2
    assert prepare_image(np.full((1, 1, 1), 9.5, np.float32), ImagePreparation(normalisation="scaling")) == 9.5


@pytest.mark.parametrize(
    ("mode", "expected"), [("dsm_dtm", [120.0, 100.0]), ("ndsm", [20.0]), ("dsm_ndsm", [120.0, 20.0])]
)
def test_elevation_modes(mode: str, expected: list[float]) -> None:
    values = np.array([120, 100], np.float32).reshape(2, 1, 1)
    assert prepare_image(values, ImagePreparation(elevation=mode)).ravel().tolist() == expected


def test_integer_heights_do_not_wrap() -> None:
    values = np.array([100, 120], np.uint8).reshape(2, 1, 1)
    assert prepare_image(values, ImagePreparation(elevation="ndsm")).ravel().tolist() == [-20.0]


def test_statistics_follow_the_selection_or_the_bands() -> None:
    assert channel_statistics((1.0, 2.0, 3.0), (4, 1, 2), 4, "means") == (1.0, 2.0, 3.0)
    assert channel_statistics((1.0, 2.0, 3.0, 4.0), (4, 1, 2), 4, "means") == (4.0, 1.0, 2.0)
    with pytest.raises(UsageError, match=r"SPOT_RGBI_means: got 2 values, expected 3 .* or 4"):
        channel_statistics((1.0, 2.0), (4, 1, 2), 4, "SPOT_RGBI_means")


def test_misfits_are_errors() -> None:
    with pytest.raises(UsageError, match="2 means for 1 channels"):
        prepare_image(np.ones((1, 2, 2)), ImagePreparation(None, None, "custom", (1.0, 2.0), (1.0, 2.0)))
    with pytest.raises(UsageError, match=r"channels \[5\] do not exist"):
        prepare_image(np.ones((4, 2, 2)), ImagePreparation((5,)))
    with pytest.raises(UsageError, match="needs 2 bands"):
        prepare_image(np.ones((1, 2, 2)), ImagePreparation(elevation="ndsm"))
    with pytest.raises(UsageError, match="positive"):
        ImagePreparation(None, None, "custom", (1.0,), (0.0,))
    with pytest.raises(UsageError, match="1 means and 2 stds"):
        ImagePreparation(None, None, "custom", (1.0,), (1.0, 2.0))
    with pytest.raises(UsageError, match="normalisation"):
        ImagePreparation(normalisation="custm")  # type: ignore[arg-type]


def test_preparation_survives_json() -> None:
    for _, preparation in CASES:
        assert ImagePreparation.from_json(preparation.to_json()) == preparation
