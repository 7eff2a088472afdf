"""Processes that are not alike: what differs is named, in one line, before anything is computed."""

import dataclasses

import pytest

from mmrl.config import Config
from mmrl.train import agreement

FACTS = agreement.start_facts(Config())


@pytest.mark.parametrize(
    ("key", "other", "said"),
    [
        ("config.seed", 1, "config.seed is 0 on process 0 and 1 on process 2"),
        ("config.model.dtype", "float16", "config.model.dtype is .* on process 0 and float16 on process 2"),
        (
            "the code of mmrl",
            "f" * 64,
            "the code of mmrl is [0-9a-f]{12} on process 0 and f{12} on process 2",
        ),
        ("python", "3.9.1", "python is .* and 3.9.1 on process 2"),
        *((name, "0.1", f"{name} is .* and 0.1 on process 2") for name in ("jax", "flax", "optax", "numpy")),
        *((name, "0.1", f"{name} is .* and 0.1 on") for name in ("orbax-checkpoint", "transformers")),
        ("devices", "3 TPU v5e", "devices is .* and 3 TPU v5e on process 2"),
        ("data.train[0]", "e" * 64, "data.train.0. is nothing on process 0 and e{12} on process 2"),
        ("jax_enable_x64", "True", "jax_enable_x64 is False on process 0"),
    ],
)
def test_what_differs_is_named_with_its_process(key, other, said):
    assert key in FACTS or key.startswith("data.")
    with pytest.raises(ValueError, match=f"not alike: {said}") as told:
        agreement.agree(FACTS, lambda facts: [facts, facts, {**facts, key: other}])
    assert "\n" not in str(told.value)


def test_the_alike_agree_and_many_differences_are_a_line():
    agreement.agree(FACTS, lambda facts: [facts] * 4)
    many = {f"key{k}": 1 for k in range(9)}
    with pytest.raises(ValueError, match=r"key4 is 1 on process 0 and 2 on process 1, 2; and 4 more\."):
        agreement.agree(many, lambda facts: [facts, *[dict.fromkeys(facts, 2)] * 2])


def test_files_of_the_user_count(tmp_path):
    file = tmp_path / "own.py"
    config = dataclasses.replace(Config(), algorithm={"name": f"{file}:recipe"})
    prints = []
    for text in ("a = 1", "a = 2"):
        file.write_text(text)
        prints.append(agreement.start_facts(config)[f"the file {file}"])
    assert prints[0] != prints[1]


def test_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "SEEN_S", 0.0)
    (tmp_path / "lock").write_text("1 on here")
    agreement.check_folder(tmp_path, lambda value: [value, value])
    with pytest.raises(ValueError, match=r"is another folder on process 1 than on process 0; .* share$"):
        agreement.check_folder(tmp_path, lambda value: [value, False] if value is True else [value, ""])


def test_files_of_a_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a" * (5 << 20))
    before = agreement.model_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"a" * ((5 << 20) - 1) + b"b")
    assert agreement.model_fingerprint(tmp_path) != before
