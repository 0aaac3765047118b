"""SECURITY.md says which test shows what: each of them is there, and every provision is named."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
NIST_8259A = {
    "device identification",
    "device configuration",
    "data protection",
    "logical access to interfaces",
    "software update",
    "cybersecurity state awareness",
}


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_test_that_is_named_exists() -> None:
    defined = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.M))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert named - defined == set()


def test_every_provision_has_a_feature_and_a_test() -> None:
    proven = {row[0]: row[2] for row in rows() if len(row) == 3 and "`test_" in row[2]}
    etsi = {name.split()[0] for name in proven if name.startswith("5.")}
    assert etsi == {f"5.{number}" for number in range(1, 14)}
    assert {name for name in proven if not name.startswith("5.")} == NIST_8259A


def test_how_to_report_is_said_without_a_placeholder() -> None:
    assert "Report a\nvulnerability" in PAGE
    assert not re.search(r"example\.|@|TBD|TODO|xxx", PAGE, re.IGNORECASE)
