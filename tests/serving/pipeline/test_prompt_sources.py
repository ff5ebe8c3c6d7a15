"""The sources a model saw, read back out of its messages."""

import pytest

from serving.errors import InvalidInputError
from serving.pipeline.prompt import PromptFormat, read_sources_text
from tests.serving.fakes import HITS


@pytest.mark.parametrize("ids", ["local", "full"])
def test_what_was_written_is_read(ids):
    prompt = PromptFormat(citation_ids=ids)
    text = read_sources_text(prompt.write_request("Sources:\n?", HITS).messages)
    assert text.splitlines() == [prompt._write_source(n, hit) for n, hit in enumerate(HITS, 1)]
    assert read_sources_text(prompt.write_request("why", ()).messages) == ""


@pytest.mark.parametrize("messages", [(), ({"role": "user", "content": "why"},)])
def test_messages_without_sources_are_refused(messages):
    with pytest.raises(InvalidInputError, match="reading the sources"):
        read_sources_text(messages)
