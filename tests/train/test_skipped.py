"""The list of rows that a run could not use, read back."""

import pytest

from mmrl.train.skipped import open_ledger


@pytest.mark.parametrize("content", [b'{"id": "a:0", "rea', b"\xff", b"[]", b'{"id": "a:0"}'])
def test_a_damaged_line_is_set_aside(tmp_path, capsys, content):
    path = tmp_path / "skipped_rows.jsonl"
    path.write_bytes(content + b'\n{"id": "a:1", "reason": "no image"}\n')
    for _ in range(2):
        assert open_ledger(path, 10, 0.5, ()).reasons == {"a:1": "no image"}
    said = capsys.readouterr().out
    assert said.count(f"{path}, line 1, is damaged") == 1
    assert path.with_name("skipped_rows.jsonl.damaged").read_bytes() == content + b"\n"
