"""Mistral's tekken tokenizer of 130,072 tokens: a second real one, unlike the student's.

Its data file comes in the wheel mistral-common (models.txt), whose code is not imported.
"""

import base64
import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path

import tiktoken

FILE = "mistral_common/data/tekken_240911.json"
SHA256 = "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316"


@functools.cache
def load_tekken() -> tiktoken.Encoding:
    path = Path(str(importlib.metadata.distribution("mistral-common").locate_file(FILE)))
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise AssertionError(f"{path} has sha256 {found}, expected {SHA256}; run `make setup`")
    document = json.loads(data)
    config = document["config"]
    count = config["default_vocab_size"] - config["default_num_special_tokens"]
    ranks = {base64.b64decode(e["token_bytes"]): e["rank"] for e in document["vocab"][:count]}
    return tiktoken.Encoding(
        "tekken", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={}
    )
