"""docs/choosing.md, the pictures and the README show the checked-in results, for the modes as they are."""

import re

import pytest

from bench import guide, report
from bench.modes import MODES, ROOT, Mode

RESULTS = guide.results()
GUIDE = guide.GUIDE.read_text()


@pytest.mark.parametrize("page", guide.PAGES, ids=lambda page: page.name)
def test_the_regions_of_a_page_show_the_results(page) -> None:
    """`make bench` would not change a page: each of its regions is filled from the checked-in results."""
    text = page.read_text()
    assert guide.REGION.search(text)
    assert len(re.findall(r"<!-- bench: ", text)) == len(guide.REGION.findall(text))
    assert guide.filled(text, RESULTS) == text


def test_every_region_is_in_a_page() -> None:
    """No table is computed and then shown nowhere."""
    texts = "".join(page.read_text() for page in guide.PAGES)
    assert {name for _, name, _ in guide.REGION.findall(texts)} == set(guide.CONTENT)


def test_prose_around_a_region_survives() -> None:
    """Only what stands between the marks is replaced."""
    page = "before\n<!-- bench: ratios -->\nold\n<!-- /bench -->\nafter\n"
    filled = guide.filled(page, RESULTS)
    assert filled == page.replace("old", report.sentence(RESULTS))


def test_an_unknown_region_is_refused() -> None:
    """A misspelt name is an error, not a region that stays as it is."""
    with pytest.raises(KeyError, match="ratio"):
        guide.filled("<!-- bench: ratio -->\n<!-- /bench -->\n", RESULTS)


def test_the_pictures_show_the_results() -> None:
    """Each committed picture is drawn from the committed results."""
    assert report.pictures(RESULTS) == {path.name: path.read_text() for path in guide.RESULTS.glob("*.svg")}


def test_the_results_are_of_the_modes_as_they_are() -> None:
    """A mode that changed, was added or was removed has to be measured again."""
    measured = {row["name"]: row["command"] for row in RESULTS["modes"]["figures"]}
    assert measured == {mode.name: mode.command for mode in MODES if mode.name in measured or not mode.needs}
    assert set(RESULTS["losses"]["figures"]) == {mode.name for mode in MODES if mode.recycle}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_mode_has_its_paragraph(mode: Mode) -> None:
    """The paragraph begins with the mode's name and its command as one types it."""
    command = mode.command.format(app="APP", port=8000)
    assert f"**{mode.name}** (`{command}`)." in " ".join(GUIDE.split())


def test_the_guide_asks_at_most_seven_questions() -> None:
    """Each question leads to a mode or to another question."""
    questions = re.findall(r"^(\d)\. \*\*.+\*\*", GUIDE, re.MULTILINE)
    assert questions == [str(number) for number in range(1, len(questions) + 1)]
    assert 4 <= len(questions) <= 7
    assert set(re.findall(r"go to (\d)", GUIDE)) <= set(questions)


def test_every_link_of_the_guide_leads_to_a_file() -> None:
    """Links are relative to docs/."""
    links = re.findall(r"\]\((\.\./[^)]+)\)", GUIDE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
