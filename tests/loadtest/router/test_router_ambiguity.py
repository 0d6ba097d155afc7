"""The command that measures the ambiguity head, on made questions and an encoder that needs no model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from retrieval.stub_encoder import StubEncoder

from loadtest.router import ambiguity
from loadtest.router.ambiguity import (
    CLAMBER,
    DEV,
    TRAIN,
    Figure,
    macro,
    main,
    measure_ambignq,
    measure_clamber,
    near_groups,
    normalised,
    share_of,
)

SINGLE, SEVERAL = {"type": "singleAnswer"}, {"type": "multipleQAs"}


def ambignq(*, first: int, num: int) -> list[dict[str, object]]:
    """Questions who played ... (ambiguous) and who wrote ... by turns."""
    rows = []
    for place in range(first, first + num):
        several = place % 2 == 0
        question = f"Who {'played' if several else 'wrote'} subject{place} thing{place * 7} item{place * 3}?"
        rows.append(
            {
                "question": question,
                "annotations": [SEVERAL if several else SINGLE],
                "ambiguous_any": several,
                "ambiguous_all": several,
            }
        )
    return rows


def clamber(*, num: int = 80) -> list[dict[str, object]]:
    rows = []
    for category, subclass in (("MC", "none"), ("FD", "NK"), ("LA", "co-reference"), ("LA", "polysemy")):
        for row in ambignq(first=1_000, num=num):
            question = str(row["question"]).replace("subject", category + subclass)
            asked = "1" if row["ambiguous_any"] else "0"
            rows.append(
                {"question": question, "category": category, "subclass": subclass, "require_clarification": asked}
            )
    return rows


def write(path: Path, rows: list[dict[str, object]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in ({"_provenance": {}}, *rows))


def by_case(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.case: figure for figure in figures}


def test_share_is_of_the_annotators_who_gave_several_readings():
    assert share_of({"annotations": [SINGLE, SEVERAL, SINGLE, SINGLE]}) == 0.25


def test_questions_are_one_whatever_their_case_and_punctuation():
    assert normalised("Who’s  ON first?") == normalised("who s on first")


def test_near_questions_are_of_one_group_and_groups_join():
    angles = np.radians([0, 20, 40, 120])
    rows = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    assert near_groups(rows) == ["0", "0", "0", "3"]


def test_head_is_judged_by_questions_that_it_was_not_fitted_on():
    train = ambignq(first=0, num=120)
    dev = ambignq(first=500, num=60)
    dev[0] |= {"ambiguous_any": True, "ambiguous_all": False}
    figures = by_case(measure_ambignq([*train, dev[1]], dev, StubEncoder()))
    assert figures["AmbigNQ train, held out"].report.num_questions == 120, "the question of both files is left out"
    assert figures["AmbigNQ dev"].report.auroc == 1.0
    assert figures["AmbigNQ dev"].report.gain is not None
    assert figures["AmbigNQ dev, unanimous"].report.num_questions == 59


def test_types_are_judged_one_by_one_without_questions_of_the_other_set():
    rows = clamber()
    figures = measure_clamber(rows, rows[:10], StubEncoder())
    assert [(one.case, one.report.num_questions) for one in figures] == [
        ("CLAMBER MC", 70),
        ("CLAMBER NK", 80),
        ("CLAMBER co-reference", 80),
    ]
    ours, theirs = macro(figures)
    assert ours == pytest.approx(np.mean([one.report.auroc for one in figures])) and ours > 0.9
    assert 0 < theirs <= 1


def test_command_prints_a_table_and_writes_what_it_printed(tmp_path: Path, monkeypatch, capsys):
    write(tmp_path / TRAIN, ambignq(first=0, num=120))
    write(tmp_path / DEV, ambignq(first=500, num=60))
    write(tmp_path / CLAMBER, clamber())
    monkeypatch.setattr(ambiguity, "default_encoder", StubEncoder)
    assert main(["--data", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "CLAMBER, mean over MC, NK, co-reference: AUROC" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["bench"] == "router_ambiguity"
    assert [one["case"] for one in written["figures"]][1:3] == ["AmbigNQ dev", "AmbigNQ dev, unanimous"]
    assert f"{written['macro']['ours']:.3f}" in printed


def test_a_run_without_the_data_says_what_is_missing(tmp_path: Path, capsys):
    assert main(["--data", str(tmp_path)]) == 0
    assert "skipped: ambignq_train.jsonl.gz, ambignq_dev.jsonl.gz, clamber.jsonl.gz not found" in " ".join(
        capsys.readouterr().out.split()
    )
