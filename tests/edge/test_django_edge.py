"""Django behind the edge: its cookies stay in TLS, its static files as they are."""

import re

from tests.support.browser import Browser


def test_a_static_file_of_django_is_not_compressed_again(browser: Browser) -> None:
    """It comes from the application as it is packed there."""
    style = re.search(r'href="(/static/\S+\.css)"', browser.ask("django").text)
    assert style
    static = browser.ask("django", style[1], headers={"accept-encoding": "br"})
    assert static.headers.get_list("content-encoding") == ["br"]
    assert "max-width" in static.text


def test_a_form_of_django_works_over_tls_and_its_cookies_stay_there(browser: Browser) -> None:
    """CSRF holds, cookies are Secure and no redirect leads out of TLS."""
    page = browser.ask("django")
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert token
    for flag in ("Secure", "HttpOnly", "SameSite=Lax"):
        assert flag in page.headers["set-cookie"].split("; ")
    form = {"author": "Ada", "message": "over TLS", "csrfmiddlewaretoken": token[1]}
    cookie = {"cookie": f"csrftoken={page.cookies['csrftoken']}"}
    for origin, status in {
        f"https://django.localhost:{browser.port}": 302,
        "https://evil.example": 403,
    }.items():
        answer = browser.ask("django", "/", "POST", data=form, headers=cookie | {"origin": origin})
        assert status == answer.status_code, answer.text
        assert not answer.headers.get("location", "").startswith("http:")


def test_a_session_of_django_stays_in_tls(browser: Browser) -> None:
    """The admin sets a cookie that no script, no other site and no plain HTTP sees."""
    password = {"DJANGO_SUPERUSER_PASSWORD": "only here"}
    browser.stack.manage_django("createsuperuser --noinput --username ada --email ada@localhost", **password)
    page = browser.ask("django", "/admin/login/")
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)[1]
    form = {"username": "ada", "password": "only here", "csrfmiddlewaretoken": token, "next": "/admin/"}
    origin = {"origin": f"https://django.localhost:{browser.port}"}
    headers = origin | {"cookie": f"csrftoken={page.cookies['csrftoken']}"}
    answer = browser.ask("django", "/admin/login/", "POST", data=form, headers=headers)
    assert (answer.status_code, answer.headers.get("location")) == (302, "/admin/"), answer.text
    cookies = [cookie.split("; ") for cookie in answer.headers.get_list("set-cookie")]
    session = next(cookie for cookie in cookies if cookie[0].startswith("sessionid="))
    assert {"Secure", "HttpOnly", "SameSite=Lax"} <= set(session)
