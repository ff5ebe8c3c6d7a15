"""A teacher with Mistral's tokenizer and a student with SmolLM2's, over this product's own docs.

The teacher is a bigram model of the docs over its own tokens: real conditional probabilities.
"""

import itertools
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from assets.labels.answer_tokens import AnswerTokens
from assets.labels.logprob_table import TokenisedExample
from assets.labels.projection import TAIL_FLOOR, TeacherToken, project_answer
from assets.labels.teacher_tokens import SpokenAnswer, TeacherAligner
from serving.models.chat_tokens import ChatTokens
from tests.second_tokenizer import load_tekken

pytestmark = pytest.mark.real_models

DOCS = Path(__file__).parents[3] / "docs" / "concepts"
TOP = 20


@pytest.fixture(scope="module")
def pages() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.mdx"))[:4]]


@pytest.fixture(scope="module")
def teacher(pages):
    """Return, of each page, the teacher's tokens with bigram probabilities, one unseen each."""
    tekken = load_tekken()
    read = [tekken.encode_ordinary(page) for page in pages]
    following: dict[int, Counter] = defaultdict(Counter)
    for ids in read:
        for before, after in itertools.pairwise([-1, *ids]):
            following[before][after] += 1

    def speak(before: int, token: int) -> TeacherToken:
        counts = following[before]
        total = counts.total() + 1
        top = tuple(
            (tekken.decode_single_token_bytes(i), math.log(n / total))
            for i, n in counts.most_common(TOP)
        )
        logp = math.log(counts[token] / total)
        return TeacherToken(text=tekken.decode_single_token_bytes(token), logp=logp, top=top)

    return [[speak(a, b) for a, b in itertools.pairwise([-1, *ids])] for ids in read]


@pytest.fixture(scope="module")
def student(pages, smollm2_tokenizer):
    return [smollm2_tokenizer(page, add_special_tokens=False)["input_ids"] for page in pages]


@pytest.fixture(scope="module")
def projections(teacher, student, smollm2_vocabulary):
    pairs = zip(teacher, student, strict=True)
    return [project_answer(tokens, ids, smollm2_vocabulary) for tokens, ids in pairs]


def test_both_tokenizers_spell_the_same_bytes(teacher, student, pages, smollm2_vocabulary):
    for tokens, ids, page in zip(teacher, student, pages, strict=True):
        assert b"".join(token.text for token in tokens) == page.encode()
        assert b"".join(smollm2_vocabulary.token_bytes[i] for i in ids) == page.encode()


def test_groups_are_disjoint_and_mass_is_conserved_on_docs(projections, smollm2_vocabulary):
    regular = sum(1 for text in smollm2_vocabulary.token_bytes if text)
    rows = [row for projection in projections for row in projection.rows if row is not None]
    assert len(rows) > 2000
    for row in rows:
        bounds = [bound for low, high, _ in row.segments for bound in (low, high)]
        assert bounds == sorted(bounds)
        assert 0 <= bounds[0] < bounds[-1] <= regular
        assert all(low < high for low, high, _ in row.segments)
        assert {group for *_, group in row.segments} == set(range(len(row.group_logp)))
        mass = sum(map(math.exp, row.group_logp)) + math.exp(row.tail_logp)
        assert mass == pytest.approx(1.0, abs=1e-6 + TAIL_FLOOR)


def test_most_student_tokens_start_where_a_teacher_token_starts(
    teacher, student, projections, smollm2_vocabulary
):
    aligned = total = covered = 0
    for tokens, ids, projection in zip(teacher, student, projections, strict=True):
        starts = set(np.cumsum([0, *(len(token.text) for token in tokens)]).tolist())
        lengths = [len(smollm2_vocabulary.token_bytes[i]) for i in ids]
        offsets = np.cumsum([0, *lengths])[:-1].tolist()
        aligned += sum(offset in starts for offset in offsets)
        total += len(ids)
        covered += projection.covered_count
        uncovered = [row is None for row in projection.rows]
        assert all(n or o in starts for n, o in zip(uncovered, offsets, strict=True))
    assert 0.75 < aligned / total < 0.95
    assert covered > 0.9 * aligned, "only where the top 20 hold less than half is none"


def test_groups_are_what_a_reading_of_every_student_token_gives(
    teacher, student, projections, smollm2_vocabulary
):
    """The oracle: each student token belongs to the longest candidate that it begins with."""
    vocabulary, checked = smollm2_vocabulary, 0
    regular = [text for text in vocabulary.token_bytes if text]
    at = dict(zip(_starts(t.text for t in teacher[0]), teacher[0], strict=True))
    spelled = [vocabulary.token_bytes[i] for i in student[0]]
    rows = zip(spelled, _starts(spelled), projections[0].rows, strict=True)
    for realised, offset, row in rows:
        if row is None or at[offset].text != realised or len(at[offset].top) < 5 or checked == 12:
            continue
        checked += 1
        masses: Counter = Counter()
        exact = set()
        for text, logp in {**dict(at[offset].top), realised: at[offset].logp}.items():
            if not any(token.startswith(text) for token in regular):
                text = max((t for t in regular if text.startswith(t)), key=len)
                exact.add(text)
            masses[text] += math.exp(logp)
        if exact & {text for text, _ in at[offset].top}:
            continue  # one text both as a whole token and as a beginning: joined, tested elsewhere
        expected: dict[bytes, set[bytes]] = defaultdict(set)
        for token in regular:
            owners = [c for c in masses if token.startswith(c) and (c not in exact or c == token)]
            if owners:
                expected[max(owners, key=len)].add(token)
        found = {
            frozenset(
                vocabulary.token_bytes[vocabulary.order[p]]
                for low, high, group in row.segments
                if group == number
                for p in range(low, high)
            ): math.exp(logp)
            for number, logp in enumerate(row.group_logp)
        }
        wanted = {frozenset(tokens): masses[text] for text, tokens in expected.items()}
        assert found == pytest.approx(wanted)
    assert checked == 12


def _starts(texts) -> list[int]:
    return [0, *itertools.accumulate(map(len, texts))][:-1]


def test_the_two_tokenizers_are_told_apart(teacher, student, smollm2_tokenizer):
    aligner = TeacherAligner(smollm2_tokenizer, top_k=TOP)
    items = [_as_item(f"e{n}", ids, smollm2_tokenizer) for n, ids in enumerate(student)]
    foreign = [SpokenAnswer(tokens=tuple(tokens)) for tokens in teacher]
    evidence = aligner.learn(zip(items, foreign, strict=True))
    assert not evidence.is_same
    assert evidence.same_answer_count == 0
    assert evidence.known_ratio < 0.9
    own = [SpokenAnswer(tokens=tuple(_speak_plainly(item, aligner.vocabulary))) for item in items]
    assert aligner.learn(zip(items, own, strict=True)).is_same
    assert aligner.align(items[0], own[0]).alignment == "exact"
    assert aligner.align(items[0], foreign[0]).alignment == "bytes"


def _as_item(example_id, ids, tokenizer) -> TokenisedExample:
    whole = (*ids, tokenizer.eos_token_id)
    return TokenisedExample(
        example_id=example_id,
        chat=ChatTokens(prefix_ids=(), suffix_ids=(1,)),
        answer=AnswerTokens(ids=whole, cite_mask=(False,) * len(whole)),
    )


def _speak_plainly(item, vocabulary):
    for token in item.answer.ids[:-1]:
        text = vocabulary.token_bytes[token]
        yield TeacherToken(text=text, logp=-0.1, top=((text, -0.1),))
