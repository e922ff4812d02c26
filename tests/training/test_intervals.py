"""Sums by patch and bootstrap intervals, against loops over patches."""

import numpy as np
import pytest

from flairhub.confusion import ConfusionSums, confusion_matrix, marginals, strict_scores
from flairhub.errors import DataError
from flairhub.tasks import Task, numbered_classes
from flairhub.training.metrics import RESAMPLES, bootstrap, intervals_report

NAME = "AERIAL_LABEL-COSIA"
TASK = Task(NAME, 1, numbered_classes(5))


def made(n: int = 12) -> tuple[ConfusionSums, list[np.ndarray]]:
    """Patches of different quality; class 4 never occurs, class 3 is sometimes the truth."""
    rng = np.random.default_rng(4)
    sums, matrices = ConfusionSums([TASK]), []
    for index in rng.permutation(n).tolist():
        truth = rng.integers(0, 4, (8, 8)).astype(np.uint8)
        truth[rng.random((8, 8)) < 0.1] = 255
        guess = np.where(rng.random((8, 8)) < index / n, truth, rng.integers(0, 4, (8, 8)))
        guess = np.where(guess == 255, 0, guess).astype(np.uint8)
        sums.add(NAME, index, f"D{index % 2}", truth, guess)
        matrices.append((index, confusion_matrix(truth, guess, 5)))
    return sums, [matrix for _, matrix in sorted(matrices, key=lambda entry: entry[0])]


def test_sums_and_marginals() -> None:
    sums, matrices = made()
    np.testing.assert_array_equal(sums.total(NAME), sum(matrices))
    np.testing.assert_array_equal(sums.domains(NAME)["D1"], sum(matrices[1::2]))
    assert sums.n_patches(NAME) == 12
    assert sums.n_patches(NAME, "D0") == 6
    for patch, matrix in zip(sums.patches(NAME).values(), matrices, strict=True):
        kept = matrix.copy()
        kept[2] = 0
        hits, truth, predicted = patch.marginals(ignored=(2,))
        np.testing.assert_array_equal(hits, np.diag(kept))
        np.testing.assert_array_equal(truth, kept.sum(axis=1))
        np.testing.assert_array_equal(predicted, kept.sum(axis=0))
        np.testing.assert_array_equal(marginals(matrix, (2,)), [hits, truth, predicted])


def test_joining_parts_is_counting_together_and_nothing_counts_twice() -> None:
    sums, matrices = made()
    parts = [ConfusionSums([TASK]) for _ in range(3)]
    for index, patch in sums.patches(NAME).items():
        parts[index % 3]._put(NAME, index, patch)
    joined = parts[2].join(parts[:2])
    np.testing.assert_array_equal(joined.total(NAME), sum(matrices))
    assert list(joined.patches(NAME)) == list(range(12))
    with pytest.raises(DataError, match="position 0 of the cube is counted twice"):
        joined.join(parts[:1])


def test_intervals_are_percentiles_over_resampled_patches() -> None:
    sums, matrices = made()
    ends = bootstrap(list(sums.patches(NAME).values()), 5, ignored=(2,))
    rng = np.random.default_rng(0)
    mious, accuracies, ious = [], [], []
    for draw in rng.multinomial(12, np.full(12, 1 / 12), size=RESAMPLES):
        scores = strict_scores(sum(n * matrix for n, matrix in zip(draw, matrices, strict=True)), (2,))
        mious.append(scores.mean("iou"))
        accuracies.append(scores.overall_accuracy)
        ious.append(scores.iou)
    share = [0.025, 0.975]
    np.testing.assert_allclose(ends.miou, np.quantile(mious, share), rtol=1e-10)
    np.testing.assert_allclose(ends.overall_accuracy, np.quantile(accuracies, share), rtol=1e-10)
    kept = [0, 1, 3]
    np.testing.assert_allclose(ends.iou[kept], np.quantile(np.array(ious)[:, :3], share, axis=0).T, rtol=1e-10)
    assert np.isnan(ends.iou[[2, 4]]).all()


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng, inside = np.random.default_rng(9), 0
    for _ in range(60):
        sums = ConfusionSums([TASK])
        for index in range(40):
            right = rng.random() < 0.7
            truth = np.zeros((1, 4), np.uint8)
            sums.add(NAME, index, "D", truth, truth if right else truth + 1)
        low, high = bootstrap(list(sums.patches(NAME).values()), 5, resamples=200).overall_accuracy
        inside += low <= 0.7 <= high
    assert inside >= 50


def test_the_report_names_what_is_undefined() -> None:
    sums, _ = made()
    patches = list(sums.patches(NAME).values())
    report = intervals_report(patches, TASK.names, ignored=(2,))
    assert report["miou"][0] < report["miou"][1]
    assert set(report["per_class_iou"]) == {TASK.names[c] for c in (0, 1, 3, 4)}
    assert report["per_class_iou"][TASK.names[4]] is None
    assert intervals_report(patches[:1], TASK.names)["miou"] is None
    assert report == intervals_report(patches, TASK.names, ignored=(2,))
