from report_cases import metrics_rows

from mmrl.curves import OTHER, SECTIONS, draw_curves, panels
from mmrl.train.metrics import Metrics


def titles(found):
    return [panel.title for panel in found]


def test_metrics_that_are_missing_have_no_panel():
    found = panels([[{"step": 0, "heldout/accuracy": 0.5}, {"step": 1, "loss/gradient_norm": 1.0}]])
    assert titles(found) == ["Accuracy", "Gradient norm"]
    assert [*found[0].lines.values()] == ["held out"]
    assert panels([[]]) == panels([]) == []


def test_every_metric_is_drawn_once():
    rows = metrics_rows(10)
    names = {key for row in rows for key in row if not key.startswith("time/")} - {"step"}
    drawn = [metric for panel in panels([rows]) for metric in panel.lines]
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
    assert [*lines.values()] == ["a.parquet", "b.parquet"]


def test_trouble_is_drawn_only_where_there_is_some():
    fine, bad = [{"step": 1, "loss/skipped": 0.0}], [{"step": 1, "loss/skipped": 1.0}]
    assert titles(panels([fine])) == []
    assert titles(panels([fine, bad])) == ["What went wrong"]


def test_many_lines_of_several_runs_are_drawn_apart():
    rows = metrics_rows(5)
    assert "Token perception" in titles(panels([rows] * 2))
    assert "Token perception: median" in titles(panels([rows] * 3))


def test_curves_of_metrics_with_gaps(tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in range(4):
        metrics.write(step, {"reward/accuracy": 0.5, **({"heldout/accuracy": 0.4} if step % 2 else {})})
    metrics.close()
    draw_curves(tmp_path, tmp_path / "curves.png", "title")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_picture_has_the_panels_of_several_data_sets():
    before = {"step": 0, "heldout/accuracy": 0.3}
    step = {"step": 1, "reward/accuracy": 0.5, "policy/sampled_entropy": 1.0}
    apart = {
        "heldout/a/accuracy": 0.3,
        "heldout/a/length": 7.0,
        "heldout/b/accuracy": 0.2,
        "heldout/b/iou": 0.4,
        "heldout/b/format": 1.0,
    }
    drawn = {"source/a/share": 0.5, "source/a/accuracy": 0.5, "source/b/accuracy": 0.1}

    def picture(rows):
        return [(panel.title, panel.lines) for panel in panels([rows]) if panel.in_picture]

    whole = ("Accuracy", {"heldout/accuracy": "held out", "reward/accuracy": "training batch"})
    entropy = ("Entropy", {"policy/sampled_entropy": "image as it is"})
    assert picture([before, step]) == [whole, entropy]
    assert picture([before | apart, step | drawn]) == [
        whole,
        ("Accuracy by data set, held out", {"heldout/a/accuracy": "a", "heldout/b/accuracy": "b"}),
        ("Accuracy by data set, training batch", {"source/a/accuracy": "a", "source/b/accuracy": "b"}),
        ("Format by data set, held out", {"heldout/b/format": "b"}),
        ("Other components by data set, held out", {"heldout/b/iou": "b: iou"}),
        entropy,
    ]
