"""Sums of products over many samples, which correlations, regressions and fits are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ONE_THREAD_PRODUCTS = 2**18
"""Up to so many multiplications at once OpenBLAS wakes no thread."""


def products(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """``first @ second.T`` of two arrays (row, sample) of the same samples.

    Taken few samples at a time: OpenBLAS does so little work in this thread, where it would otherwise wake a thread for
    every core and let them spin for a while beside ours. Added in float64, whatever the samples are.
    """
    step = max(1, _ONE_THREAD_PRODUCTS // (len(first) * len(second)))
    total = np.zeros((len(first), len(second)))
    for start in range(0, first.shape[1], step):
        total += first[:, start : start + step] @ second[:, start : start + step].T
    return total
