"""Clients of the shared stack's edge."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.support.browser import Browser
from tests.support.containers import Containers


@pytest.fixture(scope="module")
def browser(containers: Containers) -> Iterator[Browser]:
    """A browser of the shared stack."""
    with Browser(containers) as client:
        yield client


@pytest.fixture
def plain() -> Iterator[httpx2.Client]:
    """A client for the plain listeners."""
    with httpx2.Client(trust_env=False) as client:
        yield client
