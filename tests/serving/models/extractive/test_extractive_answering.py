"""The extractive teacher quotes what answers, refuses what nothing answers, and is always valid."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.models.extractive.answering import answer_question
from serving.models.extractive.sources import read_sources
from serving.models.extractive.units import clean_unit, is_quotable
from serving.models.extractive.vectors import SentenceVectors
from serving.models.protocols import Hit
from serving.pipeline.prompt import PromptFormat, read_answer
from serving.pipeline.validator import ValidatorPolicy, validate
from tests.serving.models.extractive.conftest import WordHashEmbedder, make_sources

RIGHT_ANSWERS = [
    ("How often does Tern take a backup?", "every 6 hours"),
    ("how do i restore the newest backup", "tern restore --latest"),
    ("Which change wins when two machines edit the same file?", "the newer change wins"),
    ("What is the maximum file size?", "2 GB"),
    ("which setting changes the backup interval", "backup.interval_hours"),
]
OUT_OF_SCOPE = [
    "What is the weather in Paris tomorrow?",
    "Who won the world cup in 2014?",
    "How do I reset my Netflix password?",
    "今日の東京のおすすめの観光スポットを教えて",
    "",
]


@pytest.mark.real_models
@pytest.mark.parametrize(("question", "fact"), RIGHT_ANSWERS)
def test_the_unit_that_holds_the_fact_is_quoted_with_its_source(question, fact, minilm_vectors):
    sources = make_sources()
    quotation = answer_question(question, sources, minilm_vectors)
    best = next(u for u in quotation.units if fact in u.text)
    assert f"{best.text} [{best.label}]" in quotation.text
    assert fact in sources[int(best.label) - 1].text


@pytest.mark.real_models
@pytest.mark.parametrize("question", OUT_OF_SCOPE)
def test_what_the_sources_do_not_answer_is_refused(question, minilm_vectors):
    assert answer_question(question, make_sources(), minilm_vectors).text == "REFUSE"


@pytest.mark.real_models
def test_equal_prompts_get_equal_answers(minilm):
    answers = {
        answer_question(RIGHT_ANSWERS[0][0], make_sources(), SentenceVectors(minilm)).text
        for _ in range(3)
    }
    assert len(answers) == 1


def test_without_sources_everything_is_refused(word_vectors):
    assert answer_question("How often is a backup taken?", (), word_vectors).text == "REFUSE"


def test_an_answer_over_the_token_limit_is_not_given(word_vectors):
    sources = make_sources(("Backups", "Schedule"))
    question = "Tern takes a backup every 6 hours by default"
    assert answer_question(question, sources, word_vectors).units
    cramped = answer_question(question, sources, word_vectors, fits=lambda _: False)
    assert cramped.text == "REFUSE"


def test_units_of_one_source_keep_their_order(word_vectors):
    sources = make_sources(("Sync", "Conflicts: who wins"))
    question = "two machines change same file newer change wins older version kept ending .conflict"
    units = answer_question(question, sources, word_vectors).units
    assert [u.unit_index for u in units] == sorted(u.unit_index for u in units)


def test_a_sentence_that_opens_with_a_pronoun_brings_the_one_before_it(word_vectors):
    sources = make_sources(("Backups", "Restoring"))
    question = "asks for confirmation before files are overwritten"
    units = answer_question(question, sources, word_vectors).units
    assert [u.unit_index for u in units] == [0, 1]


@pytest.mark.parametrize(
    "unit",
    [
        "Follow these steps:",
        "See the page about retention for more.",
        "For more details, see the reference.",
        "## Heading",
        "**Label**",
        "[One](/a), [two](/b), [three](/c)",
        "What is a backup?",
        "A model writes `[1]` after each sentence.",
        "It declines with the word REFUSE.",
        "The first `half of a code span stays open.",
        "```bash\nmake demo\n```",
        "`backup_interval_hours`",
        "- `a`, `b`",
        "**Example:** `--concurrency 5`",
        "For example: `tern restore --newest`",
        "x" * 2000,
        "",
        "- ",
    ],
)
def test_units_that_cannot_stand_as_an_answer_are_not_quotable(unit):
    assert not is_quotable(unit, wants_code=False)


@pytest.mark.parametrize(
    "unit",
    [
        "Tern takes a backup every 6 hours by default.",
        "- `make clean` deletes everything",
        "limit: maximum file size; default: 2 GB.",
        "A refusal is the bare word `REFUSE`.",
        "**Default:** `60`",
    ],
)
def test_facts_are_quotable(unit):
    assert is_quotable(unit, wants_code=False)


def test_short_code_is_quotable_when_an_example_is_asked_for():
    assert is_quotable("```bash\nmake demo\n```", wants_code=True)
    assert not is_quotable("```bash\n" + "make demo\n" * 60 + "```", wants_code=True)


def test_list_markers_are_removed_and_the_rest_stays():
    assert clean_unit("-  `a` is  one.") == "`a` is one."
    assert clean_unit("12. Twelve.") == "Twelve."
    assert clean_unit("-1 is a number.") == "-1 is a number."


PIECES = (
    "the backup of REFUSE [1] [2] `code` is file: 3 | - * ``` \n \n\n . ? [docs:a/b/1] sync wins"
    " <br> ## {x} Tern"
)
words = st.sampled_from(re.split(" ", PIECES))
passages = st.lists(words, min_size=1, max_size=30).map(" ".join)


@given(
    texts=st.lists(passages, min_size=1, max_size=4),
    question=passages,
    ids=st.sampled_from(["local", "full"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_to_any_prompt_passes_the_validator(texts, question, ids):
    hits = [
        Hit(
            chunk_id=f"docs:page/{number}",
            content_hash="c0ffee",
            text=text,
            title="Page",
            url="",
            heading_path=("Page", "Part: one"),
        )
        for number, text in enumerate(texts, start=1)
    ]
    prompt = PromptFormat(citation_ids=ids)
    system = prompt.write_request(question, hits).messages[0]["content"]
    answer = answer_question(
        question, read_sources(system), SentenceVectors(WordHashEmbedder())
    ).text
    verdict = validate(read_answer(answer, hits, prompt), hits, ValidatorPolicy())
    assert verdict.is_valid, (answer, str(verdict))


def test_a_lower_limit_answers_what_a_higher_one_refuses(word_vectors):
    sources, question = make_sources(("Backups", "Schedule")), "Tern takes a backup"
    given = answer_question(question, sources, word_vectors, minimum_support=0.0)
    assert given.units
    refused = answer_question(question, sources, word_vectors, minimum_support=given.support + 0.01)
    assert refused.text == "REFUSE"
    assert refused.support == given.support
