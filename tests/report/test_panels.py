import numpy as np
from report_cases import metrics_rows

from mmrl.report.panels import MOST_POINTS, OTHER, SECTIONS, panels, thinned


def titles(found):
    return [panel.title for panel in found]


def test_metrics_that_are_missing_have_no_panel():
    found = panels([[{"step": 0, "heldout/accuracy": 0.5}, {"step": 1, "loss/gradient_norm": 1.0}]])
    assert titles(found) == ["Accuracy", "Gradient norm"]
    assert [line.label for line in found[0].lines] == ["held out"]
    assert panels([[]]) == panels([]) == []


def test_every_metric_is_drawn_once():
    rows = metrics_rows(10)
    names = {key for row in rows for key in row if not key.startswith("time/")} - {"step"}
    drawn = [line.metric for panel in panels([rows]) for line in panel.lines]
    assert names <= set(drawn)
    twice = {name for name in drawn if drawn.count(name) > 1}
    assert twice == set()


def test_one_of_its_own_is_among_the_others_and_sections_are_in_order():
    found = panels([metrics_rows(5)])
    assert [panel.title for panel in found if panel.section == OTHER] == ["own/metric"]
    order = [SECTIONS.index(panel.section) for panel in found]
    assert order == sorted(order)


def test_data_sets_are_apart():
    lines = next(
        one for one in panels([metrics_rows(5)]) if one.title == "Accuracy by data set, held out"
    ).lines
    assert [line.label for line in lines] == ["a.parquet", "b.parquet"]


def test_trouble_is_drawn_only_where_there_is_some():
    fine, bad = [{"step": 1, "loss/skipped": 0.0}], [{"step": 1, "loss/skipped": 1.0}]
    assert titles(panels([fine])) == []
    assert titles(panels([fine, bad])) == ["What went wrong"]


def test_many_lines_of_several_runs_are_drawn_apart():
    rows = metrics_rows(5)
    assert "Token perception" in titles(panels([rows] * 2))
    assert "Token perception: median" in titles(panels([rows] * 3))


def test_thinning_keeps_peaks_and_ends():
    steps = np.arange(10_000)
    values = np.sin(steps / 500)
    values[[1234, 7001]] = 40.0, -30.0
    few, drawn = thinned(steps, values)
    assert MOST_POINTS * 0.9 <= len(few) <= MOST_POINTS
    assert {0, 1234, 7001, 9_999} <= set(few.tolist())
    assert (np.diff(few) > 0).all()
    np.testing.assert_array_equal(drawn, values[few])


def test_what_is_short_is_left_as_it_is():
    steps = np.arange(MOST_POINTS)
    assert thinned(steps, steps / 2)[0] is steps


def test_gaps_stay_gaps():
    steps = np.arange(2_000)
    values = np.where(steps < 1_000, np.nan, 1.0)
    _, drawn = thinned(steps, values)
    assert np.isnan(drawn).sum() > 100
    assert (drawn == 1).sum() > 100
