"""The plan of a batch: what its threads cut, and what is wrong with an item."""

from __future__ import annotations

import pytest
from tiny_encoder import write_tiny_encoder
from tokenizers import Tokenizer

from engine.retrieval.parsing.chunking import Chunker
from engine.retrieval.writing import WritePlan
from engine.values import DocumentWrite


@pytest.fixture
def chunker(tmp_path):
    tokenizer = Tokenizer.from_file(str(write_tiny_encoder(tmp_path / "encoder") / "tokenizer.json"))
    return Chunker(tokenizer, chunk_tokens=40, overlap_tokens=8, max_tokens=64)


def test_documents_that_several_threads_cut_keep_their_order_and_an_item_that_fails_stops_none(chunker):
    items = [
        DocumentWrite(f"docs/{i}.md", (f"# Page {i}\n\n" + f"Sentence number {i}. " * (37 * i % 23)).encode())
        for i in range(24)
    ]
    items[5] = DocumentWrite("docs/5.bin", b"x", "application/octet-stream")
    plans = WritePlan(items), WritePlan(items)
    plans[0].prepare(chunker, {})
    plans[1].prepare(chunker, {}, threads=4)
    assert [put.document.id for put in plans[1].puts] == [item.id for item in items if item.id != "docs/5.bin"]
    assert plans[1].puts == plans[0].puts
    assert plans[1].ids() == plans[0].ids() == [put.document.id for put in plans[1].puts]
