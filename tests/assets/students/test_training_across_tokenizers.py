"""A training with soft targets of a scorer, of a teacher with other tokens, and without any."""

import pytest

from assets.students.soft_rows import find_byte_order
from serving.errors import InvalidInputError
from tests.assets.students.soft_table import make_soft_table
from tests.assets.students.training_cases import train
from tests.tiny_student import make_tokenizer

SOFT = {"alpha": 0.0, "citation_boost": 1.0, "epochs": 6}  # all weight on what is tested here


@pytest.fixture(scope="module")
def soft(tmp_path_factory):
    return make_soft_table(tmp_path_factory.mktemp("other"))


def test_all_sources_train_together(tiny_base, soft):
    assert set(soft["source"]) == {"scorer", "teacher"}
    assert set(soft["alignment"]) == {"exact", "bytes", "none"}
    byte_order = find_byte_order(soft, make_tokenizer(), len(make_tokenizer()))
    trained = train(tiny_base, logprobs=soft, byte_order=byte_order, keys=SOFT)
    curve = trained.curve
    assert trained.train_count == 20
    assert trained.soft_count == soft["soft_ok"].list.any().sum()
    assert curve["loss"].is_finite().all()
    soft_losses = curve["soft_loss"].drop_nulls().to_list()
    assert sum(soft_losses[-4:]) < sum(soft_losses[:4]), "the student moves towards the teacher"


def test_groups_without_the_vocabulary_stop_the_training(tiny_base, soft):
    with pytest.raises(InvalidInputError, match="intervals of"):
        train(tiny_base, logprobs=soft, keys=SOFT)
