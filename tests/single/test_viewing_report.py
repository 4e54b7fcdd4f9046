"""`hpcrl report`: one page that needs nothing beside it and that no name can inject into."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hpcrl.commands.main import main
from hpcrl.viewing.report import report_page
from hpcrl.viewing.run import load_run
from hpcrl.viewing.svg import Line, Merging, histogram, line_chart, ticks
from tests.viewed import CONFIG, make_run

_VOID = {"meta"}
_CLOSED = {"line", "rect", "circle", "polyline"}


class Page(HTMLParser):
    """What a page holds; fails where elements are not closed in order.

    Attributes:
        elements: their names.
        attributes: name and value of each.
        texts: between elements.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _CLOSED
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(path: Path) -> Page:
    run = load_run(path)
    return Page(report_page(run, run.written + 60))


def test_a_page_tells_all_of_a_run(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=0.01)
    resumes = [{"env_steps": 4000, "by_state": 7, "by_replay": 0, "begun_anew": 1}]
    text = page_of(make_run(tmp_path / "run", config, jobs=("7",), resumes=resumes)).text
    for expected in (
        "state finished",
        "env steps 10,000 of 10,000",
        "--learning-rate 0.01 0.005",
        "returns against env steps",
        "returns against wall time, s",
        "acting 50.0% 0.0% learning 0.0% 20.0%",
        "forward 25.0%",
        "updates between acting and learning",
        "episodes by return",
        "24 episodes.",
        "step_000000010000 10,000 200 18.5 7 B 1 min ago newest, best",
        "4,000 7 0 1",
        "Batch jobs: 7.",
        "environments per actor 4 nodes",
        "1: node0 (3 ranks)",
        "1 x some GPU",
        "Open MPI v5.0.11",
        "Dropped as too old: 10 unrolls or gradients.",
        "At env step 4,000 environments began new episodes",
        "The code had changes that its commit does not have.",
    ):
        assert expected in text


def test_a_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert not {"script", "link", "img", "iframe", "object", "a", "base", "form"} & set(page.elements)
    assert not {"src", "href", "xlink:href"} & {name for name, _ in page.attributes}
    assert not any(name.startswith("on") for name, _ in page.attributes)
    style = page.texts[page.texts.index(next(text for text in page.texts if "color-scheme" in text))]
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert ("content", "width=device-width, initial-scale=1") in page.attributes


_HOSTILE = '</title></style><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\'"'


def test_no_name_injects(tmp_path: Path) -> None:
    harmless = page_of(make_run(tmp_path / "harmless"))
    path = make_run(tmp_path / "hostile", dataclasses.replace(CONFIG, env=_HOSTILE, model=_HOSTILE))
    facts = json.loads((path / "config.json").read_text())
    facts["layout"]["hosts"] = [_HOSTILE] * 3
    facts["machine"] |= {"cpu": _HOSTILE, _HOSTILE: _HOSTILE, "gpus": {"0": _HOSTILE}}
    facts["versions"][_HOSTILE] = _HOSTILE
    facts["command"] = [_HOSTILE]
    (path / "config.json").write_text(json.dumps(facts))
    manifest = json.loads((path / "checkpoints" / "manifest.json").read_text())
    manifest["checkpoints"][0]["name"] = _HOSTILE
    (path / "checkpoints" / "manifest.json").write_text(json.dumps(manifest))
    metrics = (path / "metrics.csv").read_text().splitlines()
    column = '"rollout/return_last_100/' + _HOSTILE.replace('"', '""') + '"'
    lines = [f"{metrics[0]},{column}", *(f"{line},{number}" for number, line in enumerate(metrics[1:]))]
    (path / "metrics.csv").write_text("".join(f"{line}\n" for line in lines))
    page = page_of(path)
    assert set(page.elements) == set(harmless.elements)
    assert {name for name, _ in page.attributes} == {name for name, _ in harmless.attributes}
    assert page.text.count(_HOSTILE) >= 9


def test_a_thousand_ranks_and_a_trace_are_summarised(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_envs=3996)
    path = make_run(tmp_path / "run", config, ranks=1000, slowest=702)
    events = [
        {"name": name, "ph": "X", "pid": rank, "ts": 0, "dur": length}
        for rank in range(1000)
        for name, length in (("acting", 90 if rank == 13 else 50), ("waiting", 10 if rank == 13 else 50))
    ]
    (path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    page = page_of(path)
    assert "of 1,000 ranks: min 50%, median 50%, max 90%; slowest: rank 13 on node3." in page.text
    assert "999 actors, by their newest episodes: min 150, median 300, max 300; slowest: rank 702" in page.text
    assert "and 242 more" in page.text
    assert sum(map(len, page.texts)) < 20_000


def test_a_run_that_died_at_once(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", outcome="running", reports=0)
    for name in ("episodes.csv", "checkpoints/manifest.json"):
        (path / name).unlink()
    text = page_of(path).text
    assert "No report yet." in text and "metrics.csv" not in text
    assert "episodes.csv: missing" in text and "The run died" in text
    assert "Checkpoints none yet" in text


def numbers_in(figure: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf'\b{name}="(-?[0-9.]+)"', figure)]


@pytest.mark.parametrize(
    "values", [[1.0], [5, 5, 5], [0, 1e-30], [-1e90, 1e90], [1e20, 1e20 + 20_000], [np.nan, 2, np.nan, 3], range(2000)]
)
def test_charts_stay_within_their_frame(values: list[float]) -> None:
    y = np.array(values, np.float64)
    chart = line_chart("a", [Line("b", np.arange(float(len(y))), y)], "x")
    points = [tuple(map(float, pair.split(","))) for pair in re.findall(r"-?[0-9.]+,-?[0-9.]+", chart)]
    assert points or "<circle" in chart
    assert all(48 <= across <= 370 and 10 <= up <= 190 for across, up in points)
    assert len(points) <= 300
    bars = histogram("a", y, "x")
    assert 1 <= bars.count('class="bar"') <= 30
    assert all(0 <= value <= 380 for name in ("x", "y", "width", "height") for value in numbers_in(bars, name))
    for drawn in (chart, bars):
        assert "nan" not in drawn and "inf" not in drawn
        Page(drawn)


@pytest.mark.parametrize(("merging", "peak"), [("mean", 1 / 5), ("max", 1.0), ("min", -1.0)])
def test_neighbours_of_many_points_are_merged(merging: Merging, peak: float) -> None:
    values = np.zeros(1201)
    values[603] = 1 if merging != "min" else -1
    chart = line_chart("a", [Line("b", np.arange(1201.0), values, merging)], "x")
    assert len(re.findall(r"[0-9.]+,[0-9.]+", chart)) == 241
    scale = max(abs(tick) for tick in numbers_of_ticks(chart))
    assert scale == pytest.approx(abs(peak))


def numbers_of_ticks(figure: str) -> list[float]:
    """Those of the axis at the left."""
    return [float(text) for text in re.findall(r'text-anchor="end">(-?[0-9.]+)<', figure)]


def test_maxima_are_drawn_as_maxima(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", reports=603)
    page = report_page(load_run(path), 0.0)
    lag = page[page.index("updates between acting and learning</figcaption>") :].split("</figure>")[0]
    most = re.search(r'polyline class="c2" points="([^"]+)"', lag)
    # Of 603 reports with most lags of 1, 2, 0, 1, 2, 0, any three have 2 as their most.
    assert most is not None and {pair.split(",")[1] for pair in most[1].split()} == {"10.0"}


def test_few_different_numbers_have_a_bar_each() -> None:
    (width,) = numbers_in(histogram("a", np.full(7, 1000.0), "x"), "width")[:1]
    assert width <= 24
    bars = re.findall(r'class="bar" x="([0-9.]+)" y="[0-9.]+" width="([0-9.]+)"', histogram("a", np.arange(3.0), "x"))
    centres = [float(left) + float(size) / 2 for left, size in bars]
    assert len(bars) == 3 and centres[1] - centres[0] == pytest.approx(centres[2] - centres[1], abs=0.2)


def test_shares_of_all_columns_are_drawn_to_one_scale(tmp_path: Path) -> None:
    page = report_page(load_run(make_run(tmp_path / "run")), 0.0)
    # Half of the actors' time, a fifth of the learners'.
    assert "calc(0.500 * var(--whole))" in page and "calc(0.200 * var(--whole))" in page
    assert "--whole: 5rem" in page


def test_charts_without_numbers_are_left_out() -> None:
    none = np.full(3, np.nan)
    assert line_chart("a", [Line("b", np.arange(3.0), none)], "x") == ""
    assert histogram("a", none, "x") == histogram("a", np.empty(0), "x") == ""


def test_ticks_are_round() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(-0.3, 0.71) == pytest.approx([-0.25, 0, 0.25, 0.5])
    assert ticks(1500, 10_000) == [2000, 4000, 6000, 8000, 10_000]


def test_a_page_that_can_not_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(make_run(tmp_path / "run")), "-o", str(tmp_path / "none" / "x.html")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == told.count("x.html") == 1
