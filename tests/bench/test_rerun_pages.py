"""The pages that the bench edits are those that the product reads."""

import yaml

from bench.rerun import list_pages
from orchestration.config import read_config
from tests.product import write_product


def test_pages_that_the_product_leaves_out_are_not_edited(tmp_path):
    """An edit of such a page would change nothing, and make a 1 % change look cheap."""
    path = write_product(tmp_path)
    corpus = read_config(path).product.corpus.path
    before = list_pages(read_config(path))
    for name in ("drafts/new.mdx", ".hidden/page.mdx", "node_modules/package/page.mdx"):
        (corpus / name).parent.mkdir(parents=True)
        (corpus / name).write_text("# Page\n\nText.\n", encoding="utf-8")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["product"]["corpus"]["exclude"] = ["drafts"]
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert list_pages(read_config(path)) == before
    assert before
