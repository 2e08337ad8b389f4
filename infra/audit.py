"""``python -m infra.audit``: known vulnerabilities of the pinned dependencies, and no pass that was not looked for.

Exit status 0: every package was looked up and none has an unaccepted vulnerability. 1: vulnerabilities. 3: the advisory
database could not be asked about all of them, which pip-audit itself counts as a pass. What was judged (id, reason,
until when) is in ``requirements/audit-accepted.yml``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[1]
PINNED = PROJECT / "requirements" / "constraints-py311.txt"
ACCEPTED = PROJECT / "requirements" / "audit-accepted.yml"
VULNERABLE, NOT_DONE = 1, 3


@dataclass(frozen=True)
class Findings:
    """What an audit found, and what it could not look up."""

    vulnerable: tuple[str, ...]
    not_audited: tuple[str, ...]
    count: int

    @property
    def status(self) -> int:
        """Exit status."""
        if self.vulnerable:
            return VULNERABLE
        return NOT_DONE if self.not_audited or not self.count else 0


def judge(report: Mapping[str, Any], accepted: Sequence[Mapping[str, Any]], today: date) -> Findings:
    """Findings of pip-audit's JSON report. An accepted vulnerability counts again when its time is over."""
    fine = {entry["id"] for entry in accepted if entry["until"] >= today}
    vulnerable, not_audited = [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            not_audited.append(str(package["name"]))
        for known in package.get("vulns", []):
            if not fine & {known["id"], *known.get("aliases", [])}:
                mended = ", ".join(known["fix_versions"]) or "no version yet"
                vulnerable.append(f"{package['name']} {package['version']}: {known['id']}, mended in {mended}")
    return Findings(tuple(vulnerable), tuple(not_audited), len(report["dependencies"]))


def ask(pinned: Path) -> Mapping[str, Any]:
    """pip-audit's report; one without packages where it could not do its work."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(pinned), "--no-deps", "--disable-pip"]
    done = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True, check=False
    )
    try:
        report: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        print(done.stderr.strip()[-500:], file=sys.stderr)
        return {"dependencies": []}
    return report


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m infra.audit", description=__doc__)
    parser.add_argument("--pinned", type=Path, default=PINNED)
    options = parser.parse_args()
    accepted = yaml.safe_load(ACCEPTED.read_text()) or []
    found = judge(ask(options.pinned), accepted, datetime.now(UTC).date())
    for line in found.vulnerable:
        print(f"VULNERABLE: {line}")
    if found.status == NOT_DONE:
        left = f"{len(found.not_audited)} of {found.count} packages" if found.count else "any package"
        print(
            f"DEPENDENCY AUDIT NOT DONE: the advisory database says nothing about {left}; repeat it with access to PyPI"
        )
    if found.status == 0:
        print(f"dependency audit: {found.count} packages, none vulnerable")
    return found.status


if __name__ == "__main__":
    sys.exit(main())
