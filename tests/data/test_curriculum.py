"""Memory of pass rates, rests, tiers, order and mixtures: what a planned round holds."""

import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.config import from_dict
from mmrl.data.curriculum import (
    Curriculum,
    CurriculumState,
    Mixture,
    PassRates,
    Rows,
    cooling_down,
    initial_state,
    make_plan,
    state_from_json,
    state_to_json,
    tiers_of,
    update_pass_rates,
    weights_by_rows,
)

BATCH = 8
GROUP = 4
few = settings(max_examples=20, deadline=None)


def rows_of(*lengths, unusable=(), difficulty=None):
    starts = np.cumsum([0, *lengths])
    usable = np.ones(starts[-1], bool)
    usable[list(unusable)] = False
    return Rows(starts, usable, difficulty)


def next_round(rules, rows, memory, before, *, mixture=None, share=0.0, seed=0, temperature=1.0):
    sources = len(rows.starts) - 1
    return make_plan(
        rules,
        rows,
        mixture or Mixture(0.0, (1.0,) * sources, by_rows=True),
        CurriculumState(memory, before),
        seed=seed,
        share=share,
        batches=rules.batches,
        batch_size=BATCH,
        temperature=temperature,
    )


def second_round(rules, rows, memory, **options):
    """After one that nothing is known of but the memory it left."""
    before = initial_state(len(rows.usable), len(rows.starts) - 1).plan._replace(number=0)
    return next_round(rules, rows, memory, before, **options)


def first_round(rules, rows, **options):
    memory, before = initial_state(len(rows.usable), len(rows.starts) - 1)
    return next_round(rules, rows, memory, before, **options)


def played(rules, rows, rates, rounds, seed=0, **options):
    """Rounds of a run in which row n is answered rightly with the chance ``rates[n]``, and the memory."""
    draws = np.random.default_rng(seed)
    memory, made = initial_state(len(rates), len(rows.starts) - 1)
    for number in range(rounds):
        made = next_round(rules, rows, memory, made, seed=seed, share=number / rounds, **options)
        yield made, memory
        for batch in made.rows.reshape(-1, BATCH):
            accuracy = (draws.random((BATCH, GROUP)) < rates[batch][:, None]).astype(np.float32)
            valid = np.ones((BATCH, GROUP), bool)
            memory = update_pass_rates(memory, batch, accuracy, valid, number=number, newest=rules.newest)


def remembering(rates, last=0):
    count = len(rates)
    return PassRates(
        np.array(rates, np.float32),
        np.where(np.isnan(rates), 0, 1).astype(np.int32),
        np.broadcast_to(np.int32(last), (count,)).copy(),
    )


class TestPassRates:
    def test_a_first_visit_counts_alone_and_a_newer_one_by_its_weight(self):
        memory, _ = initial_state(3, 1)
        right = np.array([[1.0, 0.0]], np.float32)
        for number, expected in ((0, 0.5), (1, 0.25 * 0.5 + 0.75 * 1.0)):
            accuracy = right if number == 0 else np.ones((1, 2), np.float32)
            valid = np.ones((1, 2), bool)
            memory = update_pass_rates(memory, np.array([1]), accuracy, valid, number=number, newest=0.75)
            assert memory.rate[1] == expected
        np.testing.assert_array_equal(memory.visits, [0, 2, 0])
        np.testing.assert_array_equal(memory.last, [-1, 1, -1])
        assert np.isnan(memory.rate[[0, 2]]).all()

    def test_only_what_was_graded_counts(self):
        before = remembering([0.5, 0.5, 0.5])
        accuracy = np.array([[1.0, 0.0], [1.0, np.nan], [0.0, np.nan]], np.float32)
        valid = np.array([[True, False], [True, True], [False, True]])
        after = update_pass_rates(before, np.arange(3), accuracy, valid, number=7, newest=1.0)
        np.testing.assert_array_equal(after.rate, [1.0, 1.0, 0.5])
        np.testing.assert_array_equal(after.visits, [2, 2, 1])
        np.testing.assert_array_equal(after.last, [7, 7, 7])
        np.testing.assert_array_equal(before.rate, 0.5)

    def test_what_is_no_rate_is_brought_into_range(self):
        accuracy = np.array([[-2.0, 0.5], [3.0, 3.0]], np.float32)
        memory, _ = initial_state(2, 1)
        after = update_pass_rates(memory, np.arange(2), accuracy, np.ones((2, 2), bool), number=0, newest=1.0)
        np.testing.assert_array_equal(after.rate, [0.25, 1.0])

    @few
    @given(st.data())
    def test_the_order_of_a_batch_does_not_matter(self, data):
        rows = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=8))
        accuracy = np.array([[data.draw(st.sampled_from((0.0, 0.25, 1.0))) for _ in range(2)] for _ in rows])
        valid = np.array([[data.draw(st.booleans()) for _ in range(2)] for _ in rows])
        before = remembering([0.5] * 6, last=0)
        order = data.draw(st.permutations(range(len(rows))))
        one, other = (
            update_pass_rates(before, np.array(rows)[k], accuracy[k], valid[k], number=1, newest=0.5)
            for k in (list(range(len(rows))), list(order))
        )
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_a_row_drawn_twice_is_one_visit_with_the_responses_of_both(self):
        memory, _ = initial_state(1, 1)
        accuracy = np.array([[1.0, 1.0], [0.0, 1.0]])
        valid = np.array([[True, True], [True, False]])
        after = update_pass_rates(memory, np.array([0, 0]), accuracy, valid, number=0, newest=0.5)
        assert (after.rate[0], after.visits[0]) == (np.float32(2 / 3), 1)

    def test_as_json_and_back(self):
        rules, rows = Curriculum(batches=3, rest=2), rows_of(40, 2)
        *_, (made, memory) = played(rules, rows, np.linspace(0, 1, 42), 5)
        state = CurriculumState(memory, made)
        again = state_from_json(json.loads(json.dumps(state_to_json(state))), 42)
        for a, b in zip((*memory, *made), (*again.pass_rates, *again.plan), strict=True):
            np.testing.assert_array_equal(a, b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
        with pytest.raises(ValueError, match="remembers 42 rows of the training data, which has 43"):
            state_from_json(state_to_json(state), 43)

    def test_takes_few_bytes_a_row(self):
        count = 20_000
        rates = np.random.default_rng(0).integers(0, 9, count) / 8
        last = np.random.default_rng(1).integers(-1, 60, count)
        state = initial_state(count, 1)._replace(pass_rates=remembering(rates, last))
        assert len(json.dumps(state_to_json(state))) < 4 * count


class TestRests:
    def test_who_rests_and_for_how_long(self):
        rules = Curriculum(rest=2, low=0.1, high=0.9)
        memory = remembering([0.0, 0.1, 0.11, 0.89, 0.9, 1.0, np.nan], last=5)
        useless = [True, True, False, False, True, True, True]
        for number, resting in ((6, useless), (7, useless), (8, [False] * 7)):
            np.testing.assert_array_equal(cooling_down(rules, memory, number), resting)
        assert not cooling_down(rules, remembering([np.nan], last=-1), 0).any()

    @few
    @given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5))
    def test_resting_rows_are_not_drawn_while_others_make_a_batch(self, seed, batches, rest):
        rules, rows = Curriculum(batches=batches, rest=rest), rows_of(30, 20, unusable=(3, 33))
        rates = np.random.default_rng(seed).choice(np.array([0.0, 0.5, 1.0]), 50)
        for made, memory in played(rules, rows, rates, 6, seed=seed):
            resting = cooling_down(rules, memory, made.number)
            awake = rows.usable & ~resting
            assert len(made.rows) == batches * BATCH
            assert rows.usable[made.rows].all()
            if np.count_nonzero(awake) >= BATCH:
                assert awake[made.rows].all()
            assert (1 - made.metrics["curriculum/resting"]) * 48 > BATCH - 1e-6

    def test_every_row_is_tried_again(self):
        """Even where all rows are always answered in the same way."""
        rules, rows, rest = Curriculum(batches=1, rest=3), rows_of(40), 3
        last = np.zeros(40, int)
        for made, _ in played(rules, rows, np.repeat([0.0, 1.0], 20), 60):
            assert max(Counter(made.rows.tolist()).values()) <= 2  # where an epoch ends
            if made.number > 40 // BATCH:
                assert (made.number - last[made.rows] > min(rest, 40 // BATCH - 1)).all()
            last[made.rows] = made.number
        assert (last >= 60 - 2 * (40 // BATCH)).all()

    def test_the_longest_rested_come_back_first(self):
        rules, rows = Curriculum(batches=1, rest=100), rows_of(20)
        memory = remembering([1.0] * 20, last=np.arange(20))
        start = initial_state(20, 1).plan._replace(number=20)
        made = next_round(rules, rows, memory, start)
        assert sorted(made.rows) == list(range(BATCH))
        assert made.metrics["curriculum/resting"] == 12 / 20

    def test_a_single_row_that_a_batch_lacks_comes_back(self):
        rules, rows = Curriculum(batches=1, rest=100), rows_of(20)
        awake = BATCH - 1
        memory = remembering([0.5] * awake + [1.0] * (20 - awake), last=np.arange(20))
        made = next_round(rules, rows, memory, initial_state(20, 1).plan._replace(number=20))
        assert sorted(made.rows) == list(range(BATCH))

    def test_rows_that_rest_leave_their_part_to_other_sources_unless_weights_are_given(self):
        rules, rows = Curriculum(batches=2, rest=9), rows_of(50, 50)
        memory = remembering([1.0] * 50 + [0.5] * 50)
        made = second_round(rules, rows, memory)
        assert (made.rows >= 50).all()
        made = second_round(rules, rows, memory, mixture=Mixture(0.0, (0.5, 0.5)))
        assert np.count_nonzero(made.rows >= 50) == BATCH


class TestMixtures:
    @few
    @given(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4), st.integers(0, 2**32))
    def test_shares_hold_in_every_round_and_in_the_long_run(self, weights, seed):
        rules, rows = Curriculum(batches=2), rows_of(*[30] * len(weights))
        counts = np.zeros(len(weights))
        wanted = np.array(weights) / sum(weights)
        rounds = 15
        for made, _ in played(
            rules, rows, np.full(30 * len(weights), 0.5), rounds, seed, mixture=Mixture(0.0, tuple(weights))
        ):
            found = np.bincount(made.rows // 30, minlength=len(weights))
            assert (np.abs(found - wanted * 2 * BATCH) <= 1).all()
            for batch in made.rows.reshape(-1, BATCH):
                mixed = np.bincount(batch // 30, minlength=len(weights))
                assert (np.abs(mixed - found / 2) <= 2).all()
            counts += found
        np.testing.assert_allclose(counts / counts.sum(), wanted, atol=0.03)

    def test_a_source_without_weight_is_not_drawn(self):
        made = first_round(Curriculum(), rows_of(10, 10), mixture=Mixture(0.0, (0.0, 1.0)))
        assert (made.rows >= 10).all()

    def test_temperature(self):
        rows = np.array([8, 1000, 64_000])
        by_rows = weights_by_rows(rows, 1.0)
        np.testing.assert_allclose(by_rows / by_rows.sum(), rows / rows.sum(), rtol=1e-12)
        np.testing.assert_allclose(weights_by_rows(rows, 1e9), 1.0, rtol=1e-6)
        np.testing.assert_allclose(weights_by_rows(rows, 3.0), np.cbrt(rows / 64_000), rtol=1e-12)
        assert weights_by_rows(np.array([0, 5]), 2.0).tolist() == [0.0, 1.0]
        shares = [weights_by_rows(rows, t) / weights_by_rows(rows, t).sum() for t in (1, 2, 4, 8)]
        assert (np.diff([share[0] for share in shares]) > 0).all()

    def test_temperature_in_a_round(self):
        rows = rows_of(10, 90)
        for temperature, expected in ((1.0, 0.1), (1e9, 0.5)):
            rounds = [
                made.rows
                for made, _ in played(Curriculum(), rows, np.full(100, 0.5), 20, temperature=temperature)
            ]
            assert np.mean(np.concatenate(rounds) < 10) == pytest.approx(expected, abs=0.02)

    def test_every_epoch_holds_every_row(self):
        """Rounds of 16 of 24 rows, of which two are not used; nothing rests."""
        rows = rows_of(24, unusable=(0, 7))
        drawn = np.concatenate(
            [made.rows for made, _ in played(Curriculum(batches=2), rows, np.full(24, 0.5), 11)]
        )
        epochs = drawn.reshape(-1, 22)
        assert len(epochs) == 8
        assert Counter(drawn.tolist()) == {row: 8 for row in range(24) if row not in (0, 7)}

    @few
    @given(st.integers(0, 2**32), st.integers(0, 5))
    def test_a_round_is_a_function_of_what_it_is_told(self, seed, number):
        rules, rows = Curriculum(batches=2, tiers=(0.2, 0.6, 0.2), rest=2), rows_of(20, 30)
        rates = np.random.default_rng(seed).random(50).astype(np.float32)
        start = initial_state(50, 2).plan._replace(number=number)
        one, other = (next_round(rules, rows, remembering(rates), start, seed=seed) for _ in range(2))
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.cursors, other.cursors)
        elsewhere = next_round(rules, rows, remembering(rates), start, seed=seed + 1)
        assert not np.array_equal(elsewhere.rows, one.rows)

    def test_fewer_rows_than_a_round_repeat_evenly(self):
        made = first_round(Curriculum(batches=3), rows_of(5))
        assert sorted(Counter(made.rows.tolist()).values()) == [4, 5, 5, 5, 5]


class TestTiers:
    def test_bounds(self):
        memory = remembering([0.0, 0.24, 0.25, 0.75, 0.76, np.nan], last=[0, 0, 0, 0, 0, -1])
        rules = Curriculum(tiers=(1.0, 1.0, 1.0))
        assert tiers_of(rules, memory).tolist() == [2, 2, 1, 1, 0, 1]
        assert tiers_of(replace(rules, tiers=(1, 1, 1, 1)), memory).tolist() == [2, 2, 1, 1, 0, 3]

    @few
    @given(st.tuples(*[st.floats(0.05, 1.0)] * 3), st.integers(0, 2**32))
    def test_shares(self, shares, seed):
        rules, rows = Curriculum(batches=2, tiers=shares), rows_of(150)
        memory = remembering(np.repeat([0.9, 0.5, 0.1], 50))
        wanted = np.array(shares) / sum(shares)
        made = second_round(rules, rows, memory, seed=seed)
        counts = np.zeros(3)
        for _ in range(20):
            made = next_round(rules, rows, memory, made, seed=seed)
            found = np.bincount(made.rows // 50, minlength=3)
            assert (np.abs(found - wanted * 2 * BATCH) <= 1).all()
            counts += found
        np.testing.assert_allclose(counts / counts.sum(), wanted, atol=0.04)
        assert made.metrics["curriculum/tier_easy"] == pytest.approx(1 / 3)

    def test_follow_what_is_measured(self):
        """All rows are new at first, and so medium; later the hard ones come as often as they should."""
        rules, rows = Curriculum(batches=4, tiers=(0.1, 0.8, 0.1)), rows_of(300)
        rates = np.repeat([0.0, 0.5, 1.0], 100)
        rounds = [made.rows // 100 for made, _ in played(rules, rows, rates, 80)]
        early, late = (np.bincount(np.concatenate(part), minlength=3) for part in (rounds[:4], rounds[-40:]))
        assert (early / early.sum() > 0.2).all()
        assert (late / late.sum())[[0, 2]] == pytest.approx([0.1, 0.1], abs=0.08)

    def test_new_rows_as_a_tier(self):
        rules, rows = Curriculum(batches=2, tiers=(0, 1, 0, 1)), rows_of(200)
        memory = remembering(np.full(200, 0.5), last=np.where(np.arange(200) < 100, 0, -1))
        found = second_round(rules, rows, memory).rows < 100
        assert np.count_nonzero(found) == BATCH

    def test_no_row_twice_in_a_round_while_others_are_left(self):
        """Three hard rows cannot be half of sixteen; what they leave goes to the others by their shares."""
        rules, rows = Curriculum(batches=2, tiers=(0.25, 0.25, 0.5)), rows_of(103)
        memory = remembering(np.repeat([0.9, 0.5, 0.1], [50, 50, 3]))
        made = second_round(rules, rows, memory)
        assert len(np.unique(made.rows)) == 2 * BATCH
        counts = np.bincount(tiers_of(rules, memory)[made.rows], minlength=3)
        assert counts[2] == 3
        assert abs(counts[0] - counts[1]) <= 1

    def test_tiers_without_rows_or_shares(self):
        rules, rows = Curriculum(batches=1, tiers=(0.0, 1.0, 0.0)), rows_of(20)
        made = second_round(rules, rows, remembering([0.9] * 20))
        assert len(np.unique(made.rows)) == BATCH


class TestOrder:
    @pytest.mark.parametrize("order", ["difficulty", "pass_rate"])
    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_a_window_slides_from_easy_to_hard(self, order, share):
        """Of 100 rows, row n being the n-th by difficulty, a quarter with a share of all others."""
        rules = Curriculum(batches=2, order=order, window=0.25, random=0.25)
        difficulty = np.arange(100.0)
        rows, memory = rows_of(100, difficulty=difficulty), remembering(1 - difficulty / 100)
        low = round(share * 75)
        made = second_round(rules, rows, memory, share=share)
        for _ in range(20):
            made = next_round(rules, rows, memory, made, share=share)
            inside = (made.rows >= low - 1) & (made.rows <= low + 25)
            assert np.count_nonzero(inside) == pytest.approx(0.75 * 2 * BATCH, abs=1)

    def test_the_widest_window_is_no_order(self):
        rules, rows = Curriculum(batches=2, order="pass_rate", window=1.0), rows_of(32)
        drawn = np.concatenate([made.rows for made, _ in played(rules, rows, np.full(32, 0.5), 4)])
        assert sorted(drawn.tolist()) == sorted([*range(32)] * 2)

    def test_each_source_has_an_order_of_its_own(self):
        """Difficulties of two sources need not be on one scale."""
        difficulty = np.array([*range(40), *range(1000, 1040)], float)
        rules = Curriculum(batches=2, order="difficulty", window=0.25, random=0.0)
        made = first_round(rules, rows_of(40, 40, difficulty=difficulty), share=0.0)
        assert (made.rows % 40 < 10).all()
        assert np.count_nonzero(made.rows < 40) == BATCH

    def test_equal_rows_are_in_no_order(self):
        rules = Curriculum(batches=1, order="difficulty", window=0.2, random=0.0)
        made = first_round(rules, rows_of(100, difficulty=np.ones(100)))
        assert not (made.rows < 20).all()

    def test_resting_rows_have_no_rank(self):
        rules = Curriculum(batches=1, order="pass_rate", window=0.25, random=0.0, rest=5)
        memory = remembering(np.repeat([1.0, 0.5, 0.2], [60, 20, 20]))
        made = second_round(rules, rows_of(100), memory)
        assert ((made.rows >= 60) & (made.rows < 80)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"temperature": 0.0}, r"config\.data\.temperature=0\.0 should be a positive number"),
        ({"stages": ((0.5, "a"), (0.5, "b"))}, r"config\.data\.stages=.* should be like \(\(0\.5, 'FILE@1"),
        ({"stages": ((0.0, "a"),)}, r"config\.data\.stages"),
        ({"curriculum": {"batches": 0}}, r"config\.data\.curriculum\.batches=0 should be 1 or more"),
        ({"curriculum": {"newest": 0.0}}, r"newest=0\.0 should be in \(0, 1\]"),
        ({"curriculum": {"rest": -1}}, "rest=-1 should be 0"),
        ({"curriculum": {"low": 0.9, "high": 0.9}}, r"low=0\.9 should be in \[0, high\)"),
        ({"curriculum": {"high": 1.5}}, r"high=1\.5 should be in"),
        ({"curriculum": {"order": "hard"}}, "order='hard' should be one of '', 'difficulty', 'pass_rate'"),
        ({"curriculum": {"window": 0}}, r"window=0\.0 should be in"),
        ({"curriculum": {"random": 2}}, r"random=2\.0 should be in"),
        ({"curriculum": {"tiers": (1, 1)}}, r"tiers=\(1\.0, 1\.0\) should be shares of easy, medium"),
        ({"curriculum": {"tiers": (-1, 1, 1)}}, "tiers="),
        ({"curriculum": {"tiers": (0, 0, 0)}}, "tiers="),
        ({"curriculum": {"bounds": (0.5, 0.2)}}, "bounds=.* should be two pass rates"),
        ({"curriculum": {"order": "pass_rate", "tiers": (1, 1, 1)}}, "choose one of the two"),
        (
            {"curriculum": {"rests": 1}},
            r"config\.data\.curriculum\.rests is not a key .* did you mean 'rest'",
        ),
    ],
)
def test_impossible_rules(data, message):
    with pytest.raises(ValueError, match=message):
        from_dict({"data": data})


def test_rules_come_back_from_json():
    config = from_dict(
        {"data": {"stages": ((0.25, "a@1,b@2"),), "curriculum": {"tiers": (1, 2, 1), "rest": 3}}}
    )
    assert from_dict(json.loads(json.dumps(asdict(config)))) == config
    assert config.data.curriculum.active
    assert not from_dict({}).data.curriculum.active
