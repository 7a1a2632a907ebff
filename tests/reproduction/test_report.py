"""The report: every table and figure, the paper's numbers beside ours, nothing from elsewhere."""

import json
import re

import pytest
from made_up import fill, write_preset

from prealign_ds.reproduction.figures import draw_figures
from prealign_ds.reproduction.preset import load_preset
from prealign_ds.reproduction.report import write_report


@pytest.fixture
def output(tmp_path):
    path = write_preset(tmp_path)
    fill(tmp_path / "out", tmp_path / "recipe.yaml")
    write_report("own", load_preset(str(path)), tmp_path / "out")
    return tmp_path / "out"


def test_the_report_has_all_tables_and_figures_and_needs_nothing_else(output):
    html = (output / "report.html").read_text()
    for number in range(1, 6):
        assert f"<h2>Table {number}: " in html
    for number in (3, 4, 5):
        assert f"<h2>Figure {number}: " in html
    assert html.count("src='data:image/png;base64,") == 4
    assert not re.search(r"https?://|<script|<link|url\(|src='(?!data:)", html)
    left_out = re.search(r"Table 5: real languages</h2><p class='note'>Left out: (\S+): not there", html)
    assert left_out and left_out[1].endswith("en-de.tsv")


def test_ours_and_the_papers_stand_side_by_side(output):
    html = (output / "report.html").read_text()
    assert "<td class='ours'>190.0</td><td class='paper'>21.6</td>" in html
    assert "<td class='ours'>75.0<br><span class='more'>± 6.2</span></td><td class='paper'>79.8</td>" in html
    assert "<td>Full-Tgt</td><td class='ours'>-</td><td class='paper'>-</td><td class='ours'>-</td>" in html
    assert "Only-Tgt: best after 2,000 tokens." in html
    assert "Finished runs: 3 of 4." in html and "lm_tokens: 5120" in html
    assert html.index("<td>Only-Tgt</td>") < html.index("<td>Joint Training</td>"), "in the paper's order"


def test_figures_are_pictures_and_the_same_each_time(output):
    results = json.loads((output / "results.json").read_text())
    drawn = draw_figures(results)
    assert set(drawn) == {"figure3", "figure4", "figure5", "perplexity_ratio"}
    assert all(picture.startswith(b"\x89PNG") for picture in drawn.values())
    assert draw_figures(results) == drawn
    assert {path.stem: path.read_bytes() for path in output.glob("*.png")} == drawn
    empty = results | {"figure3": {}, "figure4": {}, "figure5": {}, "perplexity_ratio": {}}
    assert draw_figures(empty) == {}


def test_nothing_has_begun(tmp_path):
    with pytest.raises(ValueError, match="no run of preset own has begun here; give the command without --report-only"):
        write_report("own", load_preset(str(write_preset(tmp_path))), tmp_path / "out")
