"""Settings from the environment: what is allowed, and the line for everything else."""

import pytest

from serving import settings


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 7), (" ", 7), ("1", 1), ("1048576", 2**20), ("512KiB", 2**19), ("1MiB", 2**20), ("2GiB", 2**31)],
)
def test_a_size(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, or a whole number of KiB, MiB or GiB."""
    monkeypatch.setenv("MAX_BODY", text)
    assert settings.size("MAX_BODY", 7) == size


@pytest.mark.parametrize("text", ["0", "0MiB", "-1", "1.5MiB", "1 MiB", "1MB", "1mib", "MiB", "\u0661"])
def test_a_wrong_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has the value and an example."""
    monkeypatch.setenv("MAX_BODY", text)
    with pytest.raises(
        settings.SettingError, match=r"^MAX_BODY='.*': must be a whole number of bytes, or of"
    ):
        settings.size("MAX_BODY", 7)


@pytest.mark.parametrize(("text", "seconds"), [("", 20), ("1", 1), ("3600", 3600)])
def test_the_request_timeout(text: str, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole seconds."""
    monkeypatch.setenv("REQUEST_TIMEOUT", text)
    assert settings.request_timeout() == seconds


@pytest.mark.parametrize("text", ["0", "3601", "20s", "1.5"])
def test_a_wrong_request_timeout(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two other programs read it as well, so nothing else is allowed."""
    monkeypatch.setenv("REQUEST_TIMEOUT", text)
    with pytest.raises(settings.SettingError, match="must be a whole number from 1 to 3600"):
        settings.request_timeout()


@pytest.mark.parametrize(
    ("text", "default", "value"), [("", True, True), ("", False, False), ("off", True, False)]
)
def test_a_flag_has_a_default(text: str, default: bool, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset and empty are the same."""
    monkeypatch.setenv("PRELOAD", text)
    assert settings.flag("PRELOAD", default=default) is value


@pytest.mark.parametrize(
    ("value", "origin"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("https://app.example.com/", "https://app.example.com"),
        ("HTTPS://App.Example.com", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:80/", "http://app.example.com"),
        ("http://app.example.com:443", "http://app.example.com:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_an_origin_is_normalized(value: str, origin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To what a browser sends."""
    monkeypatch.setenv("ORIGINS", f"{value}, https://other.example.com")
    assert settings.origins("ORIGINS") == [origin, "https://other.example.com"]


def test_an_origin_with_subdomains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the caller can compare them."""
    monkeypatch.setenv("ORIGINS", "https://*.Example.com/")
    assert settings.origins("ORIGINS", subdomains=True) == ["https://*.example.com"]
    with pytest.raises(settings.SettingError, match="must be origins such as"):
        settings.origins("ORIGINS")


@pytest.mark.parametrize("value", ["https://a.*.b", "https://*", "https://*a.b", "*.a.b"])
def test_a_wrong_origin_with_subdomains(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A star stands for whole labels at the beginning."""
    monkeypatch.setenv("ORIGINS", value)
    with pytest.raises(settings.SettingError, match="must be origins such as"):
        settings.origins("ORIGINS", subdomains=True)
