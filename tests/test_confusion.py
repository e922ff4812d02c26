"""Scores against golden numbers, brute force and their algebra."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flairhub.confusion import (
    accuracy,
    class_iou,
    confusion_matrix,
    macro_mean,
    marginals,
    published_report,
    strict_report,
    strict_scores,
)
from flairhub.errors import DataError
from flairhub.tasks import default_task

GOLDEN = Path(__file__).parent / "golden" / "metrics.json"


def brute_force_matrix(truth: np.ndarray, prediction: np.ndarray, n: int) -> np.ndarray:
    matrix = np.zeros((n, n), dtype=np.int64)
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if t != 255:
            matrix[t, p] += 1
    return matrix


def test_published_report_is_the_golden_one() -> None:
    golden = json.loads(GOLDEN.read_text())
    names = default_task("AERIAL_LABEL-COSIA").names
    metrics = golden["metrics"]
    kept = [names.index(name) for name in metrics["classes"]]
    weights = [0.0] * len(names)
    for index, weight in zip(kept, metrics["per_class_default_weight"], strict=True):
        weights[index] = weight
    modality_weights = {}
    for name, values in metrics["per_class_modality_weights"].items():
        full = [0.0] * len(names)
        for index, weight in zip(kept, values, strict=True):
            full[index] = weight
        modality_weights[name] = full
    report = published_report(np.array(golden["confusion_matrix"]), names, weights, modality_weights)
    assert list(report) == list(metrics)
    for key, expected in metrics.items():
        if key in ("classes", "Avg_metrics_name") or isinstance(expected, dict):
            assert report[key] == expected
        else:
            np.testing.assert_allclose(report[key], expected, rtol=1e-9, err_msg=key)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 6), cut=st.integers(0, 40))
def test_pieces_add_up_to_the_whole(seed: int, n: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.choice([*range(n), 255], 40).astype(np.uint8)
    prediction = rng.integers(0, n, 40).astype(np.uint8)
    whole = confusion_matrix(truth, prediction, n)
    np.testing.assert_array_equal(whole, brute_force_matrix(truth, prediction, n))
    parts = [confusion_matrix(truth[part], prediction[part], n) for part in (slice(cut), slice(cut, None))]
    np.testing.assert_array_equal(parts[0] + parts[1], whole)


def test_strict_scores_equal_pixel_sets() -> None:
    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    prediction[prediction == 3] = 2  # class 3 is true but never predicted
    truth[truth == 1] = 0  # class 1 is predicted but never true
    ignored = 2
    scores = strict_scores(confusion_matrix(truth, prediction, 5), [ignored])
    counted = truth != ignored
    assert scores.classes == (0, 1, 3, 4)
    for i, c in enumerate(scores.classes):
        t, p = truth[counted] == c, prediction[counted] == c
        union = (t | p).sum()
        if union == 0:
            assert c == 4
            assert np.isnan(scores.iou[i])
            continue
        assert scores.iou[i] == pytest.approx((t & p).sum() / union)
        assert scores.support[i] == t.sum()
    assert scores.absent == (4,)
    assert scores.overall_accuracy == pytest.approx((truth == prediction)[counted].mean())
    assert scores.mean("iou") == pytest.approx(np.nanmean(scores.iou))


def test_undefined_stays_null_and_is_listed() -> None:
    report = strict_report(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]), ("a", "b", "c"))
    assert report["absent_classes"] == ["c"]
    assert report["per_class"]["c"] == {
        "iou": None,
        "f_score": None,
        "precision": None,
        "recall": None,
        "support_px": 0,
    }
    assert report["miou"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    json.dumps(report, allow_nan=False)


def test_values_outside_the_nomenclature_are_refused() -> None:
    with pytest.raises(DataError, match=r"prediction holds class values \[7\], expected 0\.\.2"):
        confusion_matrix(np.array([0, 1]), np.array([0, 7]), 3)
    with pytest.raises(DataError, match=r"truth holds class values \[9\], expected 0\.\.2"):
        confusion_matrix(np.array([0, 9]), np.array([0, 1]), 3)
    with pytest.raises(DataError, match="must be equal"):
        confusion_matrix(np.zeros(3), np.zeros(4), 3)


def test_scores_of_many_matrices_at_once_are_those_of_each() -> None:
    """Marginals add up like matrices, so weights of pieces (resamples of patches) are scored in one go."""
    rng = np.random.default_rng(3)
    matrices = rng.integers(0, 50, (7, 5, 5)) * (rng.random((7, 5, 5)) < 0.4)
    counts = np.stack([marginals(matrix, [2]) for matrix in matrices])
    np.testing.assert_array_equal(counts.sum(axis=0), marginals(matrices.sum(axis=0), [2]))
    kept = [0, 1, 3, 4]
    for i, matrix in enumerate(matrices):
        scores = strict_scores(matrix, [2])
        np.testing.assert_array_equal(class_iou(counts)[i, kept], scores.iou)
        assert accuracy(counts)[i] == scores.overall_accuracy
        assert macro_mean(class_iou(counts)[:, kept])[i] == scores.mean("iou")


def test_what_is_undefined_is_nan_and_no_part_of_a_mean() -> None:
    nothing = np.zeros((3, 2), np.int64)
    assert np.isnan(class_iou(nothing)).all()
    assert np.isnan(accuracy(nothing))
    assert np.isnan(macro_mean(class_iou(nothing)))
    assert macro_mean(np.array([np.nan, 0.5, 0.25])) == 0.375


def test_the_device_counts_what_arrays_count() -> None:
    torch = pytest.importorskip("torch")
    from flairhub.training.logits import batch_confusion

    rng = np.random.default_rng(5)
    logits = rng.normal(size=(3, 4, 6, 6)).astype(np.float32)
    target = rng.choice([0, 1, 2, 3, 255], (3, 6, 6)).astype(np.uint8)
    counts = batch_confusion(torch.from_numpy(logits), torch.from_numpy(target))
    np.testing.assert_array_equal(counts.numpy(), confusion_matrix(target, logits.argmax(axis=1), 4))
