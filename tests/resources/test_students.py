"""Students by name, and answers that keep the latency of the machine that gave them."""

import asyncio
import gc
import weakref

import pytest

from resources import students as module
from resources.students import Students, StudentSettings
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.embedded import ResolvedModel
from serving.models.local_student import LocalStudent
from serving.models.protocols import ChatRequest, NoProgress, Price
from tests.serving.fakes import CannedChatModel
from tests.tiny_student import make_adapter, make_messages

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


def test_a_process_that_makes_many_students_holds_few(students, tiny_base, monkeypatch):
    folder = ResolvedModel(path=tiny_base, sha256="0")
    monkeypatch.setattr(Students, "base", lambda *_: folder)
    loaded = []
    for number in range(module.MODELS_HELD + 2):
        adapter = make_adapter(students.home.adapters / f"tiny@{number:012x}", tiny_base)
        students.load(ADAPTER | {"adapter": adapter.name})
        students_now = (one for one in gc.get_objects() if type(one) is LocalStudent)
        loaded += [weakref.ref(one) for one in students_now if one.name == adapter.name]
    gc.collect()
    assert len(loaded) == module.MODELS_HELD + 2
    assert sum(reference() is not None for reference in loaded) <= module.MODELS_HELD


def test_the_configured_engine_runs_base_and_adapter_and_names_its_numbers(tiny_base, tmp_path):
    home = Home(tmp_path)
    adapter = make_adapter(home.adapters / "tiny@0123456789ab", tiny_base)
    settings = StudentSettings(
        base_model=str(tiny_base), revision="r", context_tokens=400, max_answer_tokens=8,
        price=Price(), local_engine="openvino",
    )  # fmt: skip
    students = Students(
        settings={"tiny": settings}, recipes_folder=tmp_path, home=home, progress=NoProgress(),
        connect=lambda name: CannedChatModel(name), open_embedder=lambda: None,
    )  # fmt: skip
    request = ChatRequest(messages=tuple(make_messages("How?")), max_tokens=8)
    assert students.open_base("tiny").dtype == "openvino-float32"
    answer = asyncio.run(students.load(ADAPTER).complete(request))
    assert {path.name.partition("@")[0] for path in home.models.glob("*@*")} == {
        f"{tiny_base.name}.openvino-prefix", f"{tiny_base.name}.openvino-step",
        "tiny@0123456789ab".partition("@")[0],
    }  # fmt: skip
    plain = LocalStudent.load(
        tiny_base, adapter, name="t", price=Price(), activation="question", context_tokens=400,
        dtype="float32",
    )  # fmt: skip
    assert answer.text == asyncio.run(plain.complete(request)).text
    assert answer.signs is not None
