"""What the exporter says about Django's database and its backups."""

import time
from pathlib import Path

import pytest

from serving.metrics import exporter


@pytest.mark.parametrize(
    ("profiles", "url", "port"),
    [
        ("", "", 0),
        ("metrics", "sqlite:////data/db.sqlite3", 0),
        ("metrics", "postgres://user:password@db.example.com/name", 5432),
        ("", "postgres://user:password@db.example.com:6432/name", 6432),
        ("postgres,metrics", "", 5432),
        ("*", "", 5432),
    ],
)
def test_the_port_of_the_database(
    profiles: str, url: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its URL, or by the profile of Compose that starts one."""
    monkeypatch.setenv("COMPOSE_PROFILES", profiles)
    monkeypatch.setenv("DATABASE_URL", url)
    assert exporter.database_port_of_django() == port


def test_the_age_of_the_newest_restored_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time that can be read there is no series, and so no alert."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert [*exporter.age_of_backup_of_django()] == []
    (tmp_path / "backup_time").write_text("soon")
    assert [*exporter.age_of_backup_of_django()] == []
    (tmp_path / "backup_time").write_text(f"{time.time() - 3600:.0f}\n")
    (family,) = exporter.age_of_backup_of_django()
    assert family.name == "backup_age_seconds"
    assert 3599 <= family.samples[0].value < 3700
