import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.tracing.scrub import scrub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail jane.doe+x@mail.example.co.uk now", "mail [email] now"),
        ("card 4111 1111 1111 1111 declined", "card [card] declined"),
        ("card 4111-1111-1111-1111", "card [card]"),
        ("call +44 20 7946 0958 today", "call [phone] today"),
        ("call (415) 555-2671", "call [phone]"),
        ("call 415-555-2671", "call [phone]"),
        ("call 030 1234 5678", "call [phone]"),
        ("call 4155552671", "call [phone]"),
        ("key sk-proj-abc123DEF456ghi789jkl", "key [secret]"),
        ("use ghp_16C7e42F292c6912E7710c838347Ae178B4a", "use [secret]"),
        ("AKIAIOSFODNN7EXAMPLE leaked", "[secret] leaked"),
        ("us_3f9c0a1b_0123456789abcdef0123", "[secret]"),
        ("Authorization: Bearer abc123def456", "Authorization: Bearer [secret]"),
        ("MY_API_KEY=abc123def456 in .env", "MY_API_KEY=[secret] in .env"),
        ("postgres://app:hunter@localhost/docs", "postgres://app:[secret]@localhost/docs"),
        ("https://app:hunter@docs.example", "https://app:[secret]@docs.example"),
        ('{"password": "it, is; long", "user": 1}', '{"password": "[secret]", "user": 1}'),
        ("the password is hunter2aa", "the password is [secret]"),
        ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKE1 leaked", "[secret] leaked"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANB", "[secret]"),
        ("half a \ud83d character", "half a ? character"),
        (
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N",
            "[secret]",
        ),
    ],
)
def test_what_is_personal_or_secret_goes(text: str, expected: str) -> None:
    assert scrub(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Why does port 8321 on 127.0.0.1:3000 refuse connections?",
        "Since version 5.23.1 of 2026-11-21, what changed?",
        "Put it in .env [docs:guides/environment-variables-and-secrets-in-version-5/2]",
        "At 1732212000 the sensor ticked 4000 times",
        "order 1234 5678 9012 3456 is no card",
        "How do I set the API key? The token expires in 3600 seconds",
        "trace 01971b7c-5d2e-7c3a-9f1b-2a4c6e8d0f12",
        "the decorator @app.route and user@host",
        "Read password=os.environ[name] or password: settings.database.password",
        "Is the token a word? The password is required, and a basic TypeScript page is enough",
        "https://docs.example:8321/guides/environment-variables-and-secrets@latest",
        "UNDERSTUDY_SERVE_REQUEST_DEADLINE_SECONDS",
        "password = getPassword()",
        "token = authClient.getToken()",
        "password: required for login",
        "hf_HubDownloadTimeoutError",
        "npm_config_cacheDirectoryPath",
        "src/components/Checkout/v2/PaymentForm/index",
        "[docs:guides/Upgrade/From/Version2/ToVersion3/Index/12]",
        "the token is useEffect related",
    ],
)
def test_what_a_docs_question_is_made_of_stays(text: str) -> None:
    assert scrub(text) == text


@given(st.text(max_size=300))
def test_scrubbing_never_fails_and_is_stable(text: str) -> None:
    once = scrub(text)
    once.encode("utf-8")
    assert scrub(once) == once


@pytest.mark.parametrize("unit", ["a", "1", "1 ", "a@", "0 0", "token=", "+1.", "a.", "eyJ-"])
def test_no_text_makes_it_slow(unit: str) -> None:
    started = time.perf_counter()
    scrub(unit * (4000 // len(unit)))
    assert time.perf_counter() - started < 0.5
