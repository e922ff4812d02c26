"""Losses against brute-force numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flairhub.tasks import Task, numbered_classes
from flairhub.training.losses import Criterion, TaskObjective, class_loss, weighted_cross_entropy


def brute_force(logits: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    """Pixel by pixel: sum of w * -log softmax over sum of w."""
    total, weight = 0.0, 0.0
    for b, y, x in np.ndindex(*target.shape):
        c = target[b, y, x]
        if c == 255:
            continue
        values = logits[b, :, y, x].astype(np.float64)
        log_probability = values[c] - values.max() - np.log(np.exp(values - values.max()).sum())
        total, weight = total - weights[c] * log_probability, weight + weights[c]
    return total / weight


@pytest.fixture
def sample() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 5, 6)).astype(np.float32)
    target = rng.choice([0, 1, 2, 3, 255], (3, 5, 6)).astype(np.uint8)
    weights = np.array([1.0, 0.0, 2.5, 0.5], dtype=np.float32)
    return torch.from_numpy(logits), torch.from_numpy(target), torch.from_numpy(weights)


def test_weighted_cross_entropy(sample) -> None:
    logits, target, weights = sample
    expected = brute_force(logits.numpy(), target.numpy(), weights.numpy())
    assert float(weighted_cross_entropy(logits, target, weights)) == pytest.approx(expected, rel=1e-4)


def test_class_pieces_give_the_same_loss_for_any_batching(sample) -> None:
    logits, target, weights = sample
    whole = class_loss(logits, target)
    parts = [class_loss(logits[i : i + 1], target[i : i + 1]) for i in range(3)]
    added = parts[0] + parts[1] + parts[2]
    assert torch.equal(whole.count, added.count)
    expected = brute_force(logits.numpy(), target.numpy(), weights.numpy())
    for pieces in (whole, added):
        assert pieces.mean(weights.numpy()) == pytest.approx(expected, rel=1e-4)
    for c, value in enumerate(whole.per_class()):
        assert value == pytest.approx(brute_force(logits.numpy(), target.numpy(), np.eye(4)[c]), rel=1e-4)


def test_no_weighted_pixel_gives_zero_and_no_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.tensor([1, 255], dtype=torch.uint8).view(2, 1, 1).expand(2, 4, 4)
    loss = weighted_cross_entropy(logits, target, torch.tensor([1.0, 0.0, 1.0]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_heads_of_a_modality_learn_from_the_patches_that_have_it(sample) -> None:
    logits, target, weights = sample
    task = Task("AERIAL_LABEL-COSIA", 1, numbered_classes(4))
    criterion = Criterion((TaskObjective(task, 1.0, weights.numpy(), {"SPOT_RGBI": weights.numpy()}),))
    present = {"SPOT_RGBI": torch.tensor([True, False, True])}
    head = logits.flip(0)
    _, parts = criterion({task.label: logits}, {("SPOT_RGBI", task.label): head}, {task.label: target}, present)
    selected = np.array([0, 2])
    expected = brute_force(head.numpy()[selected], target.numpy()[selected], weights.numpy())
    assert float(parts[f"{task.label}/aux_SPOT_RGBI"]) == pytest.approx(expected, rel=1e-4)
    assert float(parts[task.label]) == pytest.approx(
        brute_force(logits.numpy(), target.numpy(), weights.numpy()), rel=1e-4
    )


def objectives() -> tuple[TaskObjective, ...]:
    first, second = Task("AERIAL_LABEL-COSIA", 1, numbered_classes(4)), Task("ALL_LABEL-LPIS", 1, numbered_classes(3))
    weights = np.array([1, 0, 2, 1], dtype=np.float32)
    return (
        TaskObjective(
            first,
            1.0,
            weights,
            {"AERIAL_RGBI": np.array([1, 0, 0, 1], dtype=np.float32), "SENTINEL2_TS": weights},
        ),
        TaskObjective(second, 0.25, np.ones(3, dtype=np.float32), {"AERIAL_RGBI": np.ones(3, dtype=np.float32)}),
    )


def test_tasks_and_auxiliary_heads_add_up() -> None:
    rng = np.random.default_rng(5)
    sizes = {"AERIAL_LABEL-COSIA": 4, "ALL_LABEL-LPIS": 3}

    def logits(n: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=(2, n, 4, 4)).astype(np.float32)).requires_grad_()

    targets = {t: torch.from_numpy(rng.integers(0, n, (2, 4, 4)).astype(np.uint8)) for t, n in sizes.items()}
    main = {task: logits(n) for task, n in sizes.items()}
    aux = {
        ("AERIAL_RGBI", "AERIAL_LABEL-COSIA"): logits(4),
        ("SENTINEL2_TS", "AERIAL_LABEL-COSIA"): logits(4),
        ("AERIAL_RGBI", "ALL_LABEL-LPIS"): logits(3),
    }
    loss, parts = Criterion(objectives(), aux_weight=0.3)(main, aux, targets)

    def value(tensor: torch.Tensor, task: str, weights: np.ndarray) -> float:
        return brute_force(tensor.detach().numpy(), targets[task].numpy(), weights)

    land, crops = objectives()
    land_aux = [
        value(aux[name, land.task.label], land.task.label, land.aux_class_weights[name])
        for name in ("AERIAL_RGBI", "SENTINEL2_TS")
    ]
    crop_aux = value(aux["AERIAL_RGBI", crops.task.label], crops.task.label, crops.class_weights)
    expected = value(main[land.task.label], land.task.label, land.class_weights) + 0.3 * sum(land_aux) / 2
    expected += 0.25 * (value(main[crops.task.label], crops.task.label, crops.class_weights) + 0.3 * crop_aux)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert float(parts["AERIAL_LABEL-COSIA/aux_AERIAL_RGBI"]) == pytest.approx(land_aux[0], rel=1e-4)
    loss.backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in (*main.values(), *aux.values()))


def test_batches_without_weight_are_recognised() -> None:
    criterion = Criterion(objectives())
    nothing = {
        "AERIAL_LABEL-COSIA": torch.full((1, 64, 64), 1, dtype=torch.uint8),
        "ALL_LABEL-LPIS": torch.full((1, 64, 64), 255, dtype=torch.uint8),
    }
    assert not criterion.has_weight(nothing)
    for task, value in (("AERIAL_LABEL-COSIA", 2), ("ALL_LABEL-LPIS", 0)):
        one_pixel = {name: values.clone() for name, values in nothing.items()}
        one_pixel[task][0, 33, 17] = value
        assert criterion.has_weight(one_pixel)


def test_a_task_without_weight_gives_a_batch_none() -> None:
    land, crops = objectives()
    targets = {
        "AERIAL_LABEL-COSIA": torch.full((1, 64, 64), 2, dtype=torch.uint8),
        "ALL_LABEL-LPIS": torch.full((1, 64, 64), 255, dtype=torch.uint8),
    }
    assert Criterion((land, crops)).has_weight(targets)
    assert not Criterion((replace(land, weight=0.0), crops)).has_weight(targets)
    targets["ALL_LABEL-LPIS"][0, 5, 5] = 0
    assert Criterion((replace(land, weight=0.0), crops)).has_weight(targets)


def test_weights_are_no_part_of_checkpoints() -> None:
    assert Criterion(objectives()).state_dict() == {}
