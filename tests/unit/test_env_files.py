"""A line of .env without finding means the same in Compose and in process mode."""

import json
import subprocess
from pathlib import Path

import pytest
from dotenv import dotenv_values

from checks.env_files import ambiguous_lines, names
from checks.project import has_compose
from tests.support.commands import lacking

# Values that both programs read alike.
ALIKE = [
    "a", "a b", "a #b", "a# b", "${OTHER}", "${OTHER:-x}", "5$", "a$1", "a\\b", "'a b'", "'a$b'", "'a\\nb'",
    "'a'", "'a' #c", "it's", '"a b"', '"a\\tb"', '"a\\\\b"', '"a\\"b"', '"a" #c', "#a", " a ", "a=b",
    "`x`", "$(x)", "''", "", "'#'", '"a #b"', "'a #b'", "'$'", "'a$$b'", '"two\nlines"', "'two\nlines'",
]  # fmt: skip
# Values that they read differently, or that Compose refuses.
DIFFERENT = [
    "a$b", "a$$b", "${OTHER-x}", "'a${b}'", "'a'b", "'a", '"a$b"', '"a\\$b"', '"a"b', '"a', " #a", "a\t#b",
    "a\\$b", "'a\\\\b'", "${", "${}", "$${a}", "'\\'",
]  # fmt: skip


def compose_value(folder: Path, text: str) -> str | None:
    """What a container gets, or "refused"."""
    (folder / "service.env").write_text(text)
    (folder / "compose.yml").write_text("services: {a: {image: x, env_file: [service.env]}}\n")
    words = ["docker", "compose", "--env-file", "/dev/null", "config", "--format", "json"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        return "refused"
    value = json.loads(done.stdout)["services"]["a"].get("environment", {}).get("NAME")
    return value.replace("$$", "$") if value else value


def process_value(folder: Path, text: str) -> str | None:
    """What a process gets in process mode."""
    (folder / "process.env").write_text(text)
    return dotenv_values(folder / "process.env").get("NAME")


@pytest.mark.parametrize("value", ALIKE)
@pytest.mark.filterwarnings("ignore")
def test_a_line_without_finding_is_read_alike(value: str, tmp_path: Path) -> None:
    """Both programs say so."""
    text = f"NAME={value}\n"
    assert list(ambiguous_lines(text)) == []
    if not has_compose():
        lacking("no Docker Compose to read the line")
    assert compose_value(tmp_path, text) == process_value(tmp_path, text)


@pytest.mark.parametrize("value", DIFFERENT)
def test_a_line_with_finding_is_read_differently(value: str, tmp_path: Path) -> None:
    """The finding names the line, the variable and the right form, and not the value."""
    text = f"# A comment.\n\nNAME={value}\n"
    ((number, name, problem),) = ambiguous_lines(text)
    assert (number, name) == (3, "NAME")
    assert "; change " in problem
    if not has_compose():
        lacking("no Docker Compose to read the line")
    assert compose_value(tmp_path, text) != process_value(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "number"), [("\ufeffNAME=a", 1), ("A=1\nNAME: a", 2), ("NAME", 1), ("A='1\n2'\nB C=1", 3)]
)
def test_a_line_that_is_no_assignment_is_named(text: str, number: int) -> None:
    """A byte order mark, the form of YAML, a name alone, a name with a blank."""
    assert [line for line, _, _ in ambiguous_lines(text)] == [number]


def test_names_have_line_numbers() -> None:
    """Comments, blank lines and values of several lines count."""
    assert names("# A=1\n\nB=1\nexport C = '1\n2'\nD=\n") == {"B": 3, "C": 4, "D": 6}
