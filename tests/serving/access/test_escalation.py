import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.access.escalation import strip_admin_prefix
from serving.pipeline.questions import normalise_question

QUESTION = "Where do traces go?"


@pytest.mark.parametrize(
    "prefix",
    [
        "[admin] ", "[ADMIN]", "[Admin]: ", " [ admin ] ", "[ad\u200bmin] ", "[a\u00addmin] ",
        "\uff3b\uff21\uff24\uff2d\uff29\uff2e\uff3d ", "\u3010admin\u3011", "[\u0430dmin] ",
        "[\u0251dm\u0456n] ", "[\u00e1dm\u00edn] ", "[adm1n] ", "[a d m i n] ",
        "[admin][admin] [ADMIN] ", "[\U0001d41a\U0001d41d\U0001d426\U0001d422\U0001d427] ",
        "(admin) ", "\u202e[admin] ", "[admin] - ",
    ],
)  # fmt: skip
def test_every_spelling_of_the_prefix_is_taken_off(prefix: str) -> None:
    assert strip_admin_prefix(prefix + QUESTION) == (QUESTION, True)


@pytest.mark.parametrize(
    "question",
    [
        QUESTION,
        "[administrator] who may ask?",
        "admin: who may ask?",
        "[edit] What is the [admin] prefix?",
        "What does [admin] do?",
        "(admins) who are they?",
        "",
        "[]",
    ],
)
def test_other_questions_stay_as_they_are(question: str) -> None:
    assert strip_admin_prefix(question) == (question, False)


def test_a_prefix_alone_leaves_nothing() -> None:
    assert strip_admin_prefix("[admin] [admin]") == ("", True)


@given(st.text(max_size=60))
def test_what_is_left_never_starts_with_the_prefix(text: str) -> None:
    rest, found = strip_admin_prefix(f"[admin]{text}")
    assert found
    assert strip_admin_prefix(rest) == (rest, False)
    assert normalise_question(text).endswith(rest)
