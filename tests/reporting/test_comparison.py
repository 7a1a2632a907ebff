"""Runs side by side: the page on real small runs has every section, needs nothing else, and says what differs."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from building import build_data, read_lines, write_recipe
from launching import launch_each, run_alone
from matplotlib.image import imread

from prealign_ds.reporting.charts import smooth, thin
from prealign_ds.reporting.comparison import comparison_html
from prealign_ds.reporting.runs import RunFolder, differing_settings, named_runs
from prealign_ds.reporting.words import WordPairs, aligned_and_random, project, word_panels

SECTIONS = [
    "Final numbers", "Settings that differ", "Losses", "Perplexity of held-out text", "Alignment by layer",
    "Alignment during training", "Alignment by layer during training", "Code-switching", "Speed",
    "Words before and after stage 1",
]  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """What the tests look at; every element must be closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.charts, self.rows, self.links, self.texts = [], [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [value for key, value in attributes if key in ("src", "href", "xlink:href", "data", "action")]
        if tag == "svg" and found.get("role") == "img":
            self.charts.append(found["aria-label"])
        if tag == "img":
            self.charts.append(found["alt"])
        if tag == "tr":
            self.rows.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if "tr" in self.open:
            self.rows[-1].append(f"*{data}*" if self.open[-1] == "b" else data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """runs/prealign and runs/joint, as trained; half, no stage 2 yet; begun, a config.yaml alone; other/joint."""
    folder = tmp_path_factory.mktemp("report")
    build_data(folder)
    recipe = write_recipe(folder)
    joint = ["stages=[pretrain]", "codeswitch.mode=off", "evaluation.similarity=null", "evaluation.leakage=null"]
    runs = {"prealign": ["evaluation.leakage=null"], "joint": joint}
    words = (1, "launchers/pretrain.py", recipe, "checkpoint.every_tokens=0")
    launch_each(*((*words, f"run_dir={folder}/runs/{name}", *overrides) for name, overrides in runs.items()))
    runs = folder / "runs"
    shutil.copytree(runs / "joint", folder / "other" / "joint")
    shutil.copytree(runs / "prealign", runs / "half", ignore=shutil.ignore_patterns("model", "checkpoints"))
    for name in ("metrics.jsonl", "eval.jsonl"):
        lines = [json.dumps(record) for record in read_lines(runs / "half" / name) if record["stage"] == "align"]
        (runs / "half" / name).write_text("\n".join(lines) + '\n{"stage": "pretra')
    (runs / "begun").mkdir()
    shutil.copy(runs / "joint" / "config.yaml", runs / "begun")
    return folder


@pytest.fixture(scope="module")
def html(folder):
    return comparison_html(named_runs([folder / "runs" / name for name in ("joint", "prealign", "half", "begun")]), 20)


def test_the_page_has_all_sections_and_needs_nothing_else(html):
    page = Page(html)
    assert page.headings == SECTIONS
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"https?://(?!www\.w3\.org/)|<script|<link|@import|url\((?!#)", html)
    ids = re.findall(r'\bid=["\']([^"\']*)', html)
    assert len(set(ids)) == len(ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(ids)


def test_charts_say_what_they_show(html):
    charts = Page(html).charts
    starts = [
        "LM loss: nats a token over LM tokens; joint ends at",
        "en: perplexity over LM tokens",
        "clone: cosine over",
    ]
    starts += ["Alignment loss of stage 1: sum", "all words: switched words, %", "Throughput: tokens/s", "Data wait: %"]
    starts += ["prealign: alignment of each layer over LM tokens; at the end emb ", "prealign, before stage 1: cosine"]
    for start in starts:
        assert any(chart.startswith(start) for chart in charts), start
    assert not any(chart.startswith("MFU") for chart in charts), "a CPU has no MFU, and no empty chart of it"
    assert sum("after stage 1" in chart for chart in charts) == 2


def test_the_final_numbers_stand_side_by_side(folder, html):
    page = Page(html)
    heads = ["run", "perplexity, en", "perplexity, clone", "aligned cosine", "LM tokens", "in stage 1", "hours"]
    assert page.rows[0][:7] == heads
    rows = {row[0]: row[1:] for row in page.rows[1:5]}
    assert list(rows) == ["joint", "prealign", "half (unfinished)", "begun (unfinished)"]
    last = {name: read_lines(folder / "runs" / name / "eval.jsonl")[-1]["perplexity"] for name in ("joint", "prealign")}
    for place, language in enumerate(("en", "clone")):
        for name, found in last.items():
            assert float(rows[name][place].strip("*").replace(",", "")) == pytest.approx(found[language], rel=0.01)
        lowest = min(last, key=lambda name: last[name][language])
        assert rows[lowest][place].startswith("*") and sum(row[place].startswith("*") for row in rows.values()) == 1
    assert rows["prealign"][3:5] == ["5,120", "2,560"] and rows["joint"][3:5] == ["5,120", "0"]
    assert rows["half (unfinished)"][3:5] == ["2,560", "2,560"]
    assert rows["begun (unfinished)"] == ["-", "-", "-", "0", "0", "0", "-", "-"]


def test_only_the_settings_that_differ_are_shown(folder, html):
    rows = Page(html).rows
    start = rows.index(["setting", "joint", "prealign", "half", "begun"])
    assert rows[start + 1 :] == [
        ["stages.0", "pretrain", "align", "align", "pretrain"],
        ["stages.1", "-", "pretrain", "pretrain", "-"],
        ["codeswitch.mode", "off", "input_only", "input_only", "off"],
        ["evaluation.similarity.batch_size", "-", "256", "256", "-"],
        ["evaluation.similarity.neighbours", "-", "10", "10", "-"],
        ["evaluation.similarity.words", "-", "20", "20", "-"],
    ]
    same = named_runs([folder / "runs" / "joint", folder / "other" / "joint"])
    assert list(same) == ["runs/joint", "other/joint"]
    assert differing_settings(same) == {}
    assert "None: the runs have the same settings" in comparison_html(same)


def test_runs_without_evaluations_or_anything_else(folder):
    html = comparison_html(named_runs([folder / "runs" / "begun"]))
    page = Page(html)
    assert page.headings == SECTIONS and not page.charts
    assert html.count("No run has logged it.") == 7 and "begun: no stage 1." in html


def test_names_are_text(folder, tmp_path):
    strange = tmp_path / "<b>a&'$x$"
    shutil.copytree(folder / "runs" / "half", strange)
    html = comparison_html(named_runs([strange, folder / "runs" / "joint"]), 10)
    assert "<b>a&" not in html and "&lt;b&gt;a&amp;&#x27;$x$" in html
    assert "<b>a&'$x$ (unfinished)" in "".join(Page(html).texts)


def test_words_whose_data_is_gone(folder, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(folder / "runs" / "prealign", gone)
    config = (gone / "config.yaml").read_text().replace(str(folder / "table.parquet"), "nowhere.parquet")
    (gone / "config.yaml").write_text(config)
    assert "gone: its words cannot be read again (table.path: nowhere.parquet: no such file" in comparison_html(
        named_runs([gone])
    )


def test_words_in_the_plane():
    sources = np.eye(4)[[0, 0, 1, 2]]
    words = ["one", "one", "two", "three"]
    first, second, share = project((sources, sources))
    assert np.array_equal(first, second) and np.array_equal(first[0], first[1]) and 0.5 < share <= 1
    assert aligned_and_random(words, (sources, sources)) == (1.0, 0.0)
    turned = np.eye(4)[[3, 3, 3, 3]]
    assert aligned_and_random(words, (sources, turned)) == (0.0, 0.0)
    one, other, share = project((sources[:1], turned[:1]))
    assert np.isfinite(one).all() and share == pytest.approx(1)
    translations, languages = ["eins", "один", "zwei", "drei"], ["de", "ru", "de", "de"]
    pairs = WordPairs(words, translations, languages, (sources, turned), (sources, sources))
    before, after = word_panels("run", pairs, ["de", "ru"])
    assert before.svg.count(">one<") == 1 and ">eins<" in before.svg + after.svg
    assert before.title == "run, before stage 1: cosine of pairs 0.00, of others 0.00"


def test_what_is_no_run(folder):
    done = run_alone("tools/report.py", folder / "tokens", "--output", folder / "page.html")
    assert done.returncode == 2 and "no config.yaml here, so it is not the folder of a run" in done.stderr
    assert not (folder / "page.html").exists()
    with pytest.raises(ValueError, match="joint: given twice; give each run once"):
        named_runs([folder / "runs" / "joint", folder / "runs" / ".." / "runs" / "joint"])


def test_the_command(folder):
    runs = [folder / "runs" / name for name in ("joint", "half")]
    done = run_alone("tools/report.py", *runs, "--output", folder / "new" / "page.html", "--words", 0)
    assert done.returncode == 0, done.stderr
    assert Page((folder / "new" / "page.html").read_text()).headings == SECTIONS[:-1]


def test_reading_a_run(folder):
    run = RunFolder(folder / "runs" / "prealign")
    assert run.is_finished and run.tokens == run.settings.lm_tokens and run.align_tokens == 2560
    assert run.seconds == pytest.approx(sum(record["step_ms"] for record in run.metrics) / 1000)
    assert len(run.cosines("cosine", "clone")) == len(run.cosines("p_at_1", None)) == 4
    assert len(run.cosines("random", None)[0][1]) == 4


def test_curves_are_smoothed_and_thinned():
    points = [(float(x), float(x % 2)) for x in range(100)]
    assert smooth([]) == [] and smooth(points[:5]) == points[:5]
    means = smooth(points)
    assert [x for x, _ in means] == [x for x, _ in points]
    assert means[0] == points[0] and all(abs(y - 0.5) < 0.1 for _, y in means[4:-4])
    assert thin(points, 10) == [*points[:-1:10], points[-1]] and thin(points) == points and thin([]) == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_browsers_show_it(html, tmp_path, width):
    measuring = "<script>onload = () => document.title = 'fits ' + (document.documentElement.scrollWidth <= innerWidth)"
    (tmp_path / "page.html").write_text(html.replace("</body>", f"{measuring}</script></body>"))
    frame = f"<body style='margin:0'><iframe src='page.html' style='width:{width}px;height:3000px;border:0'></iframe>"
    showing = "<script>onload = () => document.title = frames[0].document.title</script>"
    (tmp_path / "frame.html").write_text(frame + showing)
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path}/profile", "--hide-scrollbars", f"--window-size={max(width, 600)},3000"]
    for option in (f"--screenshot={tmp_path}/page.png", "--dump-dom"):
        done = subprocess.run(
            [*command, option, f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120
        )
    assert "<title>fits true</title>" in done.stdout
    picture = imread(tmp_path / "page.png")[:, :width, :3]
    for part in range(0, 3000, 1000):
        assert picture[part : part + 1000].std() > 0.02, "blank"
