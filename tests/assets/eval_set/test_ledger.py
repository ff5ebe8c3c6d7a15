"""The access ledger: who read the golden set, how often, when last; damage is no zero."""

import pytest

from assets.eval_set.ledger import count_reads, record_read
from serving.errors import InvalidInputError


def test_reads_are_counted_by_reader(tmp_path):
    ledger = tmp_path / "home" / "golden_reads.jsonl"
    assert count_reads(ledger) == []
    for reader in ("arm_answers:compact", "arm_answers:soft", "arm_answers:compact"):
        record_read(ledger, reader=reader, run_id="r")
    found = count_reads(ledger)
    assert [(one.reader, one.count) for one in found] == [
        ("arm_answers:compact", 2),
        ("arm_answers:soft", 1),
    ]
    assert all(one.last_read_at.endswith("+00:00") for one in found)


@pytest.mark.parametrize("line", ["{", "[]", "{}"])
def test_a_damaged_ledger_is_an_error(tmp_path, line):
    ledger = tmp_path / "golden_reads.jsonl"
    record_read(ledger, reader="arm_answers:compact", run_id="r")
    with ledger.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(InvalidInputError, match="line 2"):
        count_reads(ledger)
