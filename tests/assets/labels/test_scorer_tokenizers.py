"""A scorer of another make: it scores the student's own tokens, or is refused before it scores."""

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from assets.labels.local_scoring import LocalScorer
from assets.labels.scoring import score_answers
from assets.students.training_set import build_training_set
from serving.errors import InvalidInputError
from tests.tiny_student import make_base, make_labelled, make_tokenizer


@pytest.fixture
def other(tmp_path):
    """A base of other weights, whose tokenizer the tests change."""
    return make_base(tmp_path / "other", seed=3)


def test_a_scorer_with_another_chat_template_scores_the_students_prompt(other):
    theirs = AutoTokenizer.from_pretrained(other)
    theirs.chat_template = theirs.chat_template.replace("'<|im_end|>'", "' <|im_end|>'")
    theirs.save_pretrained(other)
    student = make_tokenizer()
    scorer = LocalScorer.load(other, scorer_id="other@0", dtype="float32", tokenizer=student)
    scored = score_answers(make_labelled(3), scorer, top_k=5, minimum_mean_probability=0.0)
    trained = build_training_set(make_labelled(3), student, context_tokens=512).frame
    assert scored["token_hash"].to_list() == trained["token_hash"].to_list()
    alone = LocalScorer.load(other, scorer_id="other@0", dtype="float32")
    own = score_answers(make_labelled(3), alone, top_k=5, minimum_mean_probability=0.0)
    assert own["token_hash"].to_list() != trained["token_hash"].to_list()


def test_a_scorer_that_reads_a_token_otherwise_is_refused_and_one_that_knows_more_is_not(other):
    student = make_tokenizer()
    theirs = AutoTokenizer.from_pretrained(other)
    theirs.add_tokens(["<|new|>"])
    model = LlamaForCausalLM.from_pretrained(other)
    model.resize_token_embeddings(len(theirs))
    model.save_pretrained(other)
    theirs.save_pretrained(other)
    LocalScorer.load(other, scorer_id="other@0", tokenizer=student)

    student = AutoTokenizer.from_pretrained(other)  # a student with a token the scorer lacks
    student.add_tokens(["<|another|>"])
    with pytest.raises(InvalidInputError, match="shares the student's tokenizer") as error:
        LocalScorer.load(other, scorer_id="other@0", tokenizer=student)
    assert "<|another|>" in error.value.found
    assert "other@0" in error.value.attempted
