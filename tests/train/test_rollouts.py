"""Dynamic sampling: which groups make up a batch."""

from dataclasses import replace

import numpy as np
import pytest

from mmrl.rollout.sampling import Sampling
from mmrl.sample import Sample
from mmrl.train.rollouts import Experience, collect, describe, prompt_keys
from mmrl.types import Images, Prompts, Responses

ROWS = 3


def experience(number: int, tokens: int = 4) -> Experience:
    """Three groups of two; every array says which batch and row it belongs to. Row 2 has no image."""
    tag = number * 10 + np.arange(ROWS)
    image = np.broadcast_to(np.array([0, 0, -1])[:, None], (ROWS, 4))
    return Experience(
        samples=[Sample(id=f"{number}:{row}", problem="", answer="") for row in range(ROWS)],
        prompts=Prompts(
            tokens=np.broadcast_to(tag[:, None], (ROWS, tokens)),
            mask=np.ones((ROWS, tokens), bool),
            position=np.zeros((ROWS, tokens, 3), np.int32),
            next_position=tag,
            image_token=np.full((ROWS, tokens), -1, np.int32),
            images=Images(
                patches=np.zeros((ROWS, 4, 12), np.uint8),
                position=np.zeros((ROWS, 4, 2), np.int32),
                image=image,
            ),
        ),
        responses=Responses(
            tokens=np.broadcast_to(tag[:, None, None], (ROWS, 2, 5)),
            mask=np.ones((ROWS, 2, 5), bool),
            logprob=np.zeros((ROWS, 2, 5), np.float32),
            stop=np.ones((ROWS, 2), np.int32),
            valid=np.ones((ROWS, 2), bool),
        ),
        texts=[[f"{number}:{row}"] * 2 for row in range(ROWS)],
        rewards=np.broadcast_to(tag[:, None], (ROWS, 2)).astype(np.float32),
        components={"accuracy": np.zeros((ROWS, 2), np.float32)},
    )


def kept_rows(*rows):
    return lambda made: np.isin([int(sample.id[-1]) for sample in made.samples], rows)


def test_one_batch_stays_as_it_is():
    chosen, metrics = collect(experience, kept_rows(0, 2), prompts=ROWS, max_batches=1)
    assert [sample.id for sample in chosen.samples] == ["0:0", "0:1", "0:2"]
    np.testing.assert_array_equal(chosen.prompts.next_position, [0, 1, 2])
    assert metrics == {"rollout/batches": 1.0, "rollout/kept_groups": 2 / 3}


def test_draws_until_full():
    chosen, metrics = collect(experience, kept_rows(1), prompts=ROWS, max_batches=10)
    assert [sample.id for sample in chosen.samples] == ["0:1", "1:1", "2:1"]
    np.testing.assert_array_equal(chosen.rewards[:, 0], [1, 11, 21])
    np.testing.assert_array_equal(chosen.responses.tokens[:, 0, 0], [1, 11, 21])
    assert [row[0] for row in chosen.texts] == ["0:1", "1:1", "2:1"]
    assert metrics["rollout/batches"] == 3


def test_stops_at_the_bound_and_fills_up():
    chosen, metrics = collect(experience, kept_rows(), prompts=ROWS, max_batches=2)
    assert metrics == {"rollout/batches": 2.0, "rollout/kept_groups": 0.0}
    assert [sample.id for sample in chosen.samples] == ["0:0", "0:1", "0:2"]


def test_buckets_of_different_batches_are_joined():
    chosen, _ = collect(lambda n: experience(n, tokens=4 + 2 * n), kept_rows(0), prompts=2, max_batches=2)
    assert chosen.prompts.tokens.shape == (2, 6)
    np.testing.assert_array_equal(chosen.prompts.mask.sum(axis=1), [4, 6])
    assert (np.asarray(chosen.prompts.image_token) == -1).all()


def test_metrics_leave_out_invalid_rows():
    made = experience(0)
    valid = np.array([[True, False], [True, True], [True, True]])
    rewards = np.array([[1.0, 9.0], [0.0, 1.0], [0.5, 0.5]], np.float32)
    made = replace(made, rewards=rewards, responses=replace(made.responses, valid=valid))
    values = describe(made)
    assert values["reward/mean"] == pytest.approx(3 / 5)
    assert values["reward/invalid"] == pytest.approx(1 / 6)
    assert values["reward/equal_groups"] == pytest.approx(2 / 3)
    assert values["padding/patches"] == pytest.approx(1 / 3)


def test_keys_depend_on_their_address_alone():
    import jax

    data = jax.random.key_data(prompt_keys(0, 1, 2, 4))
    np.testing.assert_array_equal(jax.random.key_data(prompt_keys(0, 1, 2, 2, start=2)), data[2:])
    others = [prompt_keys(1, 1, 2, 4), prompt_keys(0, 2, 2, 4), prompt_keys(0, 1, 3, 4)]
    assert all((jax.random.key_data(other) != data).any(axis=-1).all() for other in others)


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"temperature": -1.0}, {"max_tokens": 0}, {"min_p": 1.0}])
def test_sampling_refuses(wrong):
    with pytest.raises(ValueError, match=f"rollout.{next(iter(wrong))}"):
        Sampling(**{"max_tokens": 4, **wrong})
