"""Two nights over a static catalog with late, replaced, repeated and broken items: nothing missed or done twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.bench_discovery import serving_files
from benchmarks.bench_nightly import nights, sender_to_folder


def _broken(number: int) -> bool:
    return number % 100 == 7


@pytest.mark.slow
def test_two_nights_over_a_static_catalog(tmp_path: Path) -> None:
    send = sender_to_folder(tmp_path / "catalog", broken=_broken)
    (tmp_path / "work").mkdir()
    with serving_files(tmp_path / "catalog") as url:
        first, second = nights("static catalog", url, tmp_path / "work", 220, send, broken=_broken)
    for found in (first, second):
        assert (found["missed"], found["not_expected"], found["in_wrong_state"]) == (0, 0, 0), found
    assert (first["items"], first["planned"]["incomplete"]) == (217, 22)
    assert second["items"] == 217 + 10 + 3
    assert second["outcomes"].get("published") == 1, "the scene whose files were replaced"
