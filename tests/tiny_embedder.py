"""Small random sentence-transformers models of several makes, written as folders."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from tests.tiny_student import make_base, make_tokenizer

SIZE = {"vocab_size": 400, "max_position_embeddings": 128}


def make_embedder(
    folder: Path,
    *,
    kind: str = "bert",
    pooling: str = "mean",
    is_normalized: bool = False,
    dense: int | None = None,
    prompt: str | None = None,
    include_prompt: bool = True,
    has_chat_template: bool = False,
) -> Path:
    """Write a model of 32 dimensions (or `dense`) that reads 40 tokens, and return its folder."""
    torch.manual_seed(0)
    body = folder.parent / f"{folder.name}-body"
    if kind == "llama":  # a decoder: pads on the left, and its last token is the pooled one
        make_base(body)
        LlamaModel.from_pretrained(body).save_pretrained(body)
        if not has_chat_template:
            (body / "chat_template.jinja").unlink()
    elif kind == "distilbert":  # reads no token types
        DistilBertModel(
            DistilBertConfig(**SIZE, dim=32, hidden_dim=64, n_layers=2, n_heads=4)
        ).save_pretrained(body)
    else:
        config = BertConfig(**SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                            num_attention_heads=4, initializer_range=0.5)  # fmt: skip
        BertModel(config).save_pretrained(body)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer().backend_tokenizer,
        pad_token="<|im_end|>",  # noqa: S106 - a token of text
        padding_side="left" if kind == "llama" else "right",
        model_input_names=["input_ids", "attention_mask"]
        + (["token_type_ids"] if kind == "bert" else []),
    )
    tokenizer.save_pretrained(body)
    pool = Pooling(32, pooling_mode=pooling, include_prompt=include_prompt)
    modules = [Transformer(str(body), max_seq_length=40), pool]
    modules += [Dense(32, dense)] if dense else []
    modules += [Normalize()] if is_normalized else []
    model = SentenceTransformer(modules=modules, device="cpu")
    if prompt:
        model.prompts, model.default_prompt_name = {"passage": prompt}, "passage"
    model.save(str(folder), create_model_card=False)
    return folder
