"""What was found is kept at once, and goes on only with what it is of."""

from __future__ import annotations

import pytest

from engine.errors import SwitchyardError
from engine.evaluation.work_log import open_work_log

IDENTITY = {"arms": ["base", "bot"], "max_tokens": 64}


def keep(path, *entries, identity=IDENTITY, restart=False):
    with open_work_log(path, identity, restart=restart) as log:
        found = list(log.entries)
        for entry in entries:
            log.add(entry)
    return found


def refused(path, identity=IDENTITY):
    with pytest.raises(SwitchyardError) as caught:
        keep(path, identity=identity)
    return str(caught.value)


def test_entries_come_back(tmp_path):
    assert keep(tmp_path / "a", {"id": "q1"}, {"id": "q\u00fc"}) == []
    assert keep(tmp_path / "a", {"id": "q3"}) == [{"id": "q1"}, {"id": "q\u00fc"}]
    assert len(keep(tmp_path / "a")) == 3
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_entry_is_on_disk_before_the_next_one(tmp_path):
    with open_work_log(tmp_path / "a", IDENTITY, restart=False) as log:
        log.add({"id": "q1"})
        assert '{"id": "q1"}' in (tmp_path / "a").read_text()


def test_line_that_was_cut_short_is_dropped_and_the_next_one_is_whole(tmp_path):
    keep(tmp_path / "a", {"id": "q1"})
    with (tmp_path / "a").open("a") as file:
        file.write('{"id": "q2", "arm')
    assert keep(tmp_path / "a", {"id": "q3"}) == [{"id": "q1"}]
    assert keep(tmp_path / "a") == [{"id": "q1"}, {"id": "q3"}]


@pytest.mark.parametrize("content", ["", '{"_work": {"ar'])
def test_file_that_was_cut_in_its_first_line_begins_anew(tmp_path, content):
    (tmp_path / "a").write_text(content)
    assert keep(tmp_path / "a", {"id": "q1"}) == []
    assert keep(tmp_path / "a") == [{"id": "q1"}]


def test_file_of_something_else_is_refused_and_says_what_differs(tmp_path):
    keep(tmp_path / "a", {"id": "q1"})
    said = refused(tmp_path / "a", {"arms": ["base"], "max_tokens": 64})
    assert "arms was base,bot and is now base" in said
    assert "max_tokens" not in said
    assert "--restart" in said
    assert keep(tmp_path / "a", identity={"arms": ["base"]}, restart=True) == []


@pytest.mark.parametrize("content", ["[]\n", "nonsense\n", '{"id": 1}\n'])
def test_file_that_is_none_is_left_alone(tmp_path, content):
    (tmp_path / "a").write_text(content)
    assert "is not what a stopped command left there" in refused(tmp_path / "a")
    assert (tmp_path / "a").read_text() == content


def test_file_is_held_by_one(tmp_path):
    with open_work_log(tmp_path / "a", IDENTITY, restart=False):
        assert "another command is at work there" in refused(tmp_path / "a")
    assert keep(tmp_path / "a") == []


def test_place_that_cannot_be_written_is_named(tmp_path):
    assert "cannot be written (No such file or directory)" in refused(tmp_path / "no folder" / "a")
