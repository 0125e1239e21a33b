"""Tokenizer directories, chat templates, and text from tokens as they come."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from omniserve_agent.http.chat_template import ChatTemplate, ChatTemplateError
from omniserve_agent.http.detokenizer import UNDECODABLE, Detokenizer, TokenBytes
from omniserve_agent.http.tokenizer import ModelTokenizer, TokenizerError


def pieces(detokenizer, ids):
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@given(text=st.text(max_size=30))
def test_any_text_comes_back_whole_and_in_whole_characters(tokenizer, text):
    found = pieces(tokenizer.detokenizer(), tokenizer.encode(text))
    assert "".join(found) == text
    if UNDECODABLE not in text:
        assert not any(UNDECODABLE in piece for piece in found)


@given(text=st.text(min_size=1, max_size=10))
def test_token_bytes_add_up_to_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_a_character_waits_for_its_last_byte(tokenizer):
    ids = [tokenizer.encode("日")[0], *tokenizer.encode("日")[1:]]
    found = pieces(tokenizer.detokenizer(), ids)
    assert [piece for piece in found if piece] == ["日"]


def test_bytes_that_never_become_text_are_shown_at_the_end(tokenizer):
    first = tokenizer.encode("日")[:1]
    assert pieces(tokenizer.detokenizer(), first)[-1] == UNDECODABLE


def test_invalid_bytes_do_not_grow_the_held_text_without_bound(tokenizer):
    lone = next(i for i in range(tokenizer.vocabulary_size) if tokenizer.token_bytes(i) == b"\xe6")
    found = pieces(tokenizer.detokenizer(), [lone] * 100)
    assert len("".join(found)) == 100
    assert any(found[:50])


def test_special_tokens_have_no_text(tokenizer):
    assert tokenizer.eos_id is not None
    assert pieces(tokenizer.detokenizer(), [tokenizer.eos_id]) == ["", ""]
    assert tokenizer.token_text(tokenizer.eos_id) == "<|im_end|>"


@pytest.fixture
def metaspace():
    """A vocabulary whose words carry their space, with byte tokens, as Llama's."""
    words = ["▁the", "▁end", "ing", "<0xE6>", "<0x97>", "<0xA5>", "a"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "a"))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def test_spaces_survive_where_the_first_token_of_a_text_loses_its_own(metaspace):
    assert "".join(pieces(Detokenizer(metaspace), [0, 1, 2, 0])) == "the ending the"
    assert "".join(pieces(Detokenizer(metaspace, [0]), [1])) == " end"


def test_byte_tokens(metaspace):
    assert pieces(Detokenizer(metaspace), [0, 3, 4, 5, 1]) == ["the", "", "", "日", " end", ""]
    assert TokenBytes(metaspace, byte_level=False)(3) == b"\xe6"
    assert TokenBytes(metaspace, byte_level=False, metaspace=True)(0) == b" the"


def test_a_prompt_that_ends_inside_a_character_is_no_context(tokenizer):
    ids = tokenizer.encode("日")
    found = pieces(tokenizer.detokenizer(ids[:1]), tokenizer.encode("a"))
    assert "".join(found) == "a"


def test_template_blocks_and_names():
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content | tojson }}"
        "{% endgeneration %}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
        {"bos_token": "<s>"},
    )
    assert template.render([{"role": "user", "content": "<é>"}]) == '<s>"<é>"'


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[0].__class__.__mro__ }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content + 1 }}",
    ],
)
def test_a_template_can_only_refuse(source):
    template = ChatTemplate(source, {})
    with pytest.raises(ChatTemplateError):
        template.render([{"role": "user", "content": "x"}])


@pytest.fixture
def copied(tokenizer_dir, tmp_path):
    return shutil.copytree(tokenizer_dir, tmp_path / "copy")


def test_the_template_file_wins_and_named_templates_have_a_default(copied):
    messages = [{"role": "user", "content": "x"}]
    config = json.loads((copied / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "Hello"}, {"name": "b"}]
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = ModelTokenizer(str(copied))
    assert tokenizer.encode_chat(messages) == tokenizer.encode("Hello")
    (copied / "chat_template.jinja").write_text("one")
    assert ModelTokenizer(str(copied)).encode_chat(messages) == tokenizer.encode("one")


def test_no_template(copied):
    (copied / "tokenizer_config.json").unlink()
    with pytest.raises(ChatTemplateError, match="no chat template; use /v1/completions"):
        ModelTokenizer(str(copied)).encode_chat([])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{", "not a readable tokenizer"),
        ("tokenizer_config.json", "{", "not readable JSON"),
        ("tokenizer_config.json", "[]", "must be an object"),
        ("chat_template.jinja", "{% for %}", "chat template, line 1"),
    ],
)
def test_unusable_directories_name_the_file(copied, name, text, message):
    (copied / name).write_text(text)
    with pytest.raises(TokenizerError, match=message):
        ModelTokenizer(str(copied))
