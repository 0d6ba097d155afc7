"""`switchyard router`: from files of outcomes to a router in a folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from made_outcomes import decided_by_first, made
from made_router import artefact, learned
from stub_arms import StubArms

from engine.cli.main import main
from engine.evaluation.outcomes import write_outcomes
from engine.routing.artefact import read_artefact, write_artefact


def run(*arguments):
    return CliRunner().invoke(main, ["router", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a router, and the answer of the command that made it."""
    folder = tmp_path_factory.mktemp("router")
    # Two files: they become one.
    write_outcomes(made(200, decided_by_first, name="a"), folder / "a.jsonl")
    write_outcomes(made(200, decided_by_first, name="b", seed=1), folder / "b.jsonl.gz")
    return folder / "router", run("train", folder / "a.jsonl", folder / "b.jsonl.gz", "--out", folder / "router")


def test_train_writes_the_router_and_its_report_and_says_what_it_is_worth(trained):
    folder, done = trained
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Learned: quality 0.")
    assert f"report in {folder / 'report.html'}" in done.stdout
    assert {each.name for each in folder.iterdir()} == {
        *("router.json", "router.safetensors", "report.html", "report.json")
    }
    assert read_artefact(folder).num_questions == 400


def test_evaluate_judges_on_other_questions_and_writes_a_report_where_asked(trained, tmp_path):
    write_outcomes(made(100, decided_by_first, name="c", seed=2), tmp_path / "c.jsonl")
    done = run("evaluate", trained[0], tmp_path / "c.jsonl", "--out", tmp_path / "report")
    assert done.exit_code == 0, done.output
    assert "on 100 questions that it was not fitted on" in done.stdout
    assert (tmp_path / "report" / "report.html").exists()
    found = json.loads(run("evaluate", trained[0], tmp_path / "c.jsonl", "--json").stdout)
    assert found["evaluation"]["num_questions"] == 100


@pytest.fixture
def asked(tmp_path):
    """Outcomes without texts, and the file of their questions."""
    outcomes = made(60, decided_by_first, name="d", seed=4)
    write_outcomes(outcomes, tmp_path / "d.jsonl", with_texts=False)
    rows = [
        {
            "id": each.id,
            "question": f"Where is box {place} kept?",
            "label": "x",
            "paraphrases": [f"Box {place}, where?"],
        }
        for place, each in enumerate(outcomes.questions)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stub = StubArms()
    stub.digests = {"support": "adapter-1"}
    # What is asked in lower case looks like what needs no passages.
    stub.signals = lambda text: {
        "s0": -2.0 if text == text.lower() else outcomes.questions[int(re.search(r"\d+", text)[0])].signals["s0"],
        "s1": 0.0,
        "s2": 0.0,
    }
    return tmp_path / "d.jsonl", tmp_path / "questions.jsonl", stub


def test_evaluate_asks_a_server_for_signals_of_changed_questions(trained, asked, tmp_path):
    outcomes, questions, stub = asked
    with stub.serve() as url:
        options = ("--robustness", questions, "--url", url)
        done = run("evaluate", trained[0], outcomes, *options, "--out", tmp_path / "report")
        found = json.loads(run("evaluate", trained[0], outcomes, *options, "--json").stdout)
    assert done.exit_code == 0, done.output
    by_kind = {each["kind"]: each for each in found["evaluation"]["robustness"]["kinds"]}
    assert by_kind["paraphrases"]["unchanged"]["value"] == 1.0
    surface = by_kind["lower case, no final mark"]
    assert 0.3 < surface["unchanged"]["value"] < 0.7
    assert surface["difference"]["value"] < 0
    assert f"{surface['unchanged']['value']:.1%}" in done.stdout
    assert 'id="robustness"' in (tmp_path / "report" / "report.html").read_text()
    assert not stub.asked, "nothing is generated"


def test_evaluate_refuses_options_and_questions_that_say_nothing(trained, asked, tmp_path):
    outcomes, questions, _ = asked
    for option in (("--seed", 1), ("--collection", "docs"), ("--url", "http://127.0.0.1:1")):
        done = run("evaluate", trained[0], outcomes, *option)
        assert done.exit_code == 2
        assert f"{option[0]} is for --robustness" in done.stderr
    questions.write_text('{"question": "Who?", "answers": ["a"], "paraphrases": ["Who? "]}\n')
    done = run("evaluate", trained[0], outcomes, "--robustness", questions)
    assert done.exit_code == 1
    assert "line 1: has a paraphrase that is blank or the question itself; leave it out" in done.stderr


def test_show_prints_what_the_router_is(trained):
    done = run("show", trained[0])
    assert done.exit_code == 0, done.output
    assert "Learned: quality" in done.stdout
    assert "falls back to base" in done.stdout
    assert "passes its own test on 20 stored questions" in done.stdout
    found = json.loads(run("show", trained[0], "--json").stdout)
    assert (found["is_learned"], found["problem"], found["signals"]) == (True, None, ["s0", "s1", "s2"])


def test_show_fails_where_the_router_fails_its_own_test(tmp_path):
    made_now = learned()
    test = replace(made_now.self_test, chosen=1 - made_now.self_test.chosen)
    write_artefact(replace(artefact(), learned=replace(made_now, self_test=test)), tmp_path)
    done = run("show", tmp_path)
    assert done.exit_code == 1
    assert "fails its own test on 4 of 4 stored questions" in done.stderr


def test_few_questions_give_the_best_single_arm_and_no_failure(tmp_path):
    write_outcomes(made(10, decided_by_first), tmp_path / "a.jsonl")
    done = run("train", tmp_path / "a.jsonl", "--out", tmp_path / "router", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert "10 questions are too few; 300 are needed" in found["evaluation"]["verdict"]["headline"]
    assert read_artefact(tmp_path / "router").learned is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "0.3"], "--budget is for --objective budget, not quality"),
        (["--objective", "budget"], "needs the share of questions"),
        (["--objective", "latency", "--max-p95-ms", "5"], "--max-p95-ms is for --objective quality"),
        (["--epsilon", "0.1"], "--epsilon is for --objective latency"),
        (["--objective", "best"], "'best' is not one of"),
    ],
)
def test_options_that_do_not_go_together_are_bad_usage(tmp_path, arguments, said):
    done = run("train", tmp_path / "a.jsonl", "--out", tmp_path / "router", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_bad_files_fail_with_every_bad_line_and_the_fix(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"_keys": {"model": "m"}}\n{\n[]\n')
    done = run("train", tmp_path / "a.jsonl", "--out", tmp_path / "router")
    assert done.exit_code == 1
    assert "line 2: is not JSON" in done.stderr
    assert "line 3: is list, not an object" in done.stderr
    assert not (tmp_path / "router").exists()


def test_missing_router_fails_with_the_command_that_makes_one(tmp_path):
    done = run("show", tmp_path)
    assert done.exit_code == 1
    assert (
        "router.json cannot be read (No such file or directory). Write it anew: switchyard router train." in done.stderr
    )


@pytest.mark.parametrize("command", ["train", "evaluate", "show"])
def test_help_has_an_example(command):
    assert "Example:" in run(command, "--help").stdout
