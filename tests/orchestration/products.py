"""The least config that is read, and recipes beside it: what tests of other keys add theirs to."""

from collections.abc import Mapping
from pathlib import Path

from orchestration.config import Config, read_config

PRODUCT = """\
home: ./made
product: {name: mine, corpus: {path: pages}}
seeds: {path: seeds.jsonl}
eval: {golden: golden.jsonl}
teacher: {model: extractive-v1, license: MIT, trainable: true}
judge: {model: extractive-judge-v1, epoch: "2026-11"}
recipes: recipes
students:
"""


def read_product(folder: Path, rest: str, *, recipes: Mapping[str, str]) -> Config:
    """Write recipes by name, and the config that ends in `rest`, its students first; read it."""
    (folder / "recipes").mkdir(exist_ok=True)
    for name, text in recipes.items():
        (folder / "recipes" / f"{name}.yaml").write_text(text, encoding="utf-8")
    path = folder / "product.yaml"
    path.write_text(PRODUCT + rest, encoding="utf-8")
    return read_config(path)
