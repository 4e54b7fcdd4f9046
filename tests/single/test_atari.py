"""AtariEnvs: frames as Gymnasium's wrapper makes them, raw rewards, lost lives, episodes by seed, exact restore."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.wrappers import AtariPreprocessing
from numpy.typing import NDArray

from hpcrl.envs.atari import AtariEnvs, AtariOptions, is_atari, make_atari_vector
from hpcrl.errors import ConfigError, EnvironmentFailure, ShapeError

gym.register_envs(ale_py)
PLAIN = AtariOptions(noop_max=0, fire_reset=False)
# Breakout's actions, and where its memory holds the ball and the paddle.
NOOP, FIRE, RIGHT, LEFT = range(4)
BALL_X, BALL_Y, PADDLE_X = 99, 101, 72


def make(game: str, num_envs: int, options: AtariOptions) -> AtariEnvs:
    envs = make_atari_vector(f"ALE/{game}-v5", num_envs, options)
    assert isinstance(envs, AtariEnvs)
    return envs


def wrapped(game: str) -> gym.Env[Any, Any]:
    env = gym.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0, disable_env_checker=True)
    return AtariPreprocessing(env, noop_max=0, frame_skip=4)


def num_actions(envs: AtariEnvs) -> int:
    space = envs.single_action_space
    assert isinstance(space, gym.spaces.Discrete)
    return int(space.n)


def console(envs: AtariEnvs, row: int = 0) -> Any:
    return envs._consoles[row].ale


def follow_ball(memory: NDArray[np.uint8]) -> int:
    """An action that keeps Breakout's ball in the game, mostly."""
    if not memory[BALL_Y]:
        return FIRE
    ahead = int(memory[BALL_X]) - int(memory[PADDLE_X]) - 8
    return RIGHT if ahead > 2 else LEFT if ahead < -2 else NOOP


def play(envs: AtariEnvs, actions: NDArray[np.int64]) -> list[tuple[Any, ...]]:
    """What each step of `actions` [T, num_envs] returns; a row that ends begins anew by a seed of its step and row."""
    record = []
    for number, row_actions in enumerate(actions):
        observation, reward, terminated, truncated, info = envs.step(row_actions)
        record.append((observation.copy(), reward, terminated, truncated, info["life_lost"]))
        rows = np.flatnonzero((terminated | truncated) & ~info["life_lost"])
        envs.reset_rows(rows, 1000 * rows + number)
    return record


def assert_same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]], rows: Any = slice(None)) -> None:
    for step, expected in zip(one, other, strict=True):
        for array, expected_array in zip(step, expected, strict=True):
            np.testing.assert_array_equal(array, expected_array[rows])


@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_steps_equal_those_of_the_standard_wrappers(game: str) -> None:
    ours, wrapper = make(game, 1, PLAIN), wrapped(game)
    native = AtariVectorEnv(game.lower(), 1, num_threads=1, noop_max=0, use_fire_reset=False, reward_clipping=False)
    frame, *_ = ours.reset(seed=3)[0]
    np.testing.assert_array_equal(frame, wrapper.reset(seed=8)[0])
    np.testing.assert_array_equal(frame, native.reset(seed=4)[0][0, -1])
    assert (frame.shape, frame.dtype) == ((84, 84), np.uint8)
    total = 0.0
    for action in np.random.default_rng(1).integers(num_actions(ours), size=(150, 1)):
        observation, *outcome, info = ours.step(action)
        expected, *expected_outcome, _ = wrapper.step(int(action[0]))
        newest, *native_outcome, _ = native.step(action)
        outcome_here = [array[0] for array in outcome]
        assert outcome_here == expected_outcome == [array[0] for array in native_outcome]
        assert not info["life_lost"].any()
        total += abs(outcome[0][0])
        if outcome[1].any():
            break
        np.testing.assert_array_equal(observation[0], expected)
        np.testing.assert_array_equal(observation[0], newest[0, -1])
    assert total > 0


def test_the_picture_before_the_first_frame_is_always_that_of_a_new_console() -> None:
    """In Solaris that of a reset isn't."""
    ours = make("Solaris", 1, PLAIN)
    expected = wrapped("Solaris").reset(seed=0)[0]
    for _ in range(2):
        np.testing.assert_array_equal(ours.reset(seed=1)[0][0], expected)
        ours.step(np.array([1]))


def test_a_game_of_breakout_has_raw_rewards_and_four_lives_lost_before_its_end() -> None:
    envs = make("Breakout", 1, AtariOptions(noop_max=1, fire_reset=False, life_loss=True))
    envs.reset(seed=0)
    rewards, lost, lives, over = [], 0, 5, False
    while not over:
        action = np.array([follow_ball(console(envs).getRAM())])
        _, reward, terminated, truncated, info = envs.step(action)
        rewards.append(reward[0])
        fell, lives = console(envs).lives() < lives, console(envs).lives()
        over = lives == 0
        assert (terminated[0], truncated[0], info["life_lost"][0]) == (fell, False, fell and not over)
        lost += int(fell and not over)
        assert len(rewards) < 2000
    assert lost == 4
    assert set(rewards) >= {0.0, 1.0, 4.0}
    with pytest.raises(EnvironmentFailure, match="finished"):
        envs.step(action)


def test_without_life_loss_only_the_end_of_the_game_terminates() -> None:
    fire = np.array([FIRE])
    envs = make("Breakout", 1, PLAIN)
    envs.reset(seed=0)
    steps, over = 0, False
    while not over:
        _, _, terminated, _, info = envs.step(fire)
        over = console(envs).lives() == 0
        assert (terminated[0], info["life_lost"][0]) == (over, False)
        steps += 1
        assert steps < 200
    envs = make("Breakout", 1, dataclasses.replace(PLAIN, max_frames=4 * steps))
    envs.reset(seed=0)
    ends = [envs.step(fire)[2:4] for _ in range(steps)]
    assert (ends[-1][0][0], ends[-1][1][0]) == (True, False)


def test_the_last_life_is_lost_only_with_the_game() -> None:
    envs = make("Breakout", 3, AtariOptions(life_loss=True))
    envs.reset(seed=0)
    # In some games no lives are left some frames before the game is over.
    assert envs._life_lost(np.array([5, 4, 0])).tolist() == [False, True, False]
    assert envs._life_lost(np.array([5, 4, 0])).tolist() == [False, False, False]


@pytest.mark.parametrize(("game", "noop_max"), [("Assault", 5), ("Qbert", 5), ("Solaris", 0)])
def test_an_episode_depends_on_its_seed_and_actions_only(game: str, noop_max: int) -> None:
    """In Assault a reset of the console doesn't suffice, in Q*bert the state of the emulator, in Solaris both."""
    options = AtariOptions(sticky_actions=0.9, noop_max=noop_max, fire_reset=False)
    many, alone = make(game, 2, options), make(game, 1, options)
    rng = np.random.default_rng(2)
    earlier = rng.integers(num_actions(many), size=(60, 2))
    later = rng.integers(num_actions(many), size=(30, 2))
    many.reset(seed=[1, 2])
    play(many, earlier)
    first = many.reset_rows(np.array([1]), np.array([77]))
    np.testing.assert_array_equal(first, alone.reset(seed=77)[0])
    assert_same(play(alone, later[:, 1:]), play(many, later), rows=slice(1, 2))


def test_other_seeds_give_other_episodes() -> None:
    envs = make("Breakout", 1, AtariOptions(sticky_actions=0.25, noop_max=0))
    actions = np.random.default_rng(3).integers(4, size=(60, 1))
    records = []
    for seed in (1, 2, 1):
        envs.reset(seed=seed)
        records.append(np.stack([step[0] for step in play(envs, actions)]))
    assert (records[0] == records[2]).all()
    assert (records[0] != records[1]).any()


def test_a_state_goes_on_bit_for_bit_elsewhere() -> None:
    options = AtariOptions(sticky_actions=0.9, life_loss=True)
    envs, others = make("Breakout", 2, options), make("Breakout", 2, options)
    actions = np.random.default_rng(4).integers(4, size=(100, 2))
    envs.reset(seed=[5, 6])
    play(envs, actions[:37])
    state = envs.get_state()
    kept = {name: array.copy() for name, array in state.items()}
    others.reset(seed=[7, 8])
    play(others, actions[:23])
    expected = play(envs, actions[37:])
    others.set_state(state)
    assert_same(play(others, actions[37:]), expected)
    assert any(step[2].any() for step in expected)
    assert (state["held"] > 1).any()
    assert all((state[name] == kept[name]).all() and len(kept[name]) == 2 for name in kept)
    envs.set_state(state)
    assert_same(play(envs, actions[37:]), expected)


def test_truncation_is_no_termination() -> None:
    envs = make("Pong", 1, AtariOptions(max_frames=10))
    envs.reset(seed=1)
    ends = [envs.step(np.array([0]))[2:4] for _ in range(3)]
    assert not any(terminated[0] for terminated, _ in ends)
    assert [bool(truncated[0]) for _, truncated in ends] == [False, False, True]
    finished = envs.get_state()
    envs.reset(seed=1)
    assert not envs.step(np.array([0]))[3][0]
    envs.set_state(finished)
    with pytest.raises(EnvironmentFailure, match="finished"):
        envs.step(np.array([0]))


def test_a_life_lost_where_the_episode_is_truncated_ends_the_game() -> None:
    fire = np.array([FIRE])
    envs = make("Breakout", 1, AtariOptions(noop_max=0, life_loss=True))
    envs.reset(seed=0)
    steps = 1
    while not envs.step(fire)[4]["life_lost"][0]:
        steps += 1
        assert steps < 100
    envs = make("Breakout", 1, AtariOptions(noop_max=0, life_loss=True, max_frames=4 * steps))
    envs.reset(seed=0)
    ends = [envs.step(fire)[2:] for _ in range(steps)]
    terminated, truncated, info = ends[-1]
    assert (terminated[0], truncated[0], info["life_lost"][0]) == (True, True, False)
    assert not any(earlier[0][0] or earlier[1][0] for earlier in ends[:-1])


@pytest.mark.parametrize("fire", [False, True])
def test_an_episode_begins_with_one_to_noop_max_frames_and_one_of_fire(fire: bool) -> None:
    envs = make("Breakout", 1, AtariOptions(noop_max=3, fire_reset=fire))
    counts = [0] * 5
    for seed in range(40):
        envs.reset(seed=seed)
        counts[console(envs).getEpisodeFrameNumber()] += 1
    frames = counts[1 + fire : 4 + fire]
    assert sum(frames) == 40
    assert min(frames) > 5
    envs.step(np.array([NOOP]))
    # The ball is in the game only after FIRE.
    assert bool(console(envs).getRAM()[BALL_Y]) == fire


def test_a_game_without_fire_begins_without_it() -> None:
    envs = make("Freeway", 1, AtariOptions(noop_max=0, full_action_set=True))
    envs.reset(seed=0)
    assert console(envs).getEpisodeFrameNumber() == 0
    assert num_actions(envs) == 18


def test_sticky_frames_repeat_the_frame_before() -> None:
    envs = make("Breakout", 1, AtariOptions(noop_max=0, fire_reset=False, sticky_actions=0.25, frame_skip=3))
    direct = ale_py.ALEInterface()
    direct.setFloat("repeat_action_probability", 0.0)
    rom = roms.get_rom_path("breakout")
    assert rom is not None
    direct.loadROM(rom)
    direct.reset_game()
    envs.reset(seed=9)
    codes, before, repeated, chances = envs._codes, 0, 0, 0
    for action in np.random.default_rng(5).integers(4, size=150):
        frames = envs._frame_actions(codes[[action]])[0]
        envs._held[:] = before
        for code in frames:
            assert code in (codes[action], before)
            chances += codes[action] != before
            repeated += code == before != codes[action]
            before = code
            direct.act(code)
        if envs.step(np.array([action]))[2][0]:
            break
        np.testing.assert_array_equal(console(envs).getScreen(), direct.getScreen())
    assert chances > 100
    assert 0.15 < repeated / chances < 0.35


def test_one_frame_a_step_isnt_pooled() -> None:
    envs = make("Pong", 1, AtariOptions(noop_max=0, frame_skip=1, screen_size=160))
    envs.reset(seed=0)
    observation = envs.step(np.array([2]))[0]
    assert observation.shape == (1, 160, 160)
    screen = console(envs).getScreenGrayscale()
    # Columns aren't resized, 210 rows become 160 by area.
    assert abs(observation[0].mean() - screen.mean()) < 0.2
    assert (np.diff(observation[0].astype(int), axis=1) == 0).mean() > 0.9


def test_resets_without_a_seed_follow_the_last_one() -> None:
    envs = make("Pong", 1, AtariOptions())
    starts = []
    for _ in range(2):
        envs.reset(seed=4)
        envs.reset()
        starts.append(int(envs.get_state()["seed"][0]))
    envs.reset()
    assert starts[0] == starts[1] != envs.get_state()["seed"][0]


def test_a_reset_by_mask_leaves_the_others_alone() -> None:
    envs, same = make("Pong", 2, AtariOptions()), make("Pong", 2, AtariOptions())
    before = envs.reset(seed=[1, 2])[0].copy()
    same.reset(seed=[1, 9])
    after, info = envs.reset(seed=[5, 9], options={"reset_mask": np.array([False, True])})
    assert info == {}
    np.testing.assert_array_equal(after[0], before[0])
    actions = np.random.default_rng(6).integers(6, size=(10, 2))
    assert_same(play(envs, actions), play(same, actions))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frame_skip", 0),
        ("frame_skip", 2.0),
        ("frame_skip", True),
        ("noop_max", -1),
        ("max_frames", 0),
        ("screen_size", 211),
        ("sticky_actions", 1.0),
        ("sticky_actions", float("nan")),
    ],
)
def test_options_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        AtariOptions(**{field: value})


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [("ALE/Pong-v5", True), ("ale_py:ALE/Pong-v5", True), ("ALE/Nothing-v0", True), ("CartPole-v1", False)],
)
def test_is_atari(env_id: str, expected: bool) -> None:
    assert is_atari(env_id) == expected


@pytest.mark.parametrize(("env_id", "nearest"), [("ALE/Pongg-v5", "Pong-v5"), ("ALE/breakout-v4", "Breakout-v5")])
def test_an_unknown_game_names_the_nearest(env_id: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"nearest is ALE/{nearest}"):
        make_atari_vector(env_id, 1, AtariOptions())


@pytest.mark.parametrize("module", ["ale_py", "cv2"])
def test_a_missing_library_says_what_to_type(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'hpcrl\[atari\]'"):
        make_atari_vector("ALE/Pong-v5", 1, AtariOptions())


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_envs"):
        make_atari_vector("ALE/Pong-v5", 0, AtariOptions())
    envs = make("Pong", 2, AtariOptions())
    with pytest.raises(EnvironmentFailure, match="never reset"):
        envs.step(np.zeros(2, np.int64))
    for seed in ([1], [1, -1], [1.0, 2.0], -1, 2**63 - 1):
        with pytest.raises(ConfigError, match="seeds"):
            envs.reset(seed=seed)
    with pytest.raises(ConfigError, match="reset_mask"):
        envs.reset(options={"mask": 1})
    with pytest.raises(ShapeError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.ones(3, np.bool_)})
    envs.reset()
    wrong: list[Any] = [np.zeros(3, np.int64), np.zeros(2)]
    for actions in wrong:
        with pytest.raises(ShapeError, match="actions"):
            envs.step(actions)
    for action in (-1, 6):
        with pytest.raises(ConfigError, match="actions of 0 to 5"):
            envs.step(np.array([0, action]))


def test_states_that_dont_fit_are_refused() -> None:
    envs = make("Pong", 1, AtariOptions())
    envs.reset(seed=0)
    state = envs.get_state()
    for wrong in (
        {"seed": state["seed"]},
        state | {"lives": state["lives"].astype(np.int32)},
        state | {"console": np.concatenate([state["console"]] * 2)},
        state | {"console_size": state["console_size"] + 1},
        state | {"held": np.array([99])},
        state | {"steps": np.array([-1])},
    ):
        with pytest.raises(EnvironmentFailure):
            envs.set_state(wrong)
    envs.set_state(state)
    envs.step(np.array([0]))
    for byte in (7, 255):
        with pytest.raises(EnvironmentFailure, match="can't be restored"):
            envs.set_state(state | {"console": np.full_like(state["console"], byte)})
