import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from serving.errors import InvalidInputError
from serving.models.causal_lm import (
    decode_greedily,
    hash_base_model,
    load_causal_lm,
    load_tokenizer,
    pad_batch,
    read_prefix,
    resolve_dtype,
    run_decoder,
)
from tests.tiny_student import make_base, make_messages

PREFIXES = [list(range(5, 25)), [], list(range(40, 47))]
SUFFIXES = [list(range(100, 104)), list(range(60, 72)), list(range(200, 207))]


@pytest.fixture(scope="module")
def model(tiny_base):
    return load_causal_lm(tiny_base, "float32")


def hidden_of_whole(model, ids):
    with torch.no_grad():
        return model.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_padded_batch_equal_each_row_alone_and_unsplit(model, side):
    states = [read_prefix(model, prefix) for prefix in PREFIXES]
    assert [len(state) for state in states] == [20, 0, 7]
    with torch.no_grad():
        hidden = run_decoder(model, pad_batch(model, states, SUFFIXES, pad_side=side))
    width = max(map(len, SUFFIXES))
    for row, (prefix, suffix) in enumerate(zip(PREFIXES, SUFFIXES, strict=True)):
        start = width - len(suffix) if side == "left" else 0
        found = hidden[row, start : start + len(suffix)]
        expected = hidden_of_whole(model, prefix + suffix)[len(prefix) :]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_greedy_decoding_equals_transformers_generate(model):
    prompt = PREFIXES[0] + SUFFIXES[0]
    expected = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
        max_new_tokens=12, eos_token_id=None, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    states = [read_prefix(model, PREFIXES[0])]
    (found,) = decode_greedily(model, states, SUFFIXES[:1], max_tokens=[12], stop_ids=frozenset())
    assert found.ids == expected
    assert found.finish_reason == "length"
    # the second of these tokens, as a stop token, ends the answer there
    (stopped,) = decode_greedily(
        model, states, SUFFIXES[:1], max_tokens=[12], stop_ids=frozenset({expected[1]})
    )
    assert stopped.ids == expected[: expected.index(expected[1]) + 1]
    assert stopped.finish_reason == "stop"


def test_a_batch_decodes_what_each_row_decodes_alone(model):
    states = [read_prefix(model, prefix) for prefix in PREFIXES]
    limits = [3, 9, 6]
    together = decode_greedily(model, states, SUFFIXES, max_tokens=limits, stop_ids=frozenset({7}))
    for state, suffix, limit, found in zip(states, SUFFIXES, limits, together, strict=True):
        (alone,) = decode_greedily(
            model, [state], [suffix], max_tokens=[limit], stop_ids=frozenset({7})
        )
        assert found.ids == alone.ids
        assert found.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_logprobs_are_those_of_the_model(model):
    (found,) = decode_greedily(
        model, [read_prefix(model, [])], SUFFIXES[:1], max_tokens=[4], stop_ids=frozenset()
    )
    hidden = hidden_of_whole(model, SUFFIXES[0] + found.ids)
    logprobs = model.lm_head(hidden).log_softmax(dim=-1)
    start = len(SUFFIXES[0]) - 1
    expected = [logprobs[start + i, token].item() for i, token in enumerate(found.ids)]
    assert found.logprobs == pytest.approx(expected, abs=1e-4)


def test_an_abandoned_row_stops_early(model):
    states = [read_prefix(model, [])] * 2
    gone, kept = decode_greedily(
        model, states, SUFFIXES[:2], max_tokens=[8, 8], stop_ids=frozenset(),
        is_abandoned=lambda row: row == 0,
    )  # fmt: skip
    assert (len(gone.ids), len(kept.ids)) == (1, 8)


def test_the_hash_is_of_what_computes(tiny_base, tmp_path):
    folder = make_base(tmp_path / "copy")
    assert hash_base_model(folder) == hash_base_model(tiny_base)
    (folder / "prepared.json").write_text("{}")
    (folder / "README.md").write_text("hello")
    assert hash_base_model(folder) == hash_base_model(tiny_base)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("\n", "\n "))
    assert hash_base_model(folder) != hash_base_model(tiny_base)
    assert hash_base_model(make_base(tmp_path / "other", seed=1)) != hash_base_model(tiny_base)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="safetensors"):
        hash_base_model(tmp_path)


def test_auto_dtype_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert resolve_dtype("auto") is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert resolve_dtype("auto") is torch.float32
    assert resolve_dtype("bfloat16") is torch.bfloat16


def test_decoding_past_the_room_of_the_cache_changes_nothing(model):
    from serving.models.growing_cache import make_growing_cache

    ids = torch.tensor([SUFFIXES[1]])
    expected = hidden_of_whole(model, SUFFIXES[1])
    cache = make_growing_cache(2, 3, None, 0)  # twelve tokens into room for three
    decoder = model.get_decoder()
    with torch.no_grad():
        first = decoder(input_ids=ids[:, :5], past_key_values=cache).last_hidden_state
        rest = [
            decoder(input_ids=ids[:, i : i + 1], past_key_values=cache).last_hidden_state
            for i in range(5, 12)
        ]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1)[0], expected, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == 12


@pytest.mark.parametrize("named", ["TokenizersBackend", "LlamaTokenizer", None])
def test_a_tokenizer_is_the_one_that_transformers_chooses(tiny_base, tmp_path, named):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    if named is None:  # as `prepare` writes a base out of a GGUF file
        file.unlink()
    else:
        file.write_text(json.dumps(config | {"tokenizer_class": named}))
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = "Set `retries: 3` in docs/index.mdx [1] \u00e9\u4e2d <|im_end|>"
    assert type(ours) is type(theirs)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.special_tokens_map == theirs.special_tokens_map
    if named is not None:
        told = ours.apply_chat_template(make_messages("Why?"), return_dict=False)
        assert told == theirs.apply_chat_template(make_messages("Why?"), return_dict=False)


def test_a_tokenizer_that_is_whole_in_json_needs_no_torch(tiny_base):
    code = (
        "import sys; from pathlib import Path; from serving.models.causal_lm import load_tokenizer;"
        f"load_tokenizer(Path({str(tiny_base)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
