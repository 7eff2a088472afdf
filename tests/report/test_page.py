import json
import math
import re

import numpy as np
import pytest
from report_cases import HOSTILE

from mmrl.report import overview
from mmrl.report.report import MOST_POINTS, as_script_data, delta, duration, figure, round_values, thin
from mmrl.statistics import Interval


def test_data_cannot_end_its_element_and_is_read_back_as_it_was():
    data = {"texts": list(HOSTILE), "value": None}
    text = as_script_data(data)
    assert re.search(r"[<>&\u2028\u2029]", text) is None
    assert text.isascii()
    assert json.loads(text) == data


def test_numbers_that_json_does_not_have_are_gaps():
    assert round_values(np.array([0.123456789, math.nan, math.inf, 2.0])) == [0.12346, None, None, 2.0]
    with pytest.raises(ValueError, match="Out of range"):
        as_script_data({"value": math.nan})


def test_figures():
    assert figure(0.7143, True) == "71.4 %"
    assert figure(0.7143, False) == "0.714"
    assert figure(math.nan, True) == "-"
    assert duration(59.6) == "1 min 0 s"
    assert duration(12) == "12 s"
    assert duration(7_260) == "2 h 1 min"


def test_a_change_is_told_in_points_with_its_interval():
    change = overview.HeldoutChange("accuracy", True, 0.5, 0.6, Interval(0.1, 0.05, 0.15, 9))
    assert delta(change) == "+10.0 (+5.0 to +15.0)"
    unknown = overview.HeldoutChange("length", False, 8.0, 7.0, Interval(math.nan, math.nan, math.nan, 0))
    assert delta(unknown) == ""


def test_thinning_keeps_peaks_and_ends():
    steps = np.arange(10_000)
    values = np.sin(steps / 500)
    values[[1234, 7001]] = 40.0, -30.0
    few, drawn = thin(steps, values)
    assert MOST_POINTS * 0.9 <= len(few) <= MOST_POINTS
    assert {0, 1234, 7001, 9_999} <= set(few.tolist())
    assert (np.diff(few) > 0).all()
    np.testing.assert_array_equal(drawn, values[few])


def test_what_is_short_is_left_as_it_is():
    steps = np.arange(MOST_POINTS)
    assert thin(steps, steps / 2)[0] is steps


def test_gaps_stay_gaps():
    steps = np.arange(2_000)
    values = np.where(steps < 1_000, np.nan, 1.0)
    _, drawn = thin(steps, values)
    assert np.isnan(drawn).sum() > 100
    assert (drawn == 1).sum() > 100
