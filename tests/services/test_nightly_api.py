"""Two nights over a STAC API on pgstac, with paging, late, replaced and repeated items, and halves that come late."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from benchmarks.bench_nightly import nights, pgstac, sender_to_api
from real_stack import need_servers

from pancrafter.catalog import PAGE_SIZE

pytestmark = pytest.mark.services


def test_two_nights_over_pgstac(tmp_path: Path) -> None:
    need_servers()
    count = 6 * PAGE_SIZE + 13
    with tempfile.TemporaryDirectory() as folder:  # PostgreSQL's own user may not enter that of the test
        Path(folder).chmod(0o711)
        servers = Path(folder, "servers")
        with pgstac(servers) as url:
            first, second = nights("STAC API", url, tmp_path, count, sender_to_api(url))
        assert not servers.exists()
    for found in (first, second):
        assert (found["missed"], found["not_expected"], found["in_wrong_state"]) == (0, 0, 0), found
    assert first["items"] == count
    assert first["outcomes"]["published"] + first["outcomes"].get("held", 0) == 4
    assert second["late"] == 12
    assert second["other_halves"] == 7
    assert second["outcomes"].get("published") == 1, "the scene whose files were replaced"
