"""The mixed load: drawn by a seed, grouped, with documents under the ids that its questions name."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections import Counter

import pytest
from rich.console import Console

from engine.cli.scanning import Tally, scan
from engine.errors import ConfigError
from engine.evaluation.compare.updating import read_updates
from engine.evaluation.questions import read_questions
from loadtest.environment import REPOSITORY
from loadtest.router.load import DOCUMENTS, QUESTIONS_FILE, SOURCE, UPDATES_FILE, main, make_load

SOURCES = ("banking77", "phrasebank", "squad", "popqa", "stackfaq", "flyio")


def write(path, rows):
    lines = [{"_provenance": {}}, *rows]
    path.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in lines).encode()))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small files in the formats of the data sets."""
    folder = tmp_path_factory.mktemp("data")
    labels = [{"id": f"test-{n}", "text": f"Where is card {n}?", "label": f"label_{n % 3}"} for n in range(9)]
    write(folder / "banking77_test.jsonl.gz", labels)
    write(folder / "banking77_train.jsonl.gz", [{"id": "train-0", "text": "where is CARD 4", "label": "label_1"}])
    write(
        folder / "fpb_test.jsonl.gz", [{"id": f"fpb-{n}", "text": f"Profit {n}.", "label": "neutral"} for n in range(9)]
    )
    answers = [{"text": "Ada", "start": 0}, {"text": "Ada", "start": 9}]
    year = {"id": "when", "question": "When was it?", "answers": [{"text": "1905", "start": 0}]}
    write(
        folder / "squad_v1_dev.jsonl.gz",
        [
            {
                "article": f"Big_Storm_{n % 2}",
                "paragraph_index": n,
                "context": f"Ada saw storm {n} in 1905.",
                "questions": [
                    *({"id": f"s{n}-{m}", "question": f"Who saw {n}, {m}?", "answers": answers} for m in (0, 1)),
                    year | {"id": f"when-{n}"},
                ],
            }
            for n in range(5)
        ],
    )
    shared = {"title": "Rome", "text": "Rome is a city.", "supporting": False}
    write(
        folder / "popqa.jsonl.gz",
        [
            {
                "id": f"popqa/{n}",
                "question": f"Where was {n} born?",
                "answers": ["Rome"],
                "subject": f"Person {n}",
                "paragraphs": [{"title": str(n), "text": f"{n} was born.", "supporting": True}, shared]
                if n % 2
                else [],
            }
            for n in range(20)
        ],
    )
    entry = {"id": "faq-0", "question": "How to strike?", "answers": ["Use tildes around the words, twice.", " "]}
    write(folder / "stackfaq_corpus.jsonl.gz", [entry])
    queries = [{"id": f"faq-0-q{n}", "text": f"Strike text {n}?", "relevant": "faq-0"} for n in range(9)]
    write(folder / "stackfaq_queries.jsonl.gz", queries)
    with tarfile.open(folder / "kb_flyio_docs_v1.tar.gz", "w:gz") as tar:
        for name in ("flyio_docs_v1/docs/volumes/snapshots.html.markerb", "flyio_docs_v1/LICENSE"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"# Hi\n"))
    return folder


@pytest.fixture
def made(data, tmp_path):
    make_load(data, tmp_path / "load", each=6)
    return tmp_path / "load"


def test_sources_have_equal_numbers_of_questions_that_collect_reads(made):
    questions = read_questions([made / QUESTIONS_FILE])
    found = Counter(each.source for each in questions)
    assert found == {"banking77": 6, "phrasebank": 6, "squad": 6, "popqa": 6, "stackfaq": 6, "flyio": 6}
    assert {(each.source, each.metric) for each in questions} == {
        *(("banking77", "accuracy"), ("phrasebank", "accuracy"), ("squad", "f1"), ("popqa", "f1")),
        *(("stackfaq", "rouge_l"), ("flyio", "rouge_l")),
    }
    assert all(each.id.startswith(f"{each.source}/") and each.id.count("popqa") < 2 for each in questions)


def test_documents_have_the_ids_that_questions_name(made):
    ids = {f"{SOURCE}/{each.name}" for each in scan([made / DOCUMENTS], Tally(), Console())}
    assert "load/flyio/volumes/snapshots.html.markerb" in ids
    assert not any("LICENSE" in each for each in ids)
    for each in read_questions([made / QUESTIONS_FILE]):
        # The small archive has one page alone.
        assert each.source == "flyio" or {*each.documents} <= ids
        if each.source != "popqa":
            assert bool(each.documents) == (each.source in ("squad", "stackfaq", "flyio")), each.id


def test_paragraph_of_several_questions_is_one_document(made):
    rows = [json.loads(line) for line in (made / DOCUMENTS / "popqa.jsonl").read_text().splitlines()]
    assert Counter(row["title"] for row in rows)["Rome"] == 1
    assert len(rows) == 11


def test_half_of_the_popqa_questions_have_their_documents(made):
    found = [each for each in read_questions([made / QUESTIONS_FILE]) if each.source == "popqa"]
    assert sum(bool(each.documents) for each in found) == 3


def test_groups_are_what_questions_share(made):
    by_source = {}
    for each in read_questions([made / QUESTIONS_FILE]):
        by_source.setdefault(each.source, set()).add(each.group)
    assert by_source["banking77"] <= {"label label_0", "label label_1", "label label_2"}
    assert by_source["squad"] <= {"Big_Storm_0", "Big_Storm_1"}
    assert by_source["stackfaq"] == {"faq-0"}
    assert by_source["phrasebank"] == {None}


def test_questions_that_were_trained_on_are_left_out(data, tmp_path):
    make_load(data, tmp_path, each=9)
    questions = [each.question for each in read_questions([tmp_path / QUESTIONS_FILE]) if each.source == "banking77"]
    assert len(questions) == 8
    assert "Where is card 4?" not in questions


def test_answers_are_each_once_and_none_is_blank(made):
    for each in read_questions([made / QUESTIONS_FILE]):
        assert len({*each.answers}) == len(each.answers)
        if each.source == "stackfaq":
            assert each.answers == ("Use tildes around the words, twice.",)


def test_the_seed_draws_the_questions(data, tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        make_load(data, tmp_path / name, each=4, seed=seed)
    first, same, other = ((tmp_path / name / QUESTIONS_FILE).read_text() for name in "abc")
    assert first == same
    assert first != other


def test_texts_are_not_written_into_the_repository(data):
    with pytest.raises(ConfigError, match="is in the repository, where texts under other licences must not be"):
        make_load(data, REPOSITORY / "load")
    assert not (REPOSITORY / "load").exists()


def test_missing_file_is_named(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "load"), "--data", str(tmp_path)])
    assert "banking77_train.jsonl.gz" in str(caught.value)
    main([str(tmp_path / "load"), "--data", str(data), "--each", "4"])
    assert "stackfaq" in capsys.readouterr().out


def test_updates_move_the_number_that_answers_and_nothing_else(made):
    updates = read_updates(made / UPDATES_FILE)
    assert len(updates) == 2, "one of each article"
    documents = {
        row["id"]: row["text"] for row in map(json.loads, (made / DOCUMENTS / "squad.jsonl").read_text().splitlines())
    }
    for each in updates:
        before = documents[each.id.removeprefix(f"{SOURCE}/")]
        assert (each.answer_before, each.answer_after) == ("1905", "1918")
        assert each.text == before.replace("1905", "1918") != before


def test_each_source_has_its_questions_in_a_file_of_its_own(made):
    apart = [line for name in SOURCES for line in read_questions([made / f"{name}.jsonl"])]
    assert [each.question for each in apart] == [each.question for each in read_questions([made / QUESTIONS_FILE])]


def test_faq_questions_bring_other_wordings_as_paraphrases(made):
    for each in read_questions([made / "stackfaq.jsonl"]):
        assert len(each.paraphrases) == 3
        assert each.question not in each.paraphrases
