"""hpcrl submit: whose option is whose, what is asked of Slurm, and that refused input leaves everything as it was."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcrl.commands.options import parse
from hpcrl.commands.submit import SubmitOptions, submit
from hpcrl.config import CONFIGS, A2CConfig, to_json
from hpcrl.errors import ConfigError, HpcrlError
from hpcrl.storage.run_directory import Outcome, RunDirectory

_RUN = ("--run-dir", "run", "--nodes", "2", "--ntasks-per-node", "4")
_SBATCH = """\
#!/bin/sh
for script; do :; done
[ -r "$script" ] || exit 9
echo "$*" >>{folder}/calls
if [ "$1" = --test-only ]; then
    [ -e {folder}/refuse ] || exit 0
    echo "sbatch: error: invalid partition specified: nope" >&2
    echo "allocation failure: Invalid partition name specified" >&2
    exit 1
fi
job=100
if [ -r {folder}/last ]; then read -r job <{folder}/last; fi
[ -e {folder}/full ] && [ "$job" = 101 ] && {{ echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}
job=$((job + 1))
echo $job >{folder}/last
echo "$job;mini"
"""
_SINFO = """\
#!/bin/sh
case "$*" in
    *--partition=gpu*) echo 'gpu|gpu|2|8'; echo 'gpu|gpu|2|4' ;;
    *--partition*) ;;
    *) echo 'gpu|gpu|2|4'; echo 'cpu|cpu*|2|16'; echo 'odd|odd|1|2' ;;
esac
"""


class Slurm:
    """Stubs of sbatch and sinfo, all that is on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("sbatch", _SBATCH), ("sinfo", _SINFO)):
            (folder / name).write_text(text.format(folder=folder) if name == "sbatch" else text)
            (folder / name).chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """Arguments of sbatch but for the script, which comes last."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.rpartition(" ")[0] for line in lines]


@pytest.fixture(autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A login node, in an empty current folder."""
    made = Slurm(tmp_path_factory.mktemp("slurm"))
    monkeypatch.setenv("PATH", str(made.folder))
    monkeypatch.chdir(tmp_path)
    return made


def script_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What --dry-run prints."""
    assert submit([*words, "--dry-run"]) == 0
    return capsys.readouterr().out


def training_of(script: str) -> list[str]:
    """The arguments of hpcrl train."""
    found = re.search(r"^train=\((.*?)\)$", script, re.MULTILINE | re.DOTALL)
    assert found is not None
    return shlex.split(found[1])


def options_of(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def make_run(run_dir: Path, config: A2CConfig) -> None:
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps({"config": to_json(config)}))


def test_no_option_is_both_of_train_and_of_submit() -> None:
    ours = {field.name for field in dataclasses.fields(SubmitOptions)}
    for cls in CONFIGS.values():
        assert not ours & ({field.name for field in dataclasses.fields(cls)} | {"preset"})


def test_options_of_submit_are_taken_out_and_those_of_train_kept(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = ["--time", "5:00:00", "--partition", "long"], ["--seed", "3", "--hidden-sizes", "32", "16"]
    rest = ["--env", "my env", "--no-tensorboard"]
    script = script_of(capsys, "a2c", *theirs, *ours, *_RUN, *rest, "--resume")
    assert training_of(script) == ["a2c", *theirs, *rest]
    assert {"--time=5:00:00", "--nodes=2", "--partition=long", "--ntasks-per-node=4"} <= set(options_of(script))


def test_options_may_be_joined_to_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"--seed": "3", "--run-dir": "run", "--nodes": "2", "--ntasks-per-node": "4", "--gpus-per-node": "2"}
    options |= {"--time": "2-12", "--warning": "300", "--learner-cores": "2", "--job-name": "mine", "--mpi": "pmix"}
    apart = script_of(capsys, "a2c", *(word for option in options.items() for word in option))
    joined = script_of(capsys, "a2c", *(f"{option}={value}" for option, value in options.items()))
    assert training_of(joined) == ["a2c", "--seed=3", "--learner-cores=2"]
    rest = [re.sub(r"^(# Made by|train=).*", "", script, flags=re.MULTILINE) for script in (apart, joined)]
    assert rest[0] == rest[1]


def test_a_dry_run_touches_nothing_and_needs_no_slurm(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    (slurm.folder / "sbatch").unlink()
    assert script_of(capsys, "a2c", *_RUN).startswith("#!/bin/bash\n")
    assert content(Path()) == {} and slurm.calls == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--time", "1h"], "--time must be minutes"),
        (["--time", "-1"], "--time must be minutes"),
        (["--time=1:00:00:00"], "--time must be minutes"),
        (["--nodes", "0"], "--nodes must be a whole number of at least 1, got 0"),
        (["--ntasks-per-node", "0"], "--ntasks-per-node must be"),
        (["--gpus-per-node", "-1"], "--gpus-per-node must be"),
        (["--ranks", "4"], "--ranks is decided by --nodes"),
        (["--ranks=4"], "--ranks is decided by --nodes"),
        (["--learners", "5"], "at least 10 ranks, got 8"),
        (["--gpus-per-node", "4", "--nodes", "2"], "--learners 8 needs an actor for each, so at least 16 ranks, got 8"),
        (["--het", "--ntasks-per-node", "6", "--actor-ntasks-per-node", "2"], "at least 24 ranks, got 14"),
        (["--stage-env", "missing.tar.gz"], "missing.tar.gz does not exist"),
        (["--environment", "missing"], "missing does not exist"),
        (["--stage-dir", "relative"], "--stage-dir must be"),
        (["--chain", "0"], "--chain must be a whole number of at least 1, got 0"),
        (["--warning", "0"], "--warning must be at least 1"),
        (["--warning", "3600"], "--warning must be less than --time"),
        (["--time", "2"], r"--warning must be less than --time 2 \(120 s\), got 120"),
        (["--max-restarts", "-1"], "--max-restarts must be"),
        (["--partition", "a b"], "--partition must be a name without spaces"),
        (["--job-name", "a b"], "--job-name must be a name without spaces"),
        (["--job-name", ""], "--job-name must be"),
        (["--sbatch=account"], "--sbatch takes options of sbatch"),
        (["--sbatch=--a\nrm"], "--sbatch takes options of sbatch"),
        (["--num-envs", "0"], "--num-envs must be"),
        (["--preset", "nope"], "unknown preset"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_and_touches_nothing(slurm: Slurm, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        submit(["a2c", *_RUN, *words])
    assert len(str(refused.value).splitlines()) == 1
    assert content(Path()) == {} and slurm.calls == []


@pytest.mark.parametrize("words", [[], ["--nodes", "2"], ["nope"], ["nope", *_RUN]])
def test_an_algorithm_is_needed(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="one of: a2c"):
        submit(words)


def test_an_option_of_slurm_may_have_been_meant(slurm: Slurm) -> None:
    with pytest.raises(ConfigError, match=r"unknown option --ntasks-pernode \(did you mean --ntasks-per-node\?\)"):
        submit(["a2c", *_RUN, "--ntasks-pernode", "3"])
    assert content(Path()) == {} and slurm.calls == []


@pytest.mark.parametrize("words", [["--nodes", "two"], ["--nodes"]])
def test_the_parser_refuses_what_it_does_not_know(words: list[str], slurm: Slurm) -> None:
    with pytest.raises(SystemExit) as refused:
        submit(["a2c", *_RUN, *words])
    assert refused.value.code == 2
    assert content(Path()) == {} and slurm.calls == []


@pytest.mark.parametrize("words", [["--help"], ["a2c", "--help"]])
def test_help_names_the_options_of_slurm(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        submit(words)
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("--ntasks-per-node", "--stage-env", "--dry-run"))


def test_without_sbatch_nothing_is_touched(slurm: Slurm) -> None:
    (slurm.folder / "sbatch").unlink()
    with pytest.raises(ConfigError, match="no sbatch is here"):
        submit(["a2c", *_RUN])
    assert content(Path()) == {}


def test_a_job_that_slurm_refuses_touches_nothing(slurm: Slurm) -> None:
    (slurm.folder / "refuse").touch()
    with pytest.raises(ConfigError, match="sbatch refuses the job: allocation failure: Invalid partition name"):
        submit(["a2c", *_RUN, "--partition", "nope"])
    assert content(Path()) == {} and slurm.calls == ["--test-only"]


def test_a_run_that_is_there_needs_resume(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("run"), A2CConfig(seed=5))
    before = content(Path())
    with pytest.raises(ConfigError, match="holds a run: give --resume"):
        submit(["a2c", *_RUN])
    assert content(Path()) == before and slurm.calls == []
    assert submit(["a2c", *_RUN, "--resume"]) == 0
    assert Path("run/jobs").read_text() == "101\n"


@pytest.mark.parametrize(("outcome", "stays"), [("finished", False), ("running", True), ("stopped", True)])
def test_the_jobs_of_a_finished_run_that_goes_on_do_not_take_it_for_finished(
    slurm: Slurm, outcome: Outcome, stays: bool
) -> None:
    make_run(Path("run"), A2CConfig())
    RunDirectory(Path("run")).write_outcome(outcome)
    assert submit(["a2c", *_RUN, "--resume", "--total-env-steps", "2000000", "--chain", "2"]) == 0
    assert RunDirectory(Path("run")).outcome_file.exists() == stays


def test_a_resumed_run_keeps_its_learners_and_not_its_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("run"), A2CConfig(ranks=2, learners=1))
    script = script_of(capsys, "a2c", *_RUN, "--resume", "--gpus-per-node", "2")
    assert training_of(script) == ["a2c", "--ranks", "8"]
    assert "\nroles=()\n" in script


def test_a_job_is_checked_kept_submitted_and_noted(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    script = script_of(capsys, "a2c", *_RUN)
    assert submit(["a2c", *_RUN]) == 0
    assert Path("run/job.sbatch").read_text() == script.replace(" --dry-run\n", "\n")
    assert Path("run/jobs").read_text() == "101\n"
    assert slurm.calls == ["--test-only", "--parsable"]
    assert set(content(Path())) == {"run", "run/job.sbatch", "run/jobs"}
    said = capsys.readouterr().out
    assert "submitted job 101\n" in said and f"{Path.cwd()}/run/slurm-101.log\n" in said


def test_every_job_of_a_chain_waits_for_the_one_before(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(["a2c", *_RUN, "--chain", "3"]) == 0
    after = ["--parsable", "--parsable --dependency=afterany:101", "--parsable --dependency=afterany:102"]
    assert slurm.calls == ["--test-only", *after]
    assert Path("run/jobs").read_text().split() == ["101", "102", "103"]
    assert "scontrol requeue" not in Path("run/job.sbatch").read_text()
    assert "101, and after it 102, 103" in capsys.readouterr().out


def test_a_chain_that_slurm_cuts_off_has_its_first_jobs_noted(slurm: Slurm) -> None:
    (slurm.folder / "full").touch()
    with pytest.raises(HpcrlError, match=r"did not accept .*: sbatch: error: QOSMaxSubmit"):
        submit(["a2c", *_RUN, "--chain", "3"])
    assert Path("run/jobs").read_text().split() == ["101"]


def test_a_run_directory_that_can_not_be_made_is_refused(slurm: Slurm) -> None:
    Path("file").touch()
    with pytest.raises(ConfigError, match="can't be written"):
        submit(["a2c", *_RUN, "--run-dir", "file/run"])
    assert "--parsable" not in slurm.calls


def test_further_options_of_sbatch_stand_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    script = script_of(capsys, "a2c", *_RUN, "--sbatch=--account=physics", "--seed", "1", "--sbatch=-q long")
    options = options_of(script)
    assert options[options.index("--account=physics") + 1] == "-q long"
    assert training_of(script) == ["a2c", "--seed", "1"]


@pytest.mark.parametrize(
    ("words", "tasks", "cpus", "exclusive"),
    [
        ("", 32, None, True),
        ("--partition gpu", 8, None, True),
        ("--partition gpu --gpus-per-node 2", 8, None, True),
        ("--partition gpu --gpus-per-node 2 --learner-cores 3", 4, None, True),
        ("--partition gpu --learner-cores 3", 6, None, True),
        ("--partition gpu --placement colocated --learner-cores 4", 2, 4, True),
        ("--ntasks-per-node 5", 5, None, False),
        ("--ntasks-per-node 5 --exclusive", 5, None, True),
        ("--ntasks-per-node 5 --learner-cores 3", 5, None, True),
        ("--ntasks-per-node 2 --placement colocated --learner-cores 4", 2, 4, False),
        ("--ntasks-per-node 2 --placement colocated --learner-cores 4 --exclusive", 2, 4, True),
    ],
)
def test_ranks_and_their_cores_use_up_a_node(
    words: str, tasks: int, cpus: int | None, exclusive: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(script_of(capsys, "a2c", "--num-envs", "64", "--nodes", "2", *words.split()))
    about_cores = {option for option in options if option.startswith(("--ntasks", "--cpus", "--exclusive", "--mem"))}
    expected = {f"--ntasks-per-node={tasks}"} | ({f"--cpus-per-task={cpus}"} if cpus else set())
    assert about_cores == expected | ({"--exclusive", "--mem=0"} if exclusive else set())


def test_where_slurm_does_not_tell_cores_the_ranks_must_be_given(slurm: Slurm) -> None:
    with pytest.raises(ConfigError, match=r"--ntasks-per-node is needed, .* a node of partition odd has"):
        submit(["a2c", "--partition", "odd"])
    (slurm.folder / "sinfo").unlink()
    with pytest.raises(ConfigError, match=r"--ntasks-per-node is needed, .* the default partition has"):
        submit(["a2c"])
    with pytest.raises(ConfigError, match="--actor-ntasks-per-node is needed"):
        submit(["a2c", "--het", "--gpus-per-node", "2"])


def test_a_heterogeneous_job_has_learners_first_and_actors_second(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--het --nodes 2 --gpus-per-node 2 --partition gpu --learner-cores 2 --actor-nodes 3 --num-envs 96"
    options = options_of(script_of(capsys, "a2c", *words.split()))
    place = options.index("hetjob")
    first, second = set(options[:place]), set(options[place + 1 :])
    assert {"--partition=gpu", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=2"} <= first
    assert {"--nodes=3", "--ntasks-per-node=32", "--exclusive", "--time=01:00:00"} <= second
    assert not {"--gpus-per-node=2", "--cpus-per-task=2", "--partition=gpu"} & second


@pytest.mark.parametrize(
    ("words", "dealt"),
    [
        ("--gpus-per-node 2", True),
        ("--gpus-per-node 2 --learners 1", False),
        ("--gpus-per-node 2 --learners=1", False),
        ("--gpus-per-node 2 --placement colocated", False),
        ("--het --actor-ntasks-per-node 8", True),
        ("--het --actor-ntasks-per-node 8 --learners 2", False),
        ("", False),
    ],
)
def test_learners_follow_from_the_job_where_nothing_is_said_of_them(
    words: str, dealt: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    script = script_of(capsys, "a2c", *_RUN, *words.split())
    assert ("\nroles=(--learners " in script) == dealt != ("\nroles=()\n" in script)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--env", "package.module:My/Env-v0"], r"a2c-package\.module_My_Env-v0-seed1-\d+-\d+"),
        (["--run-dir", "my run"], "my_run"),
        (["--run-dir", "my run", "--job-name", "mine"], "mine"),
    ],
)
def test_the_job_is_named_after_its_run(words: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of(script_of(capsys, "a2c", "--ntasks-per-node", "2", *words))
    assert re.fullmatch(f"--job-name={name}", options[0])


def test_the_log_lies_in_the_run_directory_whatever_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    script = script_of(capsys, "a2c", "--ntasks-per-node", "2", "--run-dir", "it's 50%j")
    [output] = [option for option in options_of(script) if option.startswith("--output=")]
    # Slurm reads quotes as a shell does, and %% as %.
    assert shlex.split(output) == [f"--output={Path.cwd()}/it's 50%%j/slurm-%j.log"]
    with pytest.raises(ConfigError, match="must be one line"):
        submit(["a2c", "--ntasks-per-node", "2", "--run-dir", "a\nb"])


def test_no_argument_gets_out_of_the_title(capsys: pytest.CaptureFixture[str]) -> None:
    script = script_of(capsys, "a2c", *_RUN, "--env", "x\n#SBATCH --account=theirs\ntouch oops")
    assert training_of(script)[-1] == "x\n#SBATCH --account=theirs\ntouch oops"
    title = script.splitlines()[1]
    assert title.startswith("# Made by: hpcrl submit a2c") and title.endswith("--dry-run")
    assert script.splitlines()[2].startswith("#SBATCH --job-name")


@pytest.mark.parametrize("time", ["3", "2:01", "0:02:01", "0-1", "1-0:0", "1-0:0:0", "0"])
def test_every_form_of_a_time_is_taken(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--time={time}" in options_of(script_of(capsys, "a2c", *_RUN, "--time", time))


def test_the_last_word_counts_as_batch_scripts_rely_on() -> None:
    """Scripts put the roles before what the user says, and --run-dir and --resume behind it."""
    dealt, said = ["--learners", "4", "--learner-ranks", "first"], ["--learners=1", "--run-dir", "mine", "--no-resume"]
    config = parse("a2c", [*dealt, *said, "--run-dir", "run", "--resume"])
    assert (config.learners, config.learner_ranks) == (1, "first")
    assert (config.run_dir, config.resume) == (Path("run"), True)
