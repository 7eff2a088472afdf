# ruff: noqa: RUF001  (letters of other alphabets are what this is about)
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.style import SCRIPTS, language
from mmrl.sample import Sample

SENTENCES = {
    "en": "The third angle is seventy degrees.",
    "fr": "Le troisième angle mesure soixante-dix degrés.",
    "vi": "Góc thứ ba là bảy mươi độ.",
    "ru": "Третий угол равен семидесяти градусам.",
    "el": "Η τρίτη γωνία είναι εβδομήντα μοίρες.",
    "zh": "第三个角是七十度。",
    "ja": "三つ目のカクは七十ドです。",
    "ko": "세 번째 각은 칠십 도입니다.",
    "ar": "الزاوية الثالثة سبعون درجة.",
    "he": "הזווית השלישית היא שבעים מעלות.",
    "hi": "तीसरा कोण सत्तर डिग्री है।",
    "bn": "তৃতীয় কোণ সত্তর ডিগ্রি।",
    "ta": "மூன்றாவது கோணம் எழுபது டிகிரி.",
    "te": "మూడవ కోణం డెబ్బై డిగ్రీలు.",
    "th": "มุมที่สามคือเจ็ดสิบองศา",
    "ka": "მესამე კუთხე სამოცდაათი გრადუსია.",
}


def share(text, name):
    return language(Sample("test:0", "", "7", facts={"language": name}), text)["language"]


@pytest.mark.parametrize("name", sorted(SENTENCES))
def test_a_sentence_is_of_its_language_and_of_no_other_script(name):
    dressed = f"<think>{SENTENCES[name]}</think>\n\\boxed{{70}}"
    assert share(dressed, name) == 1.0
    for other, scripts in SCRIPTS.items():
        if not scripts & SCRIPTS[name]:
            assert share(dressed, other) == 0.0


def test_formulas_are_in_every_language():
    formula = r"$\frac{x}{AB} = \sqrt{2} \text{cm}$ and α"
    assert share("在三角形中" + formula.replace(" and α", ""), "zh") == 1.0
    assert share("The angle α is " + r"$\theta$", "en") == 1.0
    assert share("这里 x 是未知数, the rest is not", "zh") == pytest.approx(6 / 16)  # "x" and "is" left out
    assert share("```python\nprint(area)\n```结果", "zh") == 1.0


def test_full_width_letters_are_letters():
    assert share("ａｎｇｌｅ", "en") == 1.0
    assert share("ａｎｇｌｅ", "ru") == 0.0
    assert share("ｶﾅｶﾅ", "ja") == 1.0


@pytest.mark.parametrize("text", ["", "<think></think>\\boxed{70}", "3 + 4 = 7", "𝒜𝓑ℂ", "x", "\ud800\x00"])
def test_without_letters_there_is_no_language(text):
    assert share(text, "zh") == 0.0


def test_the_language_must_be_known():
    with pytest.raises(ValueError, match=r"test:0.*facts\['language'\] is 'klingon'.*zh"):
        share("", "klingon")
    with pytest.raises(ValueError, match=r"needs facts\['language'\]"):
        language(Sample("test:0", "", "7"), "")


@given(st.text(st.characters(codec=None)), st.sampled_from(sorted(SCRIPTS)))
@settings(max_examples=40, deadline=None)
def test_any_text_has_a_share(text, name):
    assert 0.0 <= share(text, name) <= 1.0


@pytest.mark.parametrize(
    "text", ["x" * 1_000_000, "<a" * 500_000, "```" * 333_333, "\\a" * 500_000, "α x " * 250_000]
)
def test_a_million_characters_take_seconds_at_most(text):
    start = time.process_time()
    share(text, "zh")
    assert time.process_time() - start < 2.0
