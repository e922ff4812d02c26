"""Records survive; halves of records are nothing."""

from __future__ import annotations

from pathlib import Path

import google_crc32c

from flairhub.jobs import Journal

RECORDS = [{"job": "a/1", "n": [1, 2]}, {"job": "é", "n": []}, {"job": "a/1", "n": [3]}]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "journal.jsonl")
    assert journal.read() == []
    for record in RECORDS:
        journal.append(record)
    assert journal.read() == RECORDS


def test_a_line_is_a_checksum_and_json_with_sorted_keys(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.rewrite([{"b": 1, "a": "x"}])
    text = b'{"a":"x","b":1}'
    assert journal.path.read_bytes() == f"{google_crc32c.value(text):08x} ".encode() + text + b"\n"


def test_cut_off_anywhere_the_others_are_read_and_the_next_is_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for record in RECORDS:
        journal.append(record)
    whole = journal.path.read_bytes()
    for length in range(len(whole)):
        journal.path.write_bytes(whole[:length])
        before = journal.read()
        assert before == RECORDS[: len(before)]
        journal.append({"last": length})
        assert journal.read() == [*before, {"last": length}]


def test_damaged_lines_and_other_things_are_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.rewrite(RECORDS)
    lines = journal.path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"[", b"(")
    number = b"17"
    lines += [b"nothing", f"{google_crc32c.value(number):08x} ".encode() + number]
    journal.path.write_bytes(b"\n".join(lines))
    assert journal.read() == [RECORDS[0], RECORDS[2]]
    assert journal.lines() == [RECORDS[0], None, RECORDS[2], None, None]


def test_rewriting_the_same_does_not_touch_the_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.rewrite(RECORDS)
    before = journal.path.stat()
    journal.rewrite(RECORDS)
    assert journal.path.stat() == before
    journal.rewrite(RECORDS[:1])
    assert journal.read() == RECORDS[:1]
    assert [path.name for path in tmp_path.iterdir()] == ["j"]
