"""`hpcrl plot`: which runs are one curve, its median and band, and the picture."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.repeats import Repeat
from hpcrl.commands.main import main
from hpcrl.config import PPOConfig
from hpcrl.errors import ConfigError
from hpcrl.viewing.figure import draw
from hpcrl.viewing.groups import Group, group_runs
from hpcrl.viewing.run import load_run
from hpcrl.viewing.scaling import read_scaling
from tests.viewed import CONFIG, make_run, seeds


def groups_of(paths: Sequence[Path], by_name: bool = False) -> list[Group]:
    return group_runs([load_run(path) for path in paths], by_name)


@pytest.mark.parametrize(("count", "ends", "word"), [(3, (0, 100), "least to most"), (5, (25, 75), "quartiles")])
def test_runs_of_other_seeds_are_a_median_and_a_band(
    tmp_path: Path, count: int, ends: tuple[int, int], word: str
) -> None:
    (group,) = groups_of(seeds(tmp_path / "a", count))
    assert group.label == f"a2c: median of {count} seeds, band: {word}"
    band = group.band("env_steps")
    assert band is not None and (band.x[0], band.x[-1]) == (1500, 10_000)
    scales = 1 + 0.1 * np.arange(count)
    for found, percent in ((band.low, ends[0]), (band.median, 50), (band.high, ends[1])):
        np.testing.assert_allclose(found, band.x / 500 * np.percentile(scales, percent))
    in_time = group.band("time")
    assert in_time is not None and (in_time.x[0], in_time.x[-1]) == (6, 40)


def test_a_band_is_where_all_runs_are(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / f"run{reports}", dataclasses.replace(CONFIG, seed=reports), reports=reports)
        for reports in (6, 12)
    ]
    (group,) = groups_of(paths)
    band = group.band("env_steps")
    assert band is not None and band.x[-1] == 3000
    assert [xs[-1] for xs, _ in group.curves("env_steps")] == [3000, 6000]


def test_a_run_alone_is_its_own_curve(tmp_path: Path) -> None:
    (group,) = groups_of([make_run(tmp_path / "run")])
    band = group.band("env_steps")
    assert group.label == "a2c, seed 3"
    assert band is not None
    np.testing.assert_array_equal(band.x, 500 * np.arange(3, 21))
    np.testing.assert_array_equal(band.median, np.arange(3, 21))


def test_groups_are_named_by_what_differs(tmp_path: Path) -> None:
    faster = dataclasses.replace(CONFIG, learning_rate=0.01)
    paths = [*seeds(tmp_path / "a", 2), *seeds(tmp_path / "b", 2, faster), make_run(tmp_path / "wide", ranks=5)]
    paths.append(make_run(tmp_path / "ppo", PPOConfig(env="CartPole-v1")))
    assert [group.name for group in groups_of(paths)] == [
        "a2c, learning-rate 0.005, 3 ranks",
        "a2c, learning-rate 0.01, 3 ranks",
        "a2c, learning-rate 0.005, 5 ranks",
        "ppo",
    ]


def test_options_that_an_older_version_did_not_have_are_at_their_defaults(tmp_path: Path) -> None:
    older, newer = make_run(tmp_path / "older"), make_run(tmp_path / "newer", dataclasses.replace(CONFIG, seed=8))
    facts = json.loads((older / "config.json").read_text())
    del facts["config"]["compile"]
    (older / "config.json").write_text(json.dumps(facts))
    assert len(groups_of([older, newer])) == 1


def test_comparing_goes_by_algorithm_environment_and_name(tmp_path: Path) -> None:
    other = dataclasses.replace(CONFIG, learning_rate=0.01, seed=9)
    first = [make_run(tmp_path / "base-seed3-20260101-120000"), make_run(tmp_path / "base-seed9", other)]
    paths = [*first, make_run(tmp_path / "long_seed1"), make_run(tmp_path / "p", PPOConfig(env="CartPole-v1"))]
    found = groups_of(paths, by_name=True)
    assert [(group.name, len(group.runs)) for group in found] == [("a2c, base", 2), ("a2c, long", 1), ("ppo", 1)]


def test_a_run_without_a_hundred_episodes_shows_its_reports(tmp_path: Path) -> None:
    (group,) = groups_of([make_run(tmp_path / "run", reports=2)])
    assert group.label == "a2c, seed 3, return of the episodes of each report"
    assert [ys.tolist() for _, ys in group.curves("time")] == [[2, 3]]


def test_the_axis_is_named_by_what_is_drawn(tmp_path: Path) -> None:
    many = make_run(tmp_path / "many")
    few = make_run(tmp_path / "few", dataclasses.replace(CONFIG, learning_rate=0.01), reports=2)
    last, each = "return of the last 100 episodes", "return of the episodes of each report"
    for paths, names in (([few], [each]), ([many], [last]), ([few, many], [last, each])):
        draw(groups_of(paths), [], ["time"], tmp_path / "x.svg")
        found = [name for name in (last, each) if f"<!-- {name} -->" in (tmp_path / "x.svg").read_text()]
        assert found == names


def test_a_run_without_its_configuration_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make_run(tmp_path / "run") / "config.json").unlink()
    assert main(["plot", str(tmp_path / "run"), "--x", "time", "-o", str(tmp_path / "x.svg")]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["?: ?, seed ?", "run: config.json: missing"]


def test_where_a_picture_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert main(["plot", str(run), "link", "./run", "-o", "name"]) == 0
    assert capsys.readouterr().out.splitlines() == ["CartPole-v1: a2c, seed 3", "picture: name.png"]
    assert (tmp_path / "name.png").exists()
    assert main(["plot", str(run), "-o", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["plot", str(run), "-o", "none/x.png"]) == 2
    assert capsys.readouterr().err == "hpcrl: none/x.png can't be written: No such file or directory\n"


def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dollars = dataclasses.replace(CONFIG, env=r"$\frac{<&Pong-v5")
    paths = [*seeds(tmp_path / "a", 3), make_run(tmp_path / "b", dollars), make_run(tmp_path / "c", reports=0)]
    scaling = tmp_path / "s.jsonl"
    scaling.write_text("".join(json.dumps(repeat(ranks, rate)) + "\n" for ranks, rate in ((1, 10), (2, 18))) + "{")
    out = tmp_path / "curves.svg"
    assert main(["plot", *map(str, paths), str(scaling), "-o", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "CartPole-v1: a2c: median of 3 seeds, band: least to most",
        r"$\frac{<&Pong-v5: a2c, seed 3",
        "c: no returns yet",
        "s.jsonl: damaged (1 line left out)",
        f"picture: {out}",
    ]
    drawn = out.read_text()
    for expected in ("env steps", "wall time, s", "a2c: median of 3 seeds", "efficiency"):
        assert f"<!-- {expected}" in drawn
    assert main(["plot", str(paths[0]), "--x", "time", "--compare", "-o", str(tmp_path / "one.png")]) == 0
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"


def repeat(ranks: int, rate: float, **changes: Any) -> dict[str, Any]:
    series = {"mode": "weak", "algorithm": "a2c", "env": "CartPole-v1", "options": ["--gamma", "0.9"]}
    work = {"num_envs": 16 * ranks, "env_steps": 1000 * ranks, "batch_envs": 4 * ranks, "actors": ranks}
    made = series | work | {"ranks": ranks, "env_steps_per_s": rate} | changes
    assert made.keys() <= {field.name for field in dataclasses.fields(Repeat)}
    return made


def test_scaling_curves(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    lines = [repeat(1, 100.0), repeat(1, 80.0), repeat(4, 180.0), repeat(4, 180.0), repeat(2, 5.0, mode="strong")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (strong, weak), notes = read_scaling([path, path])
    assert strong.name.startswith("strong") and not notes
    assert weak.name == "weak, a2c, CartPole-v1, 16 envs in batches of 4, 1,000 steps per actor, --gamma 0.9"
    assert (weak.ranks, weak.rates, weak.medians) == ((1, 4), ((100, 80), (180,)), [90, 180])
    assert weak.efficiency == [1, 0.5]


def test_what_can_not_be_drawn_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, text = make_run(tmp_path / "run"), tmp_path / "notes.txt"
    text.write_text("hello\n")
    empty = make_run(tmp_path / "empty", reports=0)
    for words in ([str(text)], [str(empty)], [], [str(run), "-o", str(tmp_path / "none" / "x.png")]):
        assert main(["plot", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"needs matplotlib: pip install 'hpcrl\[plot\]'"):
        draw(groups_of([run]), [], ["time"], tmp_path / "x.png")
