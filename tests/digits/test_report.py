"""The quickstart's report: exact shares, curves from a log, images."""

import json

from data.tsv import TsvFile
from digits import report
from digits.__main__ import main as build_demo

LOG = """
... INFO: epoch 001:    100 / 188 loss=2.318, nll_loss=2.318, ups=6.34, num_updates=100, lr=0.0004
... INFO: epoch 001 | valid on 'valid' subset | loss 1.0 | cider 4.25 | num_updates 188
... INFO: epoch 002:    12 / 188 loss=0.718, nll_loss=0.718, num_updates=200, lr=0.0009
"""


def test_report(tmp_path, capsys):
    assert build_demo([str(tmp_path / "data"), "--train=1", "--val=1", "--test=4", "--size=48"]) == 0
    rows = TsvFile(tmp_path / "data/caption_data/caption_test.tsv", "1,2")
    records = [{"image_id": rows[i][0], "caption": rows[i][1] if i else "a wrong caption"} for i in range(4)]
    (tmp_path / "caption").mkdir()
    (tmp_path / "caption/test_predict.json").write_text(json.dumps(records))
    for name, right in (("blank", 0), ("two_digits", 1), ("three_digits", 2)):
        rows = TsvFile(tmp_path / f"data/caption_data/caption_{name}.tsv", "1,2")
        records = [{"image_id": rows[i][0], "caption": rows[i][1] if i < right else ""} for i in range(4)]
        (tmp_path / f"caption/{name}_predict.json").write_text(json.dumps(records))
    (tmp_path / "caption/test_scores.json").write_text(json.dumps({"CIDEr": 7.5}))
    (tmp_path / "stage1_logs").mkdir()
    (tmp_path / "stage1_logs/run.log").write_text(LOG)
    assert report.main([str(tmp_path)]) == 0
    text = (tmp_path / "scores.md").read_text()
    assert "| exact captions | 0.7500 |" in text and "| exact, digits removed | 0.0000 |" in text and "7.5" in text
    assert "| exact, 2 digits | 0.2500 |" in text and "| exact, 3 digits | 0.5000 |" in text
    printed = capsys.readouterr().out
    for name in ("training_curve.png", "contact_sheet.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG") and str(tmp_path / name) in printed
    curves = report.read_curves(tmp_path / "stage1_logs/run.log")
    assert curves == {"loss": [(100, 2.318), (200, 0.718)], "cider": [(188, 4.25)]}


def test_missing_predictions_are_one_sentence(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "test_predict.json" in capsys.readouterr().err
