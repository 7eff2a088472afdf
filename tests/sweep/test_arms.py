"""Combinators make the arms that they say, and labels tell them apart."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.sweep import arm, chain, labels, param, product, zipped
from mmrl.sweep.definition import config_words

KEYS = ("algorithm.perception_kl", "train.steps", "corruption.method", "optimizer.b1", "algorithm.name")
values = st.one_of(st.integers(0, 99), st.floats(0, 1), st.sampled_from(("k3", "exact", "a/b", "a:b", "..")))
parts = st.lists(values, min_size=1, max_size=3, unique_by=str)
grids = st.dictionaries(st.sampled_from(KEYS), parts, min_size=1, max_size=3)


@settings(max_examples=30, deadline=None)
@given(grids)
def test_a_product_has_every_combination_once_the_last_varying_fastest(grid):
    made = product(*(param(key, *options) for key, options in grid.items()))
    expected = [{}]
    for key, options in grid.items():
        expected = [{**changes, key: value} for changes in expected for value in options]
    assert [one.changes for one in made] == expected


@settings(max_examples=30, deadline=None)
@given(grids)
def test_labels_are_names_of_folders_and_tell_arms_apart_or_say_that_they_do_not(grid):
    made = product(*(param(key, *options) for key, options in grid.items()))
    texts = [
        [re.sub("[^A-Za-z0-9._=,+-]", "-", str(value)) for value in options] for options in grid.values()
    ]
    if any(len(set(options)) < len(options) for options in texts):
        with pytest.raises(ValueError, match="give them labels"):
            labels(made)
        return
    found = labels(made)
    assert len({label.casefold() for label in found}) == len(made)
    assert all(re.fullmatch(r"\w[\w.=,+-]*", label, re.ASCII) and len(label) <= 120 for label in found)


@settings(max_examples=30, deadline=None)
@given(st.lists(parts, min_size=1, max_size=3), st.integers(1, 3))
def test_chain_and_zipped(lists, length):
    made = [param(key, *options) for key, options in zip(KEYS, lists, strict=False)]
    assert chain(*made) == tuple(one for part in made for one in part)
    even = [part[:1] * length for part in made]
    together = zipped(*even)
    assert len(together) == length
    assert all(one.changes == {k: v for part in even for k, v in part[0].changes.items()} for one in together)


def test_labels_are_short():
    grid = product(param("algorithm.perception_kl", 0.01, 0.02), param("corruption.probability", 0.5))
    assert labels(grid) == ("perception_kl=0.01", "perception_kl=0.02")  # what is the same is left out
    twins = chain(arm({"algorithm.perception_kl": 1, "a.limit": 2}), arm({"b.limit": 3}))
    assert labels(twins) == ("perception_kl=1,a.limit=2", "b.limit=3")  # an end that two keys share is not
    named = product(arm({"algorithm.name": "vppo"}, "vppo"), param("train.steps", 5, 6))
    assert labels(named) == ("vppo,steps=5", "vppo,steps=6")
    assert labels(param("data.prompt_buckets", (16, 32))) == ("prompt_buckets=16-32",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: product(param("a", 1), param("a", 2)), "'a' is changed by two parts"),
        (lambda: zipped(param("a", 1), param("b", 1, 2)), "equally long"),
        (lambda: param("a"), "needs values"),
        (lambda: labels(param("a", "x/y", "x:y")), "several arms would be called 'a=x-y'"),
        (lambda: labels(arm({"a": 1}, "../up")), "cannot be the name of a folder"),
        (lambda: labels(arm({"a": 1}, "x" * 121)), "cannot be the name of a folder"),
        (lambda: labels(chain(arm({}), param("a", 1))), "changes nothing needs a label"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_words_are_those_of_the_command_line():
    changes = {"algorithm.name": "vppo", "train.steps": 5, "data.prompt_buckets": (8, 16), "seed": True}
    assert config_words(changes) == (
        "--config.algorithm.name=vppo",
        "--config.train.steps=5",
        "--config.data.prompt_buckets=(8, 16)",
        "--config.seed=True",
    )
