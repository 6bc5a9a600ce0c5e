"""Django's pages: static files, the form, the admin, in containers and as processes."""

import gzip
import re

import brotli
import httpx2

from tests.support.processes import Stack


def sign(http: httpx2.Client, url: str, author: str, message: str) -> httpx2.Response:
    """Post an entry to the guestbook with the page's own CSRF token."""
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', http.get(url).text)
    assert token
    form = {"author": author, "message": message, "csrfmiddlewaretoken": token[1]}
    return http.post(url, data=form)


def test_static_files_are_hashed_compressed_and_immutable(stack: Stack, http: httpx2.Client) -> None:
    """The page names hashed files; each comes plain, as gzip and as brotli, to be kept for ever."""
    url = stack.urls["django"]
    page = http.get(url + "/").text
    path = re.search(r'href="(/static/guestbook\.[0-9a-f]{12}\.css)"', page)
    assert path, page
    plain = http.get(url + path[1], headers={"accept-encoding": "identity"})
    assert b"max-width" in plain.content
    assert re.fullmatch(r"max-age=\d{8,}, public, immutable", plain.headers["cache-control"])
    for encoding, unpack in (("gzip", gzip.decompress), ("br", brotli.decompress)):
        with http.stream("GET", url + path[1], headers={"accept-encoding": encoding}) as packed:
            assert packed.headers["content-encoding"] == encoding
            assert unpack(b"".join(packed.iter_raw())) == plain.content
    image = re.search(r'src="(/static/guestbook\.[0-9a-f]{12}\.svg)"', page)
    assert image
    assert http.get(url + image[1]).headers["content-type"] == "image/svg+xml"
    # Browsers ask for this where a page, such as the admin's, names no icon.
    assert http.get(url + "/favicon.ico").headers["location"] == image[1]


def test_the_guestbook_shows_newest_first_on_pages_of_ten(stack: Stack, http: httpx2.Client) -> None:
    """Twelve entries make two pages; markup in them is text."""
    url = stack.urls["django"] + "/"
    for number in range(12):
        assert sign(http, url, "Ada", f"<b>entry {number}</b>").status_code == 302
    first, second = http.get(url).text, http.get(url + "?page=2").text
    assert [f"&lt;b&gt;entry {n}&lt;/b&gt;" for n in range(11, 1, -1)] == re.findall(r"&lt;b.*?/b&gt;", first)
    assert "&lt;b&gt;entry 1&lt;/b&gt;" in second
    assert "<b>entry" not in first + second


def test_the_guestbook_refuses_a_forged_form_and_a_blank_one(stack: Stack, http: httpx2.Client) -> None:
    """403 without a token, 422 with nothing in it; neither is kept."""
    url = stack.urls["django"] + "/"
    forged = http.post(url, data={"author": "Eve", "message": "forged entry"})
    assert forged.status_code == 403
    assert "Traceback" not in forged.text
    assert sign(http, url, "", "anonymous entry").status_code == 422
    assert "forged entry" not in http.get(url).text
    assert "anonymous entry" not in http.get(url).text


def test_a_guestbook_entry_survives_a_restart(stack: Stack, http: httpx2.Client) -> None:
    """What was signed is still there after the service stopped and started."""
    url = stack.urls["django"] + "/"
    assert sign(http, url, "Grace", "I was here before").status_code == 302
    assert stack.stop("django") == 0
    stack.start("django")
    assert "I was here before" in http.get(url).text


def test_the_admin_lets_a_new_superuser_in(stack: Stack, http: httpx2.Client) -> None:
    """Createsuperuser works in both runtimes, and the guestbook is in the admin."""
    url = stack.urls["django"]
    arguments = "createsuperuser --noinput --username root --email root@example.org"
    stack.manage_django(arguments, DJANGO_SUPERUSER_PASSWORD="correct horse battery")
    login = f"{url}/admin/login/"
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', http.get(login).text)
    assert token
    form = {"username": "root", "password": "correct horse battery", "csrfmiddlewaretoken": token[1]}
    answer = http.post(login, data=form)
    assert answer.status_code == 302, answer.text
    listing = http.get(f"{url}/admin/guestbook/entry/")
    assert listing.status_code == 200
    assert "Select entry to change" in listing.text
