"""Reducers, and the files that rows of metrics go to."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcrl.metrics import (
    COLUMNS,
    EPISODE,
    CsvFile,
    Differences,
    EpisodeReducer,
    MeanReducer,
    RangeReducer,
    TensorBoardFile,
    cut_csv,
    range_columns,
)


def episodes(*rows: tuple[int, int, int, int, float]) -> NDArray:
    return np.array(list(rows), EPISODE)


def random_episodes(count: int, seed: int = 0) -> NDArray:
    """Distinct (env step, env index) in a random order; returns are 0, 1, 2, ... in the order of these."""
    rng = np.random.default_rng(seed)
    made = np.zeros(count, EPISODE)
    made["env_step"], made["env_index"] = np.divmod(np.arange(count), 4)
    made["return"] = np.arange(count)
    made["length"] = rng.integers(1, 9, count)
    return rng.permutation(made)


def test_an_iteration_without_episodes_has_no_means() -> None:
    row = EpisodeReducer().take()
    assert row["rollout/episodes"] == 0
    names = ("rollout/episode_return_mean", "rollout/episode_length_mean", "rollout/return_last_100")
    assert all(math.isnan(row[name]) for name in names)


def test_an_iteration_covers_the_episodes_since_the_last() -> None:
    reducer = EpisodeReducer()
    reducer.add(episodes((1, 0, 0, 10, 2.0)))
    reducer.add(episodes((2, 0, 1, 20, 4.0), (2, 1, 0, 30, 9.0)))
    row = reducer.take()
    assert (
        row["rollout/episodes"],
        row["rollout/episode_return_mean"],
        row["rollout/episode_length_mean"],
    ) == (3, 5, 20)
    reducer.add(episodes((3, 0, 2, 1, -1.0)))
    assert reducer.take()["rollout/episode_return_mean"] == -1


@pytest.mark.parametrize(("count", "expected"), [(99, math.nan), (100, 49.5), (101, 50.5), (250, 199.5)])
def test_the_last_100_are_judged_from_100_on(count: int, expected: float) -> None:
    reducer = EpisodeReducer()
    reducer.add(random_episodes(count))
    assert reducer.return_last_100 == pytest.approx(expected, nan_ok=True)
    assert reducer.take()["rollout/return_last_100"] == pytest.approx(expected, nan_ok=True)
    assert reducer.return_last_100 == pytest.approx(expected, nan_ok=True)


def test_the_last_100_are_ordered_by_step_then_environment_whatever_the_order_of_arrival() -> None:
    made = random_episodes(150)
    made["return"] = 149 - made["return"]
    results = []
    for seed in range(5):
        reducer = EpisodeReducer()
        reducer.add(np.random.default_rng(seed).permutation(made))
        results.append(reducer.return_last_100)
    assert results == [49.5] * 5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 260), st.integers(0, 130), st.booleans())
def test_episode_reducer_goes_on_from_its_state(first: int, second: int, take: bool) -> None:
    reducer, other = EpisodeReducer(), EpisodeReducer()
    reducer.add(random_episodes(first))
    if take:
        reducer.take()
    state = reducer.state()
    other.add(random_episodes(7))
    other.restore(state)
    later = random_episodes(second, 1)
    later["env_step"] += 1000
    for each in (reducer, other):
        each.add(later)
    one, two = reducer.take(), other.take()
    assert one == pytest.approx(two, nan_ok=True)
    assert all(isinstance(array, np.ndarray) and array.dtype.names is None for array in state.values())
    assert len(state["window_return"]) == min(first, 100)


def test_mean_reducer() -> None:
    reducer = MeanReducer(("a", "b"))
    assert all(math.isnan(value) for value in reducer.take().values())
    reducer.add((1.0, 10.0))
    reducer.add((3.0, -10.0))
    other = MeanReducer(("a", "b"))
    other.add((100.0, 100.0))
    other.restore(reducer.state())
    for each in (reducer, other):
        each.add((5.0, 3.0))
        assert each.take() == {"a": 3.0, "b": 1.0}
        assert all(math.isnan(value) for value in each.take().values())


def test_mean_reducer_state_is_a_copy() -> None:
    reducer = MeanReducer(("a",))
    reducer.add((1.0,))
    state = reducer.state()
    reducer.add((9.0,))
    reducer.restore(state)
    reducer.add((3.0,))
    assert state["sums"].tolist() == [1.0] and reducer.take() == {"a": 2.0}


LAGS = ("lag/min", "lag/mean", "lag/max")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(-3, 50), st.integers(1, 9)), max_size=5), min_size=1, max_size=3))
def test_lags_are_those_of_all_columns_of_all_learners(added: list[list[tuple[int, int]]]) -> None:
    reducers = [RangeReducer() for _ in added]
    for reducer, lags in zip(reducers, added, strict=True):
        for lag, count in lags:
            reducer.add(lag, count)
    columns = [lag for lags in added for lag, count in lags for _ in range(count)]
    row = range_columns("lag/", [reducer.take() for reducer in reducers])
    expected = [min(columns), sum(columns) / len(columns), max(columns)] if columns else [math.nan] * 3
    assert [row[name] for name in LAGS] == pytest.approx(expected, nan_ok=True) and set(row) == set(LAGS)
    # Taken once.
    assert all(math.isnan(value) for value in range_columns("lag/", [reducer.take() for reducer in reducers]).values())


def test_lags_begin_anew_after_a_report() -> None:
    reducer = RangeReducer()
    reducer.add(9, 2)
    reducer.take()
    reducer.add(4, 1)
    assert range_columns("lag/", [reducer.take()]) == {"lag/min": 4, "lag/mean": 4, "lag/max": 4}


def test_counts_are_reported_as_what_was_added() -> None:
    differences = Differences()
    assert differences.take({"a": 3, "b": 0}) == {"a": 3, "b": 0}
    assert differences.take({"a": 5, "b": 7}) == {"a": 2, "b": 7}
    assert differences.take({"a": 5, "b": 7}) == {"a": 0, "b": 0}


def write(path: Path, rows: list[dict[str, float]], columns: tuple[str, ...] = ("env_steps", "b", "c")) -> None:
    file = CsvFile(path, columns)
    file.write(rows)
    file.close()


def test_csv_cells(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    write(path, [{"env_steps": 5.0, "b": math.nan, "c": 0.1}, {"c": -2.5e300, "env_steps": 2**60, "ignored": 1}])
    assert path.read_text().split() == ["env_steps,b,c", "5,,0.1", f"{2**60},,-2.5e+300"]
    with path.open(newline="") as file:
        assert float(next(csv.DictReader(file))["c"]) == 0.1


def test_csv_is_flushed_row_by_row_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    file = CsvFile(path, ("env_steps",))
    assert path.read_text().split() == ["env_steps"]
    file.write([{"env_steps": 1}])
    assert path.read_text().split() == ["env_steps", "1"]
    file.close()
    write(path, [{"env_steps": 2}], ("env_steps",))
    assert path.read_text().split() == ["env_steps", "1", "2"]


def test_csv_of_an_empty_file_gets_its_header(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.touch()
    write(path, [])
    assert path.read_text().split() == ["env_steps,b,c"]


ROWS = [{"env_steps": 100 * n, "b": n / 7, "c": n + 0.125} for n in range(1, 5)]


@pytest.mark.parametrize(("last", "kept"), [(99, 0), (100, 1), (250, 2), (399, 3)])
def test_cut_csv_drops_the_rows_above(tmp_path: Path, last: int, kept: int) -> None:
    path, expected = tmp_path / "m.csv", tmp_path / "expected.csv"
    write(path, ROWS)
    write(expected, ROWS[:kept])
    assert cut_csv(path, "env_steps", last) == 4 - kept
    assert path.read_bytes() == expected.read_bytes()
    assert cut_csv(path, "env_steps", last) == 0


def test_cut_csv_leaves_a_file_alone_that_needs_no_cut(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    write(path, ROWS)
    before = path.stat()
    assert cut_csv(path, "env_steps", 400) == 0
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert cut_csv(tmp_path / "missing.csv", "env_steps", 0) == 0
    assert cut_csv(path, "no_such_column", 0) == 0
    path.write_text("")
    assert cut_csv(path, "env_steps", 0) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["m.csv"]


def test_cut_csv_can_cut_every_environment_at_a_step_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "episodes.csv"
    rows = [(5, 0), (7, 1), (6, 0), (8, 1), (6, 1), (3, 2)]
    path.write_text("env_step,env_index\n" + "".join(f"{step},{env}\n" for step, env in rows))
    assert cut_csv(path, "env_step", [5, 7], by="env_index") == 3
    assert path.read_text() == "env_step,env_index\n5,0\n7,1\n6,1\n"
    assert cut_csv(path, "env_step", [5, 7], by="no_such_column") == 0


LINE = f"200,{2 / 7},2.125\n"


@pytest.mark.parametrize(
    "length",
    range(1, len(LINE)),
)
def test_cut_csv_drops_a_torn_last_line_so_that_rows_can_follow(tmp_path: Path, length: int) -> None:
    path, expected = tmp_path / "m.csv", tmp_path / "expected.csv"
    write(expected, ROWS[:1])
    whole = expected.read_bytes()
    write(expected, ROWS[1:2])
    path.write_bytes(expected.read_bytes()[: len(whole) + length])
    cut_csv(path, "env_steps", 1000)
    write(path, ROWS[2:3])
    expected.write_bytes(whole)
    write(expected, ROWS[2:3])
    assert path.read_bytes() == expected.read_bytes()


def test_tensorboard_events_have_the_names_of_the_row(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    file = TensorBoardFile(tmp_path, 0)
    for step in (100, 200):
        row = dict.fromkeys(COLUMNS, step / 8) | {"env_steps": step, "train/entropy": math.nan}
        file.write(row)
    file.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {name for name in COLUMNS if "/" in name} - {"train/entropy"}
    read = events.Scalars("rollout/episode_return_mean")
    assert [(event.step, event.value) for event in read] == [(100, 12.5), (200, 25.0)]
