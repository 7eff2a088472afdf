"""Dynamic sampling: which groups make up a batch; and the figures of a batch."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from mmrl.data.pipeline import Skipped
from mmrl.mesh import make_mesh
from mmrl.sample import Sample
from mmrl.train.experience import Experience, collect, describe, on_devices, overview
from mmrl.types import Images, Prompts, Responses

ROWS = 3


def experience(number: int, tokens: int = 4) -> Experience:
    """Three groups of two; every array says which batch and row it belongs to. Row 2 has no image."""
    tag = number * 10 + np.arange(ROWS)
    image = np.broadcast_to(np.array([0, 0, -1])[:, None], (ROWS, 4))
    return Experience(
        rows=np.arange(ROWS),
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
            log_kept=np.zeros((ROWS, 2, 5), np.float32),
            stop=np.ones((ROWS, 2), np.int32),
            valid=np.ones((ROWS, 2), bool),
        ),
        texts=[[f"{number}:{row}"] * 2 for row in range(ROWS)],
        rewards=np.broadcast_to(tag[:, None], (ROWS, 2)).astype(np.float32),
        components={"accuracy": np.zeros((ROWS, 2), np.float32)},
    )


def drawn(number: int, tokens: int = 4):
    made = experience(number, tokens)
    return made, overview(made)


def kept_rows(*rows):
    return lambda whole: np.isin([int(name[-1]) for name in whole.ids], rows)


def placed(seen, chosen):
    return on_devices(seen, chosen, make_mesh({"fsdp": 1}, jax.devices()[:1]))


def test_one_batch_stays_as_it_is():
    seen, chosen, whole, metrics = collect(drawn, kept_rows(0, 2), prompts=ROWS, max_batches=1)
    assert whole.ids == ["0:0", "0:1", "0:2"]
    prompts, _ = placed(seen, chosen)
    np.testing.assert_array_equal(prompts.next_position, [0, 1, 2])
    assert metrics == {"rollout/batches": 1.0, "rollout/kept_groups": 2 / 3}


def test_draws_until_full():
    seen, chosen, whole, metrics = collect(drawn, kept_rows(1), prompts=ROWS, max_batches=10)
    assert whole.ids == ["0:1", "1:1", "2:1"]
    np.testing.assert_array_equal(whole.rewards[:, 0], [1, 11, 21])
    prompts, responses = placed(seen, chosen)
    np.testing.assert_array_equal(responses.tokens[:, 0, 0], [1, 11, 21])
    np.testing.assert_array_equal(prompts.next_position, [1, 11, 21])
    assert metrics["rollout/batches"] == 3


def test_stops_at_the_bound_and_fills_up():
    _, _, whole, metrics = collect(drawn, kept_rows(), prompts=ROWS, max_batches=2)
    assert metrics == {"rollout/batches": 2.0, "rollout/kept_groups": 0.0}
    assert whole.ids == ["0:0", "0:1", "0:2"]


def test_buckets_of_different_batches_are_joined():
    seen, chosen, _, _ = collect(lambda n: drawn(n, tokens=4 + 2 * n), kept_rows(0), prompts=2, max_batches=2)
    prompts, _ = placed(seen, chosen)
    assert prompts.tokens.shape == (2, 6)
    np.testing.assert_array_equal(prompts.mask.sum(axis=1), [4, 6])
    assert (np.asarray(prompts.image_token) == -1).all()


def test_metrics_leave_out_invalid_rows():
    made = experience(0)
    valid = np.array([[True, False], [True, True], [True, True]])
    rewards = np.array([[1.0, 9.0], [0.0, 1.0], [0.5, 0.5]], np.float32)
    made = replace(made, rewards=rewards, responses=replace(made.responses, valid=valid))
    values = describe(overview(made))
    assert values["reward/mean"] == pytest.approx(3 / 5)
    assert values["reward/invalid"] == pytest.approx(1 / 6)
    assert values["reward/equal_groups"] == pytest.approx(2 / 3)
    assert values["padding/patches"] == pytest.approx(1 / 3)
    assert not any(name.startswith("source/") for name in values)


def test_empty_slots_are_no_responses():
    made = experience(0)
    mask = made.responses.mask.copy()
    mask[1] = False
    valid = np.array([[True, True], [False, False], [True, True]])
    made = replace(
        made,
        responses=replace(made.responses, mask=mask, valid=valid, stop=np.zeros((ROWS, 2), np.int32)),
        skipped=(Skipped("0:1", "damaged"),),
    )
    values = describe(overview(made))
    assert values["data/skipped"] == 1
    assert values["reward/invalid"] == 0
    assert values["response/length"] == 5
    assert values["response/truncated"] == 1


def test_figures_of_each_source():
    made = experience(0)
    samples = [replace(s, source=name) for s, name in zip(made.samples, ("a", "b", "a"), strict=True)]
    made = replace(
        made, samples=samples, components={"accuracy": np.array([[1, 0], [1, 1], [0, 0.0]], np.float32)}
    )
    values = describe(overview(made))
    assert values["source/a/share"] == pytest.approx(2 / 3)
    assert values["source/a/accuracy"] == pytest.approx(1 / 4)
    assert values["source/b/accuracy"] == 1
    assert values["source/a/reward"] == pytest.approx(1.0)
    assert values["source/b/length"] == 5


def test_digest_tells_order_and_tokens():
    made = experience(0)

    def digest(one):
        return describe(overview(one))["rollout/digest"]

    tokens = made.responses.tokens.copy()
    tokens[1, 1, 2] += 1
    swapped = replace(made, samples=[made.samples[k] for k in (1, 0, 2)])
    others = [replace(made, responses=replace(made.responses, tokens=tokens)), swapped]
    assert digest(made) == digest(experience(0))
    assert len({digest(one) for one in (made, *others)}) == 3
