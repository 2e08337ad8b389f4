"""Two nights over a STAC API on pgstac, with paging, late, replaced and repeated items, and halves that come late."""

from __future__ import annotations

import os

import pytest
from benchmarks.bench_nightly import nights, pgstac, sender_to_api

from infra import stack
from pancrafter.catalog import PAGE_SIZE

pytestmark = pytest.mark.services


def test_two_nights_over_pgstac(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        stack.install()
        reason = stack.missing()
    except stack.StackError as error:
        reason = str(error)
    if reason:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("nights")
    for parent in (folder, *folder.parents[:2]):  # PostgreSQL runs as somebody else
        parent.chmod(0o755)
    count = 6 * PAGE_SIZE + 13
    with pgstac(folder / "servers") as url:
        first, second = nights("STAC API", url, folder / "work", count, sender_to_api(url))
    assert not (folder / "servers").exists()
    for found in (first, second):
        assert (found["missed"], found["not_expected"], found["in_wrong_state"]) == (0, 0, 0), found
    assert first["items"] == count
    assert first["outcomes"]["published"] + first["outcomes"].get("held", 0) == 4
    assert second["late"] == 12
    assert second["other_halves"] == 7
    assert second["outcomes"].get("published") == 1, "the scene whose files were replaced"
