import asyncio
import json
import shutil
import subprocess
import sys
import threading
import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from serving.errors import ModelError, ReleaseError, UpstreamRejectedError
from serving.models.adapters import merge_adapter
from serving.models.causal_lm import hash_base_model, load_causal_lm, read_prefix
from serving.models.chat_tokens import split_chat
from serving.models.local_student import LocalStudent, take_batch
from serving.models.prefix_cache import PrefixCache
from serving.models.protocols import ChatModel, ChatRequest, Price, StreamingChatModel
from serving.models.shared_bases import SharedBases
from serving.models.text_pieces import TextPieces
from tests.tiny_student import make_adapter, make_base, make_messages, make_tokenizer

PRICE = Price(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)
QUESTIONS = ["How do I set the key?", "What?", "A trace is written when, and where is it kept?"]


def request(question="How?", sources="[1] A: b. [1]", **changes):
    return ChatRequest(
        **{"messages": tuple(make_messages(question, sources)), "max_tokens": 12} | changes
    )


def load(base, adapter, **changes):
    options = {
        "name": "tiny@1", "price": PRICE, "activation": "question", "context_tokens": 400,
        "dtype": "float32",
    }  # fmt: skip
    return LocalStudent.load(base, adapter, **(options | changes))


@pytest.fixture(scope="module")
def adapter(tiny_base, tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("adapters") / "a", tiny_base)


@pytest.fixture(scope="module")
def student(tiny_base, adapter):
    return load(tiny_base, adapter)


@pytest.fixture
def copied(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "copy")


def unmerged(base, adapter):
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_causal_lm(base, "float32"), adapter).eval()


def test_importing_the_module_imports_no_torch():
    code = "import sys, serving.models.local_student as m; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_merged_split_student_equals_pefts_own_unmerged_activated_lora(
    tiny_base, adapter, student
):
    """One forward over all ids with peft's aLoRA: another implementation of the same model."""
    peft_model = unmerged(tiny_base, adapter)
    base_only = load_causal_lm(tiny_base, "float32")
    for question in QUESTIONS:
        chat = split_chat(make_tokenizer(), make_messages(question))
        with torch.no_grad():
            expected = peft_model(input_ids=torch.tensor([chat.whole])).logits[0, -1]
            plain = base_only(input_ids=torch.tensor([chat.whole])).logits[0, -1]
        found = asyncio.run(student.complete(request(question, make_sources(), max_tokens=1)))
        logprob = expected.log_softmax(-1).max().item()
        assert found.mean_logprob == pytest.approx(logprob, abs=1e-4)
        assert abs(plain.log_softmax(-1).max().item() - logprob) > 1e-3, "the adapter must matter"


def test_activation_answer_equals_pefts_own_activated_lora(tiny_base, tmp_path):
    folder = make_adapter(tmp_path / "answer", tiny_base, activation="answer")
    student = load(tiny_base, folder, activation="answer")
    for question in QUESTIONS:
        chat = split_chat(make_tokenizer(), make_messages(question), activation="answer")
        with torch.no_grad():
            logits = unmerged(tiny_base, folder)(input_ids=torch.tensor([chat.whole])).logits[0, -1]
        found = asyncio.run(student.complete(request(question, make_sources(), max_tokens=1)))
        assert found.mean_logprob == pytest.approx(logits.log_softmax(-1).max().item(), abs=1e-4)
    with pytest.raises(ReleaseError, match=r"'question'.*'answer'"):
        load(tiny_base, folder, activation="question")


def make_sources():
    return make_messages("x")[0]["content"].partition("Sources:\n")[2]


def test_activation_all_equals_pefts_unmerged_lora(tiny_base, tmp_path):
    folder = make_adapter(tmp_path / "all", tiny_base, activation="all")
    student = load(tiny_base, folder, activation="all")
    chat = split_chat(make_tokenizer(), make_messages(QUESTIONS[0]), activation="all")
    with torch.no_grad():
        logits = unmerged(tiny_base, folder)(input_ids=torch.tensor([chat.whole])).logits[0, -1]
    found = asyncio.run(student.complete(request(QUESTIONS[0], make_sources(), max_tokens=1)))
    assert found.mean_logprob == pytest.approx(logits.log_softmax(-1).max().item(), abs=1e-4)


def test_merging_leaves_the_base_alone_and_shares_what_the_adapter_does_not_touch(
    tiny_base, adapter
):
    base = load_causal_lm(tiny_base, "float32")
    before = {name: p.clone() for name, p in base.named_parameters()}
    merged = dict(merge_adapter(base, adapter).named_parameters())
    touched = {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, before[name])
        is_touched = name.split(".")[-2] in touched
        assert (merged[name].data_ptr() != parameter.data_ptr()) == is_touched, name
        assert torch.equal(merged[name], parameter) != is_touched, name


def test_it_fills_the_role_and_the_completion(student):
    assert isinstance(student, ChatModel)
    found = asyncio.run(student.complete(request()))
    chat = split_chat(student.tokenizer, request().messages)
    assert found.model == student.name == "tiny@1"
    assert found.prompt_tokens == len(chat)
    assert 1 <= found.completion_tokens <= 12
    assert (found.finish_reason == "stop") == (found.completion_tokens < 12)
    assert found.cost_usd == PRICE.cost_usd(len(chat), found.completion_tokens)
    assert 0 < found.first_token_ms <= found.latency_ms
    assert found.mean_logprob < 0


def test_the_end_of_turn_stops_the_answer_and_is_not_in_the_text(student, monkeypatch):
    monkeypatch.setattr(student, "_stop_ids", frozenset())
    whole = asyncio.run(student.complete(request()))
    assert (whole.finish_reason, whole.completion_tokens) == ("length", 12)
    first = student.tokenizer.encode(whole.text, add_special_tokens=False)[0]
    monkeypatch.setattr(student, "_stop_ids", frozenset({first}))
    stopped = asyncio.run(student.complete(request()))
    assert (stopped.finish_reason, stopped.completion_tokens, stopped.text) == ("stop", 1, "")


async def test_concurrent_requests_are_batched_and_answered_as_alone(tiny_base, adapter):
    student = load(tiny_base, adapter, maximum_batch=4)
    requests = [request(QUESTIONS[i % 3], f"[1] A: {i}. [1]", max_tokens=3 + i) for i in range(9)]
    alone = [await student.complete(r) for r in requests]
    sizes = []
    answer = student._answer

    def spy(jobs):
        sizes.append(len(jobs))
        answer(jobs)

    student._answer = spy
    together = await asyncio.gather(*(student.complete(r) for r in requests))
    for one, other in zip(alone, together, strict=True):
        assert one.text == other.text
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-4)
    assert sum(sizes) == 9
    assert max(sizes) <= 4
    assert len(sizes) < 9, "some must have shared a batch"


def test_it_works_across_event_loops_and_leaves_no_thread(student):
    import threading

    for _ in range(3):
        asyncio.run(student.complete(request()))
    for thread in threading.enumerate():
        if thread.name == student.name:
            thread.join(timeout=10)
            assert not thread.is_alive()


async def test_a_cancelled_request_is_dropped_and_others_are_answered(student):
    tasks = [asyncio.create_task(student.complete(request(q))) for q in QUESTIONS]
    await asyncio.sleep(0)
    tasks[1].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[1], asyncio.CancelledError)
    assert done[0].completion_tokens
    assert done[2].completion_tokens


async def test_a_failing_batch_is_a_model_error_and_the_next_is_answered(student, monkeypatch):
    def fail(_ids):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(student._prefixes, "read", fail)
        with pytest.raises(ModelError, match="no room"):
            await student.complete(request())
    assert (await student.complete(request())).completion_tokens


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"max_tokens": 390}, "within 400 tokens"),
        ({"temperature": 0.5}, "temperature 0.5"),
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"max_tokens": 0}, "max_tokens 0"),
    ],
)
def test_requests_it_cannot_answer_are_rejected(student, changes, match):
    with pytest.raises(UpstreamRejectedError, match=match):
        asyncio.run(student.complete(request(**changes)))


def test_count_prompt_tokens(student):
    text = "How do I set the key?"
    assert student.count_prompt_tokens(text) == len(student.tokenizer.tokenize(text))
    assert student.count_prompt_tokens("") == 0


def test_without_an_adapter_it_is_the_base(tiny_base):
    student = load(tiny_base, None)
    assert student._engine.adapted is student._engine.base
    assert asyncio.run(student.complete(request())).completion_tokens


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "sub/rng.PKL"])
def test_pickles_are_refused_wherever_they_lie(tiny_base, copied, name):
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_bytes(b"")
    with pytest.raises(ReleaseError, match="safetensors weights only"):
        load(tiny_base, copied)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "provenance.json"]
)
def test_incomplete_folders_are_refused(tiny_base, copied, name):
    (copied / name).unlink()
    with pytest.raises(ReleaseError, match=f"no {name}"):
        load(tiny_base, copied)


def test_an_adapter_of_another_base_is_refused_and_both_are_named(tiny_base, adapter, tmp_path):
    other = make_base(tmp_path / "other", seed=9)
    with pytest.raises(ReleaseError) as caught:
        load(other, adapter)
    assert hash_base_model(other) in str(caught.value)
    assert hash_base_model(tiny_base) in str(caught.value)


def test_an_adapter_of_another_activation_is_refused(tiny_base, adapter):
    with pytest.raises(ReleaseError, match="activation 'all'"):
        load(tiny_base, adapter, activation="all")


@pytest.mark.parametrize("how", ["missing", "foreign", "shape", "nan"])
def test_weights_that_do_not_fit_are_refused(tiny_base, copied, how):
    path = copied / "adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    if how == "missing":
        del weights[name]
    elif how == "foreign":
        weights[name.replace("layers.0", "layers.7")] = weights[name].clone()
    elif how == "shape":
        weights[name] = torch.zeros(3, 3)
    else:
        weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ReleaseError, match="merging the adapter"):
        load(tiny_base, copied)


def test_weights_that_are_cut_short_are_refused(tiny_base, copied):
    path = copied / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ReleaseError, match="merging the adapter") as error:
        load(tiny_base, copied)
    assert path.name in error.value.found


def test_the_prefix_cache_is_bounded_and_keeps_the_recently_used(tiny_base):
    base = load_causal_lm(tiny_base, "float32")
    size = read_prefix(base, range(5, 15)).nbytes
    cache = PrefixCache(partial(read_prefix, base), maximum_bytes=2 * size)
    one, two, three = (tuple(range(start, start + 10)) for start in (5, 20, 40))
    first = cache.read(one)
    cache.read(two)
    assert cache.read(one) is first
    cache.read(three)  # drops two
    assert cache.read(one) is first
    assert cache.hits == 2
    cache.read(two)
    assert cache.hits == 2


async def test_tokenising_leaves_the_event_loop_free(student, monkeypatch):
    """The tokenizer waits for what only a live loop can do, before the model and after it."""
    released, waited = threading.Event(), []
    real = student.tokenizer

    class Waiting:
        def __getattr__(self, name):
            found = getattr(real, name)
            if name not in ("apply_chat_template", "decode"):
                return found

            def wait(*arguments, **options):
                waited.append(released.wait(timeout=20))
                released.clear()
                return found(*arguments, **options)

            return wait

    monkeypatch.setattr(student, "_tokenizer", Waiting())

    async def release():
        while True:
            released.set()
            await asyncio.sleep(0.001)

    releasing = asyncio.create_task(release())
    completion = await student.complete(request())
    releasing.cancel()
    assert completion.completion_tokens
    assert len(waited) >= 3  # two renderings of the prompt, one text
    assert all(waited)


async def test_adapters_of_one_base_share_it_and_what_it_read(tiny_base, adapter, tmp_path):
    other = make_adapter(tmp_path / "b", tiny_base, seed=7)
    bases = SharedBases()
    one, two = (load(tiny_base, folder, bases=bases) for folder in (adapter, other))
    assert one._engine.base is two._engine.base
    assert one._engine.adapted is not two._engine.adapted
    assert one._prefixes is two._prefixes
    found = await asyncio.gather(
        *(s.complete(request(question)) for question in QUESTIONS for s in (one, two))
    )
    assert one._prefixes.hits == 2 * len(QUESTIONS) - 1  # the sources were read once for both
    alone = [load(tiny_base, folder) for folder in (adapter, other)]
    expected = [await s.complete(request(question)) for question in QUESTIONS for s in alone]
    assert [c.text for c in found] == [c.text for c in expected]
    assert len({c.text for c in found[:2]}) == 2  # the adapters change the answers


def test_questions_on_the_same_sources_read_them_once(tiny_base, adapter):
    student = load(tiny_base, adapter)
    for question in QUESTIONS:
        asyncio.run(student.complete(request(question)))
    assert student._prefixes.hits == 2


async def test_a_stream_is_the_answer_in_pieces(student):
    for question in QUESTIONS:
        whole = await student.complete(request(question, max_tokens=24))
        pieces = []
        streamed = await student.stream(request(question, max_tokens=24), pieces.append)
        assert isinstance(student, StreamingChatModel)
        assert "".join(pieces) == streamed.text == whole.text
        assert streamed.signs == pytest.approx(whole.signs, abs=1e-4)
        assert len(pieces) > 1


async def test_streams_in_one_batch_get_their_own_pieces(student):
    heard = {question: [] for question in QUESTIONS}
    answers = await asyncio.gather(
        *(student.stream(request(q, max_tokens=20), heard[q].append) for q in QUESTIONS)
    )
    for answer, question in zip(answers, QUESTIONS, strict=True):
        assert "".join(heard[question]) == answer.text


def test_a_character_in_parts_is_told_when_it_is_whole():
    tokenizer = make_tokenizer()
    text = "Größe 🙂 naïve"
    pieces = TextPieces(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    told = [pieces.add(token) for token in ids]
    assert "".join(told) == text
    assert not any("\ufffd" in piece for piece in told)
    assert told.count("") > 0
    assert TextPieces(tokenizer).finish("all of it") == "all of it"
    with pytest.raises(ModelError, match="ask without streaming"):
        pieces.finish("another text")


def test_a_batch_is_the_oldest_and_those_nearest_in_length():
    class Job:
        def __init__(self, length):
            self.length = length

    jobs = [Job(length) for length in (50, 400, 60, 45, 300)]
    waiting = list(jobs)
    assert take_batch(waiting, 3) == [jobs[0], jobs[3], jobs[2]]
    assert waiting == [jobs[1], jobs[4]]
    assert take_batch(waiting, 3) == [jobs[1], jobs[4]]
    assert take_batch(waiting, 3) == []


def test_provenance_without_a_base_hash_is_refused(tiny_base, copied):
    (copied / "provenance.json").write_text(json.dumps({"activation": "question"}))
    with pytest.raises(ReleaseError, match="base None"):
        load(tiny_base, copied)


async def test_nothing_of_an_answer_that_was_given_up_is_shown_later(student, monkeypatch):
    """The step under way ends after its caller left, when the draft may be another model's."""
    shown, made, goes_on = [], [], threading.Event()

    class Held:
        """The engine, held at its second token until the caller has left."""

        def __getattr__(self, name):
            return getattr(engine, name)

        def decode(self, *args, on_token, **options):
            def hold(row, token):
                if made:
                    goes_on.wait(10)
                on_token(row, token)
                made.append(token)

            return engine.decode(*args, on_token=hold, **options)

    engine = student._engine
    monkeypatch.setattr(student, "_engine", Held())
    asking = asyncio.create_task(student.stream(request(), shown.append))
    while not made:
        await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    seen = list(shown)
    goes_on.set()
    while student._is_working:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    assert len(made) == 2
    assert shown == seen
