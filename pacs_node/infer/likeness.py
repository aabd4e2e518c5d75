"""Whether an image looks like what the models were made for: an upright frontal chest, bone bright.

Headers say so first (pacs_node.route.scope), but headers can be wrong or empty: a hip without
BodyPartExamined, an image whose polarity or orientation is not what its header says. A model would give
something for it all the same, so what is far from every chest seen is refused.

The measure is linear: the ranks of the image's grey levels on a coarse square, weighted. Ranks, because they
are the same under any window or tone curve. The weights are fitted by ``python -m export.chest``, which
prints how chests and others score: of 326 upright NIH chests of unseen patients all from 0.2 on, other
hospitals' from 3.3; an upside-down one -5.7; inverted ones under -1.2; hips, a tibia and a dog, of whose kind
none was learnt from, from -12 to -6. Laterals cannot be told apart by it: three of six are refused.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pacs_node.errors import Refused
from pacs_node.infer.geometry import Frame

Array = NDArray[np.float32]

WEIGHTS = Path(__file__).with_name("likeness.npy")
#: Side of the coarse square.
SIDE = 32
#: What scores less is refused.
LEAST = -2.0


def ranks(image: Array) -> Array:
    """(H, W) -> (SIDE * SIDE,): the place of each grey level of the coarse square among all, from -1 to 1."""
    small = Frame(image.shape[0], image.shape[1], SIDE).to_square(image).ravel()
    found = np.empty(small.size, np.float32)
    found[np.argsort(small, kind="stable")] = np.linspace(-1, 1, small.size, dtype=np.float32)
    return found


@cache
def _weights() -> Array:
    weights: Array = np.load(WEIGHTS, allow_pickle=False).astype(np.float32)
    return weights


def resemblance(image: Array) -> float:
    """The score of a float32 image (H, W), bone bright; from ``LEAST`` on it may be an upright chest."""
    weights = _weights()
    return float(ranks(image) @ weights[:-1] + weights[-1])


def check_chest(image: Array) -> None:
    """Raises Refused("not-a-chest") for an image that does not look like one."""
    if (score := resemblance(image)) < LEAST:
        raise Refused(
            "not-a-chest",
            f"The pixels do not look like an upright frontal chest radiograph (score {score:.1f}, at least "
            f"{LEAST:g} is wanted)",
            "Check its orientation and PhotometricInterpretation; if it is a chest and shown right, set "
            "limits.check_content to false",
        )
