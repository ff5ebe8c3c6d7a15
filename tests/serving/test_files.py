"""Atomic writes: old or new, never half; writers do not disturb each other."""

import threading

import pytest

from serving.files import atomic_folder, atomic_path, write_text_atomically


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    target = tmp_path / "table.parquet"
    write_text_atomically(target, "old")

    def write_until_the_disk_is_full() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_until_the_disk_is_full()
    assert target.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


def test_an_interrupted_folder_is_not_there(tmp_path):
    def build_until_interrupted() -> None:
        with atomic_folder(tmp_path / "model") as staging:
            (staging / "half").write_text("x", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_until_interrupted()
    assert list(tmp_path.iterdir()) == []


def test_many_writers_of_one_folder_leave_one_whole_file_each(tmp_path):
    def write(number: int) -> None:
        for _ in range(20):
            write_text_atomically(tmp_path / f"{number % 3}.txt", f"{number}" * 1000)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [p.read_text(encoding="utf-8") for p in sorted(tmp_path.iterdir())]
    assert [len(text) for text in texts] == [1000] * 3
    assert all(len(set(text)) == 1 for text in texts)


def test_two_builders_of_one_folder_agree(tmp_path):
    def build() -> None:
        with atomic_folder(tmp_path / "index") as staging:
            (staging / "rows").write_text("same", encoding="utf-8")

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.rglob("*")] == ["index", "rows"]
