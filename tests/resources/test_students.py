"""Students by name, and answers that keep the latency of the machine that gave them."""

import asyncio

import pytest

from resources import students as module
from resources.students import Students, StudentSettings
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.embedded import ResolvedModel
from serving.models.protocols import ChatRequest, NoProgress, Price
from tests.serving.fakes import CannedChatModel

ADAPTER = {
    "student": "tiny", "kind": "alora", "adapter": "tiny@0123456789ab", "activation": "question",
}  # fmt: skip


@pytest.fixture
def students(tmp_path):
    settings = StudentSettings(
        base_model=str(tmp_path),
        revision="test",
        context_tokens=512,
        max_answer_tokens=24,
        price=Price(),
    )
    return Students(
        settings={"tiny": settings},
        recipes_folder=tmp_path,
        home=Home(tmp_path),
        progress=NoProgress(),
        connect=lambda name: CannedChatModel(name),
        open_embedder=lambda: None,
    )


def test_an_unknown_student_is_named_with_those_there_are(students):
    with pytest.raises(InvalidInputError, match=r"'vast'.*\['tiny'\]"):
        students.find("vast")


def test_a_kept_answer_of_another_machine_is_not_used(students, monkeypatch):
    model = CannedChatModel("tiny@0123456789ab")
    base = ResolvedModel(path=students.recipes_folder, sha256="0")
    monkeypatch.setattr(Students, "base", lambda *_: base)
    monkeypatch.setattr(module, "_load_student", lambda *_: model)
    request = ChatRequest(messages=({"role": "user", "content": "why"},), seed=1)
    for cpu_count, calls in ((2, 1), (2, 1), (64, 2)):
        monkeypatch.setattr("os.cpu_count", lambda count=cpu_count: count)
        asyncio.run(students.load(ADAPTER).complete(request))
        assert len(model.requests) == calls
