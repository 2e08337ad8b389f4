"""Products over many samples, which correlations, regressions and fits are made of.

Taken few samples at a time: OpenBLAS does so little work in this thread, where it would otherwise wake a thread for
every core and let them spin for a while beside ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ONE_THREAD_PRODUCTS = 2**18
"""Up to so many multiplications at once OpenBLAS wakes no thread for a product of matrices."""

_ONE_THREAD_SAMPLES = 2**13
"""Up to so many it wakes none for a product of vectors."""


def products(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """``first @ second.T`` of two arrays (row, sample) of the same samples, added in float64, whatever they are."""
    total = np.zeros((len(first), len(second)))
    for part in _parts(len(first) * len(second), first.shape[1]):
        total += first[:, part] @ second[:, part].T
    return total


def mixtures(weights: NDArray[np.float32], samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """``weights @ samples``: of every column of ``samples`` (row, sample) so many sums as there are rows of weights."""
    made = np.empty((len(weights), samples.shape[1]), np.float32)
    for part in _parts(weights.size, samples.shape[1]):
        np.matmul(weights, samples[:, part], out=made[:, part])
    return made


def _parts(products_per_sample: int, samples: int) -> Iterator[slice]:
    step = min(max(1, _ONE_THREAD_PRODUCTS // products_per_sample), _ONE_THREAD_SAMPLES)
    return (slice(start, start + step) for start in range(0, samples, step))
