"""Products over samples: as plain ones, in the thread that asks for them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pancrafter.moments import mixtures, products

MEASURING = """
import time
import numpy as np
from scipy.ndimage import gaussian_filter
from pancrafter.alignment import estimate_band_shifts
from pancrafter.sharpness import sharpness

def share_elsewhere(work):
    work()
    whole, own = time.process_time(), time.thread_time()
    work()
    own = time.thread_time() - own
    return (time.process_time() - whole - own) / own

pan = 1000 + 300 * gaussian_filter(np.random.default_rng(0).normal(size=(1024, 1024)), 1)
ms = np.stack([gaussian_filter(pan, 2)[2::4, 2::4]] * 4)
measure_shifts = lambda: estimate_band_shifts(pan, ms, 4, (1.5, 1.5))
measure_sharpness = lambda: sharpness(pan, ms, 4, [(1.5, 1.5)] * 4)
for work in (measure_shifts, measure_sharpness):
    time.sleep(0.2)
    print(min(share_elsewhere(work) for _ in range(5)))
"""


@pytest.mark.parametrize("samples", [1, 2**13, 2**13 + 1, 70_001])
@pytest.mark.parametrize("rows", [1, 3, 25])
def test_as_plain_products(rows: int, samples: int) -> None:
    rng = np.random.default_rng(rows)
    first, second = rng.normal(size=(3, samples)), rng.normal(size=(rows, samples))
    np.testing.assert_allclose(products(first, second), first @ second.T, rtol=1e-9, atol=1e-9)
    weights = rng.normal(size=(3, rows)).astype(np.float32)
    mixed = mixtures(weights, second.astype(np.float32))
    np.testing.assert_allclose(mixed, weights @ second.astype(np.float32), rtol=1e-4, atol=1e-4)


def test_measuring_bands_wakes_no_other_thread() -> None:
    """Windows are measured side by side: threads of OpenBLAS that spin beside them take as much CPU time again."""
    printed = subprocess.run([sys.executable, "-c", MEASURING], check=True, capture_output=True, text=True).stdout
    shares = [float(line) for line in printed.split()]
    assert len(shares) == 2
    assert max(shares) < 0.3, shares
