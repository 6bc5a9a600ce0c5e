"""Every service keeps its contract, in containers and as processes."""

import httpx2


def test_x(stack):
    for u in stack.urls.values():
        assert httpx2.get(u + "/").status_code == 200
