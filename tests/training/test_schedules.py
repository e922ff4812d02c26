"""Learning rates against torch's schedulers."""

import pytest
import torch

from flairhub.errors import UsageError
from flairhub.training.optimizers import Plateau, Schedule, build_optimizer


def optimizer(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


@pytest.mark.parametrize(("total", "fraction"), [(50, 0.2), (37, 0.5), (200, 0.07), (5, 0.9)])
def test_one_cycle_is_torchs(total: int, fraction: float) -> None:
    holder = optimizer(3e-3)
    torch_schedule = torch.optim.lr_scheduler.OneCycleLR(
        holder, max_lr=3e-3, total_steps=total, pct_start=fraction, div_factor=1000, cycle_momentum=False
    )
    ours = Schedule("one_cycle_lr", 3e-3, total, fraction)
    for step in range(total):
        assert ours.rate(step, Plateau()) == pytest.approx(holder.param_groups[0]["lr"], rel=1e-9)
        holder.step()
        if step + 1 < total:
            torch_schedule.step()


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_torchs(patience: int) -> None:
    generator = torch.Generator().manual_seed(patience)
    losses = (torch.rand(400, generator=generator) * 0.5 + torch.linspace(2, 1, 400)).tolist()
    holder = optimizer(1e-4)
    torch_schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        holder, "min", factor=0.5, patience=patience, cooldown=4, min_lr=1e-7
    )
    ours, state = Schedule("reduce_on_plateau", 1e-4, 400, plateau_patience=patience), Plateau()
    rates = []
    for epoch, loss in enumerate(losses):
        rates.append(ours.rate(epoch, state))
        assert rates[-1] == pytest.approx(holder.param_groups[0]["lr"], rel=1e-6)
        holder.step()
        torch_schedule.step(loss)
        state = ours.after_validation(epoch + 1, loss, state)
    assert rates[0] == 1e-4
    assert rates[-1] < 1e-5


def test_cycle_then_plateau_rises_then_follows_the_losses() -> None:
    schedule = Schedule("cycle_then_plateau", 1e-2, 100, warmup_fraction=0.3, plateau_patience=1)
    cycle = Schedule("one_cycle_lr", 1e-2, 100, warmup_fraction=0.3)
    for step in range(29):
        assert schedule.rate(step, Plateau()) == cycle.rate(step, Plateau())
    assert schedule.rate(29, Plateau()) == schedule.rate(90, Plateau()) == 1e-2
    # Losses during the rise do not count.
    state = Plateau()
    for step in (5, 10, 15, 20):
        state = schedule.after_validation(step, 1.0, state)
    assert state == Plateau()
    for step in (30, 40, 50):
        state = schedule.after_validation(step, 1.0, state)
    assert schedule.rate(60, state) == 5e-3


def test_state_survives_its_json() -> None:
    state = Plateau(0.25, 1.5, 2, 3)
    assert Plateau(**state.to_json()) == state


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="scheduler: got 'cosine'"):
        Schedule("cosine", 1e-3, 10)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="optimizer: got 'lion'"):
        build_optimizer("lion", [], 1e-3)  # type: ignore[arg-type]


def test_optimizers_take_their_options() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    adamw = build_optimizer("adamw", parameters, 1e-3, 0.02, (0.8, 0.9))
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["weight_decay"], adamw.defaults["betas"]) == (0.02, (0.8, 0.9))
    assert type(build_optimizer("adam", parameters, 1e-3)) is torch.optim.Adam
    sgd = build_optimizer("sgd", parameters, 1e-3, 0.1)
    assert (type(sgd), sgd.defaults["weight_decay"], sgd.defaults["momentum"]) == (torch.optim.SGD, 0.1, 0)


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_one_pass_over_all_parameters_takes_the_same_steps(kind: str) -> None:
    result = []
    for fused in (False, True):
        generator = torch.Generator().manual_seed(3)
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (7,))]
        optimizer = build_optimizer(kind, parameters, 1e-2, 0.05, fused=fused)  # type: ignore[arg-type]
        for _ in range(20):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        result.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    torch.testing.assert_close(*result, rtol=1e-4, atol=1e-5)
