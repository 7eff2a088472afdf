"""Text and pictures of every kind, and templates that are damaged, through what makes prompts of them."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from damage import PIECES, TEXTS, among, damaged, texts
from hypothesis import strategies as st
from PIL import Image

from mmrl.data.pipeline import solution_tokens
from mmrl.models.images import image_size
from mmrl.models.processor import load_processor
from mmrl.models.prompts import chat_messages, encode, encode_turn, measure, text_ids
from mmrl.sample import Sample

MODEL = Path(__file__).parents[1] / "data" / "fixtures" / "qwen2_5_vl"
FORMS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "MPO")


@pytest.fixture(scope="module")
def processor():
    return load_processor(MODEL)


def saved(form, mode="RGB", size=(40, 30), **options):
    """An encoded picture, noisy so that damage shows."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, form, **options)
    return out.getvalue()


def picture(colour=120):
    return Image.new("RGB", (40, 30), (colour, 0, 0))


def long_texts():
    return texts() | st.lists(among([text for text in TEXTS if len(text) < 3000]) | texts(), max_size=5).map(
        "".join
    )


def test_texts_of_prompts(fuzz, processor):
    def go(given):
        problem, system, suffix, extra = given
        conversation = chat_messages(problem, system, suffix)
        images = [picture()] * max(0, (problem + suffix).count("<image>") + extra)
        sizes = [(image.height, image.width) for image in images]
        made = encode(processor, conversation, images, name="a:7")
        assert (len(made.tokens), len(made.patches)) == measure(processor, conversation, sizes, "a:7")
        assert (made.tokens == processor.image_pad).sum() == (made.image_token >= 0).sum()
        opened = (made.tokens == processor.tokenizer.convert_tokens_to_ids("<|im_start|>")).sum()
        assert opened == 3, "the text has opened a turn"

    given = st.tuples(
        long_texts(), st.none() | texts(), st.just("") | texts(), st.sampled_from((0, 0, 0, 1, -1))
    )
    fuzz(given, go, names="a:7")


def test_texts_of_turns(fuzz, processor):
    def go(given):
        text, ended, images = given
        made = encode_turn(processor, text, [picture()] * images, ended=ended, name="a:7", token_budget=4000)
        start = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
        assert (made.tokens == start).sum() == 2, "the text has opened a turn"

    fuzz(st.tuples(long_texts(), st.booleans(), st.integers(0, 2)), go, names="a:7")


def test_solutions_and_turns(fuzz, processor):
    control = {processor.tokenizer.convert_tokens_to_ids(one) for one in processor.control}

    def go(text):
        tokens = solution_tokens(Sample("a:7", "?", "1", solution=text), processor).tolist()
        assert tokens == [*text_ids(processor, text, "a:7"), processor.eos]
        assert not control & set(tokens[:-1])

    fuzz(long_texts(), go, names="a:7")


@pytest.mark.parametrize("form", FORMS)
def test_pictures(fuzz, processor, form):
    options = {"save_all": True, "append_images": [picture()]} if form in ("MPO", "GIF") else {}
    if form == "TIFF":
        options = {"compression": "tiff_deflate"}
    path = fuzz.folder / "a.png"
    path.touch()

    def go(data):
        path.write_bytes(data)
        for given in (data, str(path)):
            size = image_size(given, "a:7")
            made = encode(processor, chat_messages("<image>"), [given], name="a:7")
            assert (len(made.tokens), len(made.patches)) == measure(
                processor, chat_messages("<image>"), [size]
            )

    fuzz(damaged(saved(form, **options)), go, names="a:7", share=0.6)


def test_names_of_pictures(fuzz):
    (fuzz.folder / "empty").touch()
    (fuzz.folder / "folder").mkdir()
    (fuzz.folder / "good.png").write_bytes(saved("PNG"))
    fuzz(
        st.sampled_from(("empty", "folder", ".", "/proc/self/environ")) | texts() | among(PIECES),
        lambda name: image_size(name, "a:7"),
        names="a:7",
    )


TEMPLATE = json.loads((MODEL / "chat_template.json").read_text())["chat_template"]
TEMPLATES = st.one_of(
    texts(),
    damaged(TEMPLATE.encode()).map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.sampled_from(
        (
            "{% for i in range(10000000000) %}x{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{{ 'x' * 10000000000 }}",
            "{{ messages.__class__.__mro__[1].__subclasses__() }}",
            "{{ ''.__class__.__init__.__globals__ }}",
            "{% include '/etc/passwd' %}",
            "{{ raise_exception('no') }}",
            "{{ messages[99].content }}",
            "{{ 1 / 0 }}",
            "{{ namespace(a=1).b.c }}",
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            "{% for m in messages %}{{ m.role }}{% endfor %}",
        )
    ),
)


def test_templates(fuzz):
    """A template that is taken works for every conversation."""
    folder = fuzz.folder / "model"
    folder.mkdir()
    for file in MODEL.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt"):
            shutil.copy(file, folder / file.name)

    def go(template):
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        processor = load_processor(folder)
        measure(processor, chat_messages("<image>How many?"), [(30, 40)], "model:0")
        encode_turn(processor, "<image>And now?", [picture()], ended=True, name="model:0", token_budget=4000)

    fuzz(TEMPLATES, go, names="model")
