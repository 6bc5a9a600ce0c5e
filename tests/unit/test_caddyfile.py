"""The doctor's reader of Caddyfiles: places, variables, durations and sizes."""

import pytest

from checks.caddyfile import duration, parse, size

TEXT = """
{
	servers :{$PORT:443} {
		timeouts {
			read_header 5s # for slow clients
		}
	}
}
(service) {
	lb_try_duration {$DRAIN}s{$TIMEOUT:20}s35s
	respond "a } brace" 200
	@long expression `{uri}.size() > 4000 { #`
	max_size {$UNSET}
}
"""


def test_directives_have_a_place_and_the_container_s_values() -> None:
    """The line, the blocks around it, and each variable replaced."""
    found = {it.name: it for it in parse("Caddyfile", TEXT, {"DRAIN": "2"})}
    assert found["read_header"].blocks == ("", "servers", "timeouts")
    assert found["servers"].values == (":443",)
    assert str(found["read_header"]) == "Caddyfile:5: read_header=5s"
    assert found["lb_try_duration"].seconds == 57
    assert found["lb_try_duration"].blocks == ("(service)",)
    assert found["max_size"].blocks == ("(service)",)
    assert (found["max_size"].value, found["max_size"].bytes) == ("", None)


@pytest.mark.parametrize(
    ("text", "seconds"), [("20s", 20), ("1m30s", 90), ("2s20s35s", 57), ("500ms", 0.5), ("1d", 86400)]
)
def test_a_duration_is_the_sum_of_its_parts(text: str, seconds: float) -> None:
    """As Go has it, and days as Caddy adds them."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "s", "20 s", "{args[0]}", "off"])
def test_what_is_no_duration_is_none(text: str) -> None:
    """Such a value is not compared."""
    assert duration(text) is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1MiB", 1048576),
        ("10MB", 10_000_000),
        ("1048576", 1048576),
        ("8KiB", 8192),
        ("1gib", 1024**3),
        ("x", None),
    ],
)
def test_a_size_has_binary_and_decimal_units(text: str, count: int | None) -> None:
    """As the edge and the applications have them."""
    assert size(text) == count
