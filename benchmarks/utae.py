"""Time U-TAE against the paper's module: same weights, same outputs, interleaved rounds in one process.

    python benchmarks/utae.py [--rounds 7] [--threads 1]

Prints ratios (paper / ours); absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from utae_paper import PaperUTAE

from flairhub.models import SeriesOptions
from flairhub.models.utae import UTAE

RAGGED = (90, 30, 45, 25)
BUDGETS = {"eval": 1.8, "train": 1.4, "ragged eval": 2.5}


def make_batch(lengths: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return (batch, time, 10, 10, 10) values, (batch, time) day offsets and their mask; padding is 0."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    x = torch.randn(len(lengths), longest, 10, 10, 10, generator=generator)
    dates = torch.randint(-134, 231, (len(lengths), longest), generator=generator).sort(dim=1).values
    mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    return x * mask[:, :, None, None, None], dates * mask, mask


def compare(rounds: int, pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]]) -> dict[str, list[float]]:
    """Run both sides of each pair in turns and return the ratios of their times, one per round."""
    for paper, ours in pairs.values():
        paper(), ours()
    ratios: dict[str, list[float]] = {name: [] for name in pairs}
    for _ in range(rounds):
        for name, sides in pairs.items():
            seconds = []
            for side in sides:
                start = time.perf_counter()
                side()
                seconds.append(time.perf_counter() - start)
            ratios[name].append(seconds[0] / seconds[1])
    return ratios


def main() -> None:
    """Check equal outputs, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    paper = PaperUTAE()
    ours = UTAE(10, SeriesOptions(), (32, 19))
    ours.load_state_dict(paper.state_dict())
    even, ragged = make_batch((60,) * 4), make_batch(RAGGED)
    check_equal(paper.eval(), ours.eval(), even, ragged)

    def evaluate(model: torch.nn.Module, *batch: Tensor | None) -> Callable[[], object]:
        def run() -> object:
            model.eval()
            with torch.no_grad():
                return model(*batch)

        return run

    def train(model: torch.nn.Module, *batch: Tensor) -> Callable[[], object]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

        def run() -> None:
            model.train()
            optimizer.zero_grad()
            logits, maps = model(*batch)
            (logits.square().mean() + sum(m.mean() for m in maps)).backward()
            optimizer.step()

        return run

    pairs = {
        "eval": (evaluate(paper, *even[:2]), evaluate(ours, *even)),
        "train": (train(paper, *even[:2]), train(ours, *even)),
        "ragged eval": (evaluate(paper, *ragged[:2]), evaluate(ours, *ragged)),
    }
    print(
        f"paper / ours, {arguments.threads} thread(s), {arguments.rounds} rounds, T=60 and T={RAGGED}, 10x10, batch 4"
    )
    for name, ratios in compare(arguments.rounds, pairs).items():
        middle = statistics.median(ratios)
        verdict = "ok" if middle >= BUDGETS[name] else "BELOW BUDGET"
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"{name:12s} {middle:5.2f}x  ({spread})  budget {BUDGETS[name]}x  {verdict}")


def check_equal(paper: PaperUTAE, ours: UTAE, even: tuple[Tensor, ...], ragged: tuple[Tensor, ...]) -> None:
    """Equal outputs; of the ragged batch each sample alone, because the paper's statistics see the padding."""
    with torch.no_grad():
        expected = paper(*even[:2])[0]
        error = (ours(*even)[0] - expected).abs().max() / expected.abs().max()
        print(f"largest relative difference, even batch:   {error:.1e}")
        logits = ours(*ragged)[0]
        alone = torch.cat([paper(ragged[0][i : i + 1, :n], ragged[1][i : i + 1, :n])[0] for i, n in enumerate(RAGGED)])
        error = (logits - alone).abs().max() / alone.abs().max()
        print(f"largest relative difference, ragged batch: {error:.1e} (the paper's module sample by sample)")


if __name__ == "__main__":
    main()
