"""A clustering in sentences: sizes, the share of the largest, stability, and what it predicts of held-out answers."""

from clusterlora.clustering.choice import FOUND_AGAIN, STANDARD_ERRORS, WORTH_HAVING
from clusterlora.values import Clustering

STABLE, UNSTABLE = 0.8, 0.5
"""Adjusted Rand indices from which clusters count as stable, and below which as unstable."""


def sentence(clustering: Clustering) -> str:
    """Return what the clusters are, and how far they can be trusted, in a line or two."""
    if len(clustering.members) < 2:
        return _no_clusters(clustering)
    n, quality = sum(clustering.sizes), dict(clustering.quality)
    parts = [
        f"{len(clustering.members)} clusters by {clustering.algorithm}, of {', '.join(map(str, clustering.sizes))} people; "
        f"the largest has {max(clustering.sizes) / n:.0%}"
    ]
    if stability := _stability(quality):
        parts.append(stability)
    if "predicted" in quality:
        parts.append(
            f"the other members of a cluster predict {_percent(quality['predicted'])} of what prompts leave open of held-out answers"
        )
        if quality["predicted"] < WORTH_HAVING:
            parts[-1] += f", less than the {_percent(WORTH_HAVING)} that clusters worth having do"
    return "; ".join(parts) + "."


def _no_clusters(clustering: Clustering) -> str:
    tried = [point for point in clustering.curve if point[0] > 1]
    n = sum(clustering.sizes)
    if not tried:
        return (
            f"No clusters: {n} people are too few for two of clustering.min_size, or their answers give nothing to divide them by. "
            "Methods that need clusters are left out."
        )
    k, predicted, stability = max(tried, key=lambda point: (point[2] >= FOUND_AGAIN, point[1]))
    missed = [_percent(WORTH_HAVING)] if predicted < WORTH_HAVING else []
    missed += [f"a stability of {FOUND_AGAIN}"] if stability < FOUND_AGAIN else []
    asked = f"{' and '.join(missed)} {'are' if len(missed) > 1 else 'is'} asked"
    reason = asked if missed else f"that is not {STANDARD_ERRORS:g} standard errors of its mean over people, so it may be chance"
    return (
        f"No clusters worth having among {n} people: the best by {clustering.algorithm}, with k = {k} and stability {stability:.2f}, "
        f"predict {_percent(predicted)} of what prompts leave open of held-out answers; {reason}. "
        f"Methods that need clusters are left out; clustering.k = {k} keeps them."
    )


def _stability(quality: dict[str, float]) -> str:
    """Return the agreement with partitions of resampled answers, or of other seeds where there is one answer each."""
    for name, of in (("ari_bootstraps", "resampled answers"), ("ari_seeds", "other seeds")):
        if name in quality:
            value = quality[name]
            word = "stable" if value >= STABLE else "unstable" if value < UNSTABLE else "moderately stable"
            return f"{word} (adjusted Rand index {value:.2f} with those of {of})"
    return ""


def _percent(share: float) -> str:
    """Return a share in percent; a negative one, or one that rounds to zero, is none."""
    if share < 5e-5:
        return "none"
    return f"{100 * share:.2f} %"
