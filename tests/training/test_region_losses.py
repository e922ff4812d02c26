"""Dice, Lovasz and focal losses against pixel-by-pixel numpy; ignored pixels and classes count in none."""

import numpy as np
import pytest
import torch

from flairhub.tasks import Task, numbered_classes
from flairhub.training.losses import REGION_LOSSES, Criterion, TaskObjective

WEIGHTS = torch.tensor([1.0, 0.0, 2.5, 0.5])
KEPT = (0, 2, 3)


@pytest.fixture
def sample() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(size=(2, 4, 5, 6)).astype(np.float32))
    return logits, torch.from_numpy(rng.choice([0, 1, 2, 3, 255], (2, 5, 6)).astype(np.uint8))


def counted(logits: torch.Tensor, target: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(pixel, class) float64 logits and (pixel,) truth of the pixels that count."""
    values, truth = logits.double().permute(0, 2, 3, 1).reshape(-1, 4).numpy(), target.flatten().numpy()
    keep = np.isin(truth, KEPT)
    return values[keep], truth[keep].astype(int)


def softmax(values: np.ndarray) -> np.ndarray:
    shares = np.exp(values - values.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def test_dice(sample) -> None:
    values, truth = counted(*sample)
    shares = softmax(values)
    terms = []
    for c in KEPT:
        both, sums = shares[truth == c, c].sum(), shares[:, c].sum() + (truth == c).sum()
        terms.append(1 - 2 * both / sums)
    assert float(REGION_LOSSES["dice"](*sample, WEIGHTS)) == pytest.approx(np.mean(terms), rel=1e-4)


def test_lovasz(sample) -> None:
    values, truth = counted(*sample)
    shares = softmax(values)
    terms = []
    for c in KEPT:
        errors = np.abs((truth == c) - shares[:, c])
        order = np.argsort(-errors, kind="stable")
        # The Jaccard loss of the k largest errors, one more at a time (Berman et al. 2018, equation 8).
        total, before = 0.0, 0.0
        for k in range(1, len(order) + 1):
            wrong = np.zeros(len(order), dtype=bool)
            wrong[order[:k]] = True
            result = (truth == c) ^ wrong
            jaccard = 1 - ((truth == c) & result).sum() / ((truth == c) | result).sum()
            total, before = total + errors[order[k - 1]] * (jaccard - before), jaccard
        terms.append(total)
    assert float(REGION_LOSSES["lovasz"](*sample, WEIGHTS)) == pytest.approx(np.mean(terms), rel=1e-4)


def test_focal(sample) -> None:
    values, truth = counted(*sample)
    total = 0.0
    for c in range(4):
        likely = 1 / (1 + np.exp(-np.where(truth == c, values[:, c], -values[:, c])))
        total += np.mean(-((1 - likely) ** 2) * np.log(likely))
    assert float(REGION_LOSSES["focal"](*sample, WEIGHTS)) == pytest.approx(total / 4, rel=1e-4)


@pytest.mark.parametrize("name", REGION_LOSSES)
def test_what_does_not_count_has_no_influence(name: str, sample) -> None:
    logits, target = sample
    out = ~torch.isin(target, torch.tensor(KEPT, dtype=torch.uint8))
    changed = torch.where(out[:, None], logits + 3.0, logits).requires_grad_()
    loss = REGION_LOSSES[name](changed, target, WEIGHTS)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(REGION_LOSSES[name](logits, target, WEIGHTS)), rel=1e-4)
    assert not changed.grad.permute(0, 2, 3, 1)[out].any()
    nothing = torch.full_like(target, 1)
    logits = logits.clone().requires_grad_()
    loss = REGION_LOSSES[name](logits, nothing, WEIGHTS)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_the_criterion_adds_them_with_their_weights(sample) -> None:
    logits, target = sample
    task = Task("AERIAL_LABEL-COSIA", 1, numbered_classes(4))
    objectives = (TaskObjective(task, 2.0, WEIGHTS.numpy()),)
    values, truth = {task.label: logits}, {task.label: target}
    alone = float(Criterion(objectives)(values, {}, truth)[0])
    mixed = Criterion(objectives, losses={"cross_entropy": 0.5, "dice": 1.5, "lovasz": 0.0, "focal": 3.0})
    extra = 1.5 * REGION_LOSSES["dice"](logits, target, WEIGHTS) + 3 * REGION_LOSSES["focal"](logits, target, WEIGHTS)
    assert float(mixed(values, {}, truth)[0]) == pytest.approx(0.5 * alone + 2 * float(extra), rel=1e-4)
