"""The files for deployments say what the code needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

S3 = Path(__file__).resolve().parents[1] / "infra" / "s3"


def statements(name: str) -> list[dict[str, Any]]:
    return json.loads((S3 / name).read_text())["Statement"]


@pytest.mark.parametrize("name", ["publisher-policy.json", "reader-policy.json"])
def test_rights_end_at_the_catalog(name: str) -> None:
    for statement in statements(name):
        assert statement["Effect"] == "Allow"
        assert not [action for action in statement["Action"] if "*" in action]
        if statement["Action"] == ["s3:ListBucket"]:
            assert statement["Condition"]["StringLike"]["s3:prefix"] == ["sharpened", "sharpened/*"]
        else:
            assert statement["Resource"] == "arn:aws:s3:::BUCKET/sharpened/*"


def test_reader_only_reads_and_publisher_may_do_what_a_sink_does() -> None:
    assert [statement["Action"] for statement in statements("reader-policy.json")] == [["s3:GetObject"]]
    allowed = {action for statement in statements("publisher-policy.json") for action in statement["Action"]}
    assert {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:AbortMultipartUpload"} == allowed


def test_lifecycle_never_expires_what_is_published() -> None:
    (rule,) = json.loads((S3 / "lifecycle.json").read_text())["Rules"]
    assert set(rule) == {"ID", "Status", "Filter", "AbortIncompleteMultipartUpload"}
