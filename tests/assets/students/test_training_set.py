import polars as pl
import pytest

from assets import tables
from assets.students.training_set import build_training_set
from serving.errors import InvalidInputError
from tests.tiny_student import make_labelled, make_messages, make_tokenizer


def build(examples, **options):
    return build_training_set(examples, make_tokenizer(), **({"context_tokens": 512} | options))


def one(completion, **options):
    examples = make_labelled(1).with_columns(completion=pl.lit(completion))
    return build(examples, **options).frame.row(0, named=True)


def test_ids_are_prompt_answer_and_end_of_turn():
    tokenizer = make_tokenizer()
    row = one("Put it in. [1]")
    text = tokenizer.apply_chat_template(
        [*make_labelled(1)["messages"][0], {"role": "assistant", "content": "Put it in. [1]"}],
        tokenize=False,
    )
    ids = row["prefix_ids"] + row["suffix_ids"] + row["answer_ids"]
    assert tokenizer.decode(ids) + "\n" == text
    assert row["answer_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row["suffix_ids"]).startswith("<|im_start|>user")


@pytest.mark.parametrize(
    ("completion", "spans"),
    [
        ("Put it in. [1] Restart. [12]", "[1][12]"),
        ("See [docs:guides/setup/2] now.", "[docs:guides/setup/2]"),
        ("REFUSE", ""),
        ("An [array] of [1,2] and [] has no citation", ""),
        ("Ünïcode 漢 first. [3]", "[3]"),
    ],
)
def test_the_citation_mask_covers_the_spans_with_their_brackets(completion, spans):
    tokenizer = make_tokenizer()
    row = one(completion)
    assert len(row["cite_mask"]) == len(row["answer_ids"])
    assert row["cite_mask"][-1] is False
    masked = [i for i, cite in zip(row["answer_ids"], row["cite_mask"], strict=True) if cite]
    assert tokenizer.decode(masked).replace(" ", "") == spans


def test_the_frame_has_the_declared_schema_and_every_split():
    built = build(make_labelled(9, splits=("train", "validation", "calibration")))
    assert built.frame.schema == tables.TRAINING_SET
    assert built.frame["split"].value_counts().sort("split")["count"].to_list() == [3, 3, 3]


def test_what_exceeds_the_context_is_dropped_whole_and_counted():
    examples = make_labelled(6)
    sizes = {
        row["example_id"]: sum(len(row[n]) for n in ("prefix_ids", "suffix_ids", "answer_ids"))
        for row in build(examples).frame.iter_rows(named=True)
    }
    limit = sorted(sizes.values())[2]
    assert max(sizes.values()) > limit, "some must not fit for this to test"
    cut = build(examples, context_tokens=limit)
    assert set(cut.too_long) == {e for e, size in sizes.items() if size > limit}
    assert cut.too_long
    assert set(cut.frame["example_id"]) == {e for e, size in sizes.items() if size <= limit}
    assert cut.frame.equals(build(examples).frame.filter(~pl.col("example_id").is_in(cut.too_long)))


def test_the_sample_is_seeded_and_keeps_refusals_and_other_splits():
    examples = make_labelled(80, splits=("train", "train", "train", "train", "validation"))
    built = build(examples, max_examples=20, seed=1)
    train = built.frame.filter(pl.col("split") == "train")
    assert train.height == 20
    assert train["refused"].sum() == 5  # a quarter, as in the whole
    assert built.refusal_ratio == 0.25
    assert built.not_sampled == 44
    assert built.frame.height - train.height == 16
    shuffled = examples.sample(fraction=1, shuffle=True, seed=3)
    assert build(shuffled, max_examples=20, seed=1).frame.equals(built.frame)
    assert not build(examples, max_examples=20, seed=2).frame.equals(built.frame)


@pytest.mark.parametrize(
    ("max_examples", "ratio", "train_count", "refusal_count"),
    [
        (20, 0.1, 20, 2),  # answers take the places of the refusals left out
        (20, 0.5, 20, 5),  # above what the rows have it changes nothing
        (20, 0.0, 20, 0),
        (None, 0.1, 53, 5),  # of 48 answers and 16 refusals
        (60, 0.1, 53, 5),  # not enough answers to fill the sample
    ],
)
def test_refusals_above_a_share_are_left_out(max_examples, ratio, train_count, refusal_count):
    examples = make_labelled(80, splits=("train", "train", "train", "train", "validation"))
    built = build(examples, max_examples=max_examples, maximum_refusal_ratio=ratio)
    train = built.frame.filter(pl.col("split") == "train")
    assert (train.height, train["refused"].sum()) == (train_count, refusal_count)
    assert built.frame.height - train.height == 16


def test_the_token_hash_follows_the_ids_and_not_the_split():
    first, again = one("Put it in. [1]"), one("Put it in. [1]", activation="all")
    assert again["prefix_ids"] == []
    assert first["token_hash"] == again["token_hash"]
    assert first["token_hash"] != one("Put it in. [2]")["token_hash"]
    other = make_labelled(1).with_columns(messages=pl.Series([make_messages("Other?")]))
    moved = build(other.with_columns(completion=pl.lit("Put it in. [1]"))).frame.row(0, named=True)
    assert moved["token_hash"] != first["token_hash"]


def test_an_answer_that_spells_the_end_of_turn_does_not_end_it():
    tokenizer = make_tokenizer()
    row = one("It ends with <|im_end|> here. [1]")
    assert row["answer_ids"].count(tokenizer.eos_token_id) == 1


def test_empty_answers_and_repeated_ids_are_refused():
    with pytest.raises(InvalidInputError, match="empty answers"):
        one("  \n")
    with pytest.raises(InvalidInputError, match="repeated id e000"):
        build(pl.concat([make_labelled(2), make_labelled(1)]))
    with pytest.raises(InvalidInputError, match="completion"):
        build(make_labelled(2).drop("completion"))


@pytest.mark.parametrize("trainable", [False, None])
def test_an_answer_that_may_not_train_is_refused(trainable):
    examples = make_labelled(4).with_columns(
        trainable=pl.when(pl.col("example_id") == "e002").then(trainable).otherwise(True)
    )
    with pytest.raises(InvalidInputError, match="1 that may not train, first e002"):
        build_training_set(examples, make_tokenizer(), context_tokens=512)


def of_teachers(*counts):
    """Return labels of teacher-0, teacher-1, and so on, as many of each as said."""
    names = [f"teacher-{place}" for place, count in enumerate(counts) for _ in range(count)]
    return make_labelled(len(names)).with_columns(teacher_id=pl.Series(names))


def test_labels_of_two_teachers_are_not_mixed():
    with pytest.raises(InvalidInputError) as caught:
        build(of_teachers(3, 2))
    assert "teacher-0 (3 labels), teacher-1 (2 labels)" in str(caught.value)
    assert build(of_teachers(3)).frame.height == 3


def test_provenance_says_how_many_labels_the_teacher_gave():
    from types import SimpleNamespace

    from assets.students.provenance import gather_facts

    examples = of_teachers(3).with_columns(
        teacher_license=pl.lit("MIT"), prompt_version=pl.lit("p")
    )
    frame = build(examples).frame
    facts = gather_facts(
        frame, examples, {"index_fingerprint": "i", "embedder_fingerprint": "e"},
        SimpleNamespace(base_model="org/tiny", revision="abc"),
    )  # fmt: skip
    assert facts["teacher_ids"] == ["teacher-0"]
    assert facts["example_counts_by_teacher"] == {"teacher-0": 3}
