"""The pieces of a stream add up to the whole, and no piece holds half a character."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CORPUS, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.generation.detokenizer import IncrementalDetokenizer, StopStrings

TEXTS = [
    "plain words, 12 numbers; punctuation!",
    "Größe, naïve café, Łódź",
    "Привет, мир. Ελληνικά κείμενο",
    "日本語のテキスト、한국어 문장, 中文",
    "हिन्दी क्षेत्र, ไทย, አማርኛ, עברית, العربية",
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 e\u0301 \u200d",
    "tabs\t, new\n\nlines,   runs of  blanks ",
]


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Llama 2's arrangement: blanks as U+2581, bytes as <0xNN> tokens, one leading blank stripped."""
    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    spec = backend.to_str()
    merged = Tokenizer.from_str(spec)
    vocabulary = merged.get_vocab()
    merged.model = models.BPE(
        vocab=vocabulary | {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)},
        merges=[],
        byte_fallback=True,
        fuse_unk=True,
        unk_token="<unk>",
    )
    return PreTrainedTokenizerFast(tokenizer_object=merged, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZERS = {"byte-level": tiny_tokenizer(), "sentencepiece": sentencepiece_like()}


@pytest.fixture(params=sorted(TOKENIZERS), scope="module")
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


def pieces(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@settings(deadline=None)
@given(data=st.data())
def test_pieces_of_any_token_ids_add_up_to_their_decoding(any_tokenizer: PreTrainedTokenizerFast, data: st.DataObject):
    ids = data.draw(st.lists(st.integers(0, len(any_tokenizer) - 1), max_size=40))
    assert "".join(pieces(any_tokenizer, ids)) == any_tokenizer.decode(ids, skip_special_tokens=True)


@settings(deadline=None)
@given(data=st.data())
def test_pieces_of_any_text_add_up_and_hold_no_replacement_character(
    any_tokenizer: PreTrainedTokenizerFast, data: st.DataObject
):
    characters = st.one_of(st.sampled_from(TEXTS), st.text(st.characters(exclude_characters="\ufffd▁", codec="utf-8")))
    text = "".join(data.draw(st.lists(characters, max_size=4)))
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    stream = pieces(any_tokenizer, ids)
    assert "".join(stream) == text
    assert not any("\ufffd" in piece for piece in stream)


def test_text_arrives_with_its_token_rather_than_at_the_end(tokenizer: PreTrainedTokenizerFast):
    ids = tokenizer.encode("The invoice is sent.")
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.push(i) for i in ids] == [tokenizer.decode([i]) for i in ids]


def test_character_of_several_tokens_arrives_with_its_last_one(tokenizer: PreTrainedTokenizerFast):
    ids = tokenizer.encode("👍a")
    assert pieces(tokenizer, ids) == ["", "", "", "👍", "a", ""]


def test_character_cut_off_by_the_end_becomes_one_replacement_character(tokenizer: PreTrainedTokenizerFast):
    ids = tokenizer.encode("👍")[:-1]
    assert pieces(tokenizer, ids) == ["", "", "", "\ufffd"]


def test_special_and_unknown_ids_give_no_text(tokenizer: PreTrainedTokenizerFast):
    assert pieces(tokenizer, [tokenizer.eos_token_id, 10**6]) == ["", "", ""]


def run_stops(stops: tuple[str, ...], chunks: list[str]) -> tuple[str, bool]:
    cutter = StopStrings(stops)
    text = ""
    for chunk in chunks:
        certain, found = cutter.push(chunk)
        text += certain
        if found:
            return text, True
    return text + cutter.flush(), False


@settings(deadline=None)
@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
    cuts=st.lists(st.integers(0, 30)),
)
def test_text_ends_before_the_stop_string_however_it_is_split(text: str, stops: tuple[str, ...], cuts: list[int]):
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[start:end] for start, end in pairwise(borders)]
    out, found = run_stops(stops, chunks)
    assert found == any(stop in text for stop in stops)
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)
    if not found:
        assert out == text
    else:
        assert any(text[len(out) :].startswith(stop) for stop in stops)


def test_beginning_of_a_stop_string_is_held_back_until_decided():
    cutter = StopStrings(("END",))
    assert cutter.push("text E") == ("text ", False)
    assert cutter.push("N") == ("", False)
    assert cutter.push("D of it") == ("", True)
    other = StopStrings(("END",))
    assert [other.push("E"), other.push("Nd")] == [("", False), ("ENd", False)]
