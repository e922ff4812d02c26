"""The one rule for logits that are no numbers: such a pixel has no class, and too many of them are an error.

NaN and infinity come from weights that are damaged or diverged, or from pixels that no network can read. The largest of
some NaN is class 0 to every library: without this rule they would become a map of one class.
"""

from __future__ import annotations

from typing import Any

MOST_NOT_FINITE = 0.001
"""Share of the pixels with data that may have logits that are not finite; more is an error."""


def finite_pixels(scores: Any, axis: int) -> Any:
    """Return where all classes have a finite logit or probability.

    A sum carries NaN and infinity of any class, and takes one pass and no look at the host.

    Args:
        scores: Logits or probabilities, a torch tensor with the classes along `axis`.
        axis: Of the classes; it is gone in the result.

    Returns:
        bool, of the pixels.
    """
    return scores.sum(axis).isfinite()


def too_many_not_finite(count: int, n_valid: int, what: str) -> str | None:
    """Return what to say about pixels whose logits are not finite; None where they are few enough.

    Args:
        count: Pixels with data whose logits are not finite.
        n_valid: Pixels with data, these included.
        what: Whose pixels they are, for the message.
    """
    if not count or count <= MOST_NOT_FINITE * n_valid:
        return None
    return (
        f"{what}: the network gives no finite numbers for {count} of {n_valid} pixels with data "
        f"({count / n_valid:.1%}, at most {MOST_NOT_FINITE:.1%} may be left out). Its weights are damaged or have "
        f"diverged, or an input holds numbers without meaning that no nodata value declares: see `flairhub check`."
    )
