from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from engine.errors import ConfigError
from loadtest.bench_format import OURS, Ratio, Report, Row, paired_ratio, spread

ROWS = (
    Row("rag c=8", OURS, "output_tok_s", "tok/s", *spread([470.0, 480.0, 475.0])),
    Row("rag [c=8]", "transformers generate", "output_tok_s", "tok/s", 232.0, 230.0, 1234.5),
)
RATIO = Ratio("rag c=8", "output_tok_s", "transformers generate", 2.05, 2.0, 2.1)


def report(**changes: object) -> Report:
    fields: dict[str, object] = {
        "bench": "generation",
        "rows": ROWS,
        "ratios": (RATIO,),
        "extra": {"model": "SmolLM2", "missing_peers": {"llama.cpp": "not installed"}},
        "machine": {"cpu": "test", "cores": 2},
        "versions": {"python": "3.11.7"},
        "commit": "abc",
    }
    return Report(**{**fields, **changes})  # type: ignore[arg-type]


def test_paired_ratio_is_the_median_of_the_ratios_and_not_the_ratio_of_medians() -> None:
    found = paired_ratio([100.0, 10.0, 30.0], [50.0, 10.0, 10.0], higher_is_better=True)
    assert found.value == 2.0
    assert (found.p20, found.p80) == pytest.approx((1.4, 2.6))


def test_a_shorter_latency_gives_a_ratio_above_one() -> None:
    assert paired_ratio([5.0, 6.0], [10.0, 12.0], higher_is_better=False) == (2.0, 2.0, 2.0)
    assert paired_ratio([5.0, 6.0], [10.0, 12.0], higher_is_better=True) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("ours", "peer"), [([1.0], [1.0, 2.0]), ([], [])])
def test_unpaired_runs_are_refused(ours: list[float], peer: list[float]) -> None:
    with pytest.raises(ValueError, match="as many runs of each"):
        paired_ratio(ours, peer, higher_is_better=True)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_ratio_of_a_value_that_is_not_positive_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        paired_ratio([1.0], [value], higher_is_better=True)


def test_spread_refuses_a_measurement_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        spread([1.0, math.nan])


def test_the_file_has_the_keys_that_are_promised_and_extra_ones(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    report().write_json(path)
    content = json.loads(path.read_text())
    assert {"bench", "machine", "versions", "commit", "rows", "ratios"} <= set(content)
    assert content["bench"] == "generation"
    assert content["model"] == "SmolLM2"
    assert content["rows"][0] == {
        "case": "rag c=8",
        "system": "switchyard",
        "metric": "output_tok_s",
        "unit": "tok/s",
        "value": 475.0,
        "p20": 472.0,
        "p80": 478.0,
    }
    assert set(content["ratios"][0]) == {"case", "metric", "ours_over", "value", "p20", "p80"}


def test_a_report_describes_this_machine_by_itself() -> None:
    content = Report("kernels", ROWS).content()
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["python"]
    assert content["commit"]
    assert content["ratios"] == []


def test_extra_keys_cannot_replace_promised_ones() -> None:
    with pytest.raises(ValueError, match="may not replace commit, rows"):
        report(extra={"rows": [], "commit": "x"})


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    report().write_json(path)
    before = path.read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        report(rows=(Row("c", OURS, "m", "s", math.nan, 0.0, 0.0),)).write_json(path)
    assert path.read_text() == before
    assert [found.name for found in tmp_path.iterdir()] == ["out.json"]


def test_a_file_can_be_read_by_others(tmp_path: Path) -> None:
    report().write_json(tmp_path / "out.json")
    assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o644


def test_a_missing_folder_is_refused_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent/out\.json: cannot be written"):
        report().write_json(tmp_path / "absent" / "out.json")


def test_a_target_that_is_a_folder_is_refused_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "out.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        report().write_json(tmp_path / "out.json")
    assert [found.name for found in tmp_path.iterdir()] == ["out.json"]


def test_the_table_shows_every_field_of_the_file() -> None:
    console = Console(file=io.StringIO(), width=200)
    report().print_table(console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    for word in ("generation", "commit: abc", "cores 2", "python 3.11.7", "SmolLM2", "llama.cpp not installed"):
        assert word in printed
    for word in (
        "rag c=8",
        "rag [c=8]",
        "switchyard",
        "transformers generate",
        "tok/s",
        "475",
        "1,234",
        "2.05",
        "ours_over",
    ):
        assert word in printed
