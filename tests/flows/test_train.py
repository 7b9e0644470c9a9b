"""``ratchet train``: any preference data set in, a policy out; the same command goes on, and makes nothing twice."""

import json
import math
import random
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import AutoModelForCausalLM

from flows.environment import INTERRUPTED
from pipeline.config import LossConfig
from pipeline.errors import ConfigError, DataError
from pipeline.policy import read_policy
from pipeline.store import Spec, Store
from pipeline.tables import pairs_table, read_pairs
from tests.tiny import make_policy, perturb
from tests.tiny_chat import chat_policy
from tests.trainers.examples import make_pairs
from trainers.checkpoints import load_tokenizer

from .conftest import Said
from .small import ROOT, Ratchet, finished_files, sets, until

FAST = sets("batch_size=8", "learning_rate=1e-3", "token_budget=512")
WORDS = ("ice", "cream", "pizza", "ramen", "curry", "sushi", "bread", "soup")

Train = Callable[..., dict[str, Any]]


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    names = (chr(97 + number // 26) + chr(97 + number % 26) for number in range(count))
    return [
        {"prompt": f"{text(3)} {name}? ", "chosen": f"yes {text(4)}.", "rejected": f"no {text(2)}"} for name in names
    ]


def write(path: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def explicit(row: Mapping[str, str]) -> list[dict[str, Any]]:
    return [dict(row)]


def implicit(row: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")}]


def conversational(row: Mapping[str, str]) -> list[dict[str, Any]]:
    answers = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return [{"prompt": [{"role": "user", "content": row["prompt"]}], **answers}]


def unpaired(row: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"} for side in ("chosen", "rejected")
    ]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policies") / "tiny", layers=1).path


@pytest.fixture(scope="module")
def prefs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "prefs.jsonl", rows(40))


@pytest.fixture
def train(ratchet: Callable[..., Said], policy: Path, tmp_path: Path) -> Train:
    """``ratchet train … --json`` in this process, in a workspace of the test's own; what it printed."""

    def call(*arguments: object, policy: object = policy, workspace: object = tmp_path / "workspace") -> dict[str, Any]:
        code, out, err = ratchet("train", *arguments, "--policy", policy, "--workspace", workspace, *FAST, "--json")
        assert (code, err) == (0, "")
        found: dict[str, Any] = json.loads(out)
        return found

    return call


def made(result: Mapping[str, Any], stage: str) -> int:
    return len(list((Path(result["directory"]).parents[1] / "artifacts" / stage).glob("*/manifest.json")))


# ---------------------------------------------------------------------------------------------- data
@pytest.mark.parametrize("form", [explicit, implicit, conversational, unpaired])
def test_every_format_of_trl_gives_a_policy(
    form: Callable[[Mapping[str, str]], list[dict[str, Any]]], train: Train, policy: Path, tmp_path: Path
) -> None:
    start = chat_policy(tmp_path / "chat") if form is conversational else policy
    data = write(tmp_path / "data.jsonl", [entry for row in rows(20) for entry in form(row)])
    loss = ["--set", 'loss=[{type="kto"}]'] if form is unpaired else []
    result = train(data, *loss, policy=start)

    assert result["state"] == "complete"
    assert result["data"][0]["dropped"] == {}
    kinds = {kind: result["training_examples"][kind] for kind in ("pairs", "singles")}
    assert kinds == ({"pairs": 0, "singles": 40} if form is unpaired else {"pairs": 20, "singles": 0})
    assert read_policy(Path(result["directory"]) / "policy").digest == result["policy"]["digest"] != result["start"]
    if form is not unpaired:
        assert result["at_first"]["loss"] == pytest.approx(math.log(2), abs=1e-3)  # the policy is its reference
        assert result["figures"]["rewards/margins"] != 0
    AutoModelForCausalLM.from_pretrained(result["policy"]["path"])


def test_our_own_pairs_are_trained_on_as_the_ids_they_are(train: Train, tmp_path: Path) -> None:
    store = Store(tmp_path / "workspace" / "artifacts")
    pairs = make_pairs(22)

    def build(draft: Any) -> Any:
        draft.commit_shard(0, pairs_table(pairs))
        return draft.finish()

    artifact = store.make(Spec("pairs", 1), build)
    result = train(artifact.path)
    assert result["data"][0] | {"given": ""} == {
        "name": "pairs", "given": "", "rows": 22, "examples": 22, "pairs": 22, "singles": 0, "prompts": 3,
        "dropped": {}, "altered": {}, "notes": [], "pairs_of": [artifact.key], "held_out": False,
    }  # fmt: skip
    assert result["figures"]["lengths/chosen"] > 0


def test_a_runs_pairs_and_policies_by_its_name(train: Train, finished: dict[str, Any]) -> None:
    workspace = finished["workspace"]
    first, second = finished["rounds"]
    result = train("finished:1", policy="finished:0", workspace=workspace)
    assert result["start"] == first["policy_out"]
    assert result["data"][0]["examples"] == second["pairs"]
    pairs = Store(Path(workspace) / "artifacts").get("pairs", second["artifacts"]["pairs"])
    assert result["training_examples"]["prompts"] == len({pair.prompt.token_ids for pair in read_pairs(pairs.table())})

    both = train("finished", "--name", "both", policy="finished", workspace=workspace)
    assert both["start"] == finished["policy"]["digest"]
    assert both["data"][0]["examples"] == first["pairs"] + second["pairs"]
    assert train("finished:0", policy="both", workspace=workspace)["start"] == both["policy"]["digest"]


def test_what_is_proposed_next_is_another_training(
    ratchet: Callable[..., Said], policy: Path, prefs: Path, tmp_path: Path
) -> None:
    """SimPO has a β of its own, and an odds ratio none: the trainer's would change nothing."""
    losses = {'[{type="simpo"}, {type="odds"}]': "learning_rate=0.0005", '[{type="simpo"}, {type="cpo"}]': "beta=0.05"}
    for loss, proposed in losses.items():
        words = ("--policy", policy, "--workspace", tmp_path / "workspace", *FAST, *sets(f"loss={loss}"))
        code, _, err = ratchet("train", prefs, *words)
        assert code == 0
        assert err.splitlines()[-1].endswith(f" --set {proposed}")


def test_a_recipe_gives_its_trainer(train: Train, prefs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('rounds = 7\n[vars]\nstrength = 0.25\n[policy]\npath = "x"\n[trainer]\nbeta = "${strength}"\n')
    found = train(prefs, "--config", recipe, *sets("epochs=2"))["config"]
    assert found == train(prefs, *sets("beta=0.25", "epochs=2"))["config"]


def test_what_is_dropped_and_cut_is_counted_and_shown(
    ratchet: Callable[..., Said], policy: Path, tmp_path: Path
) -> None:
    bad = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a" * 99, "chosen": "b", "rejected": "c"}]
    data = write(tmp_path / "prefs.jsonl", [*rows(20), *bad])
    code, _, err = ratchet(
        "train", data, "--policy", policy, "--workspace", tmp_path / "workspace", *FAST, "--set", "beta=0.2",
        "--max-prompt", 50,
    )  # fmt: skip
    assert code == 0
    assert "prefs     22      21         0         1         1" in err
    assert "1 of 22 rows dropped, identical" in " ".join(err.split())
    assert "1 of 22 rows kept, truncated_prompt" in " ".join(err.split())
    assert "tensorboard --logdir" in err
    assert "--max-prompt 50 --set beta=0.1" in err and "beta=0.2" not in err  # the next command to try
    assert "log π_ref/π" in err and "KL" not in err  # these completions are not the policy's own


def test_a_data_set_that_is_held_out_is_told_from_one_that_is_trained_on(
    ratchet: Callable[..., Said], policy: Path, prefs: Path, tmp_path: Path
) -> None:
    (tmp_path / "prefs.jsonl").write_text(prefs.read_text())
    asked = ("--policy", policy, "--workspace", tmp_path / "workspace", "--dry-run")
    code, _, err = ratchet("train", prefs, "--held-out", tmp_path / "prefs.jsonl", *asked)
    assert code == 0
    assert [line.split()[:3] for line in err.splitlines() if line.startswith("  prefs")] == [
        ["prefs", "40", "40"], ["prefs", "(held", "out)"]
    ]  # fmt: skip


def test_held_out_prompts_are_evaluated_on_and_never_trained_on(train: Train, prefs: Path, tmp_path: Path) -> None:
    result = train(prefs, "--held-out", 0.25)
    assert (result["training_examples"]["pairs"], result["held_out_examples"]["pairs"]) == (30, 10)
    assert result["held_out_figures"].keys() >= {"loss", "rewards/accuracies", "rewards/margins", "kl"}

    overlapping = write(tmp_path / "test.jsonl", [*rows(2), *rows(5, seed=1)])
    result = train(prefs, "--held-out", overlapping)
    assert (result["training_examples"]["pairs"], result["held_out_examples"]["pairs"]) == (40, 7)
    assert result["held_out_examples"]["prompts_also_trained_on"] == 2


def test_each_data_set_takes_the_beta_of_its_name(train: Train, prefs: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "b.jsonl", rows(20, seed=1))
    plain = train(prefs, f"safe={other}")
    same = train(prefs, f"safe={other}", "--set", "betas.safe=0.1")
    stricter = train(prefs, f"safe={other}", "--set", "betas.safe=1.0")
    assert same["policy"]["digest"] == plain["policy"]["digest"] != stricter["policy"]["digest"]
    assert made(plain, "reference") == 1


# ---------------------------------------------------------------------------------------------- nothing twice
def test_a_training_that_was_killed_goes_on_and_ends_the_same(
    train: Train, policy: Path, prefs: Path, tmp_path: Path
) -> None:
    longer = [*FAST, *sets("epochs=30", "checkpoint_steps=5"), "--json"]
    workspace, done = tmp_path / "killed", dict[Path, tuple[int, int]]()
    for number in (signal.SIGTERM, signal.SIGKILL):
        run = Ratchet(workspace, *longer, command=("train", str(prefs), "--policy", str(policy)))
        before = {file: file.stat().st_mtime_ns for file in workspace.glob("artifacts/train/*/state/state.pt")}
        run.until("artifacts/train/*/state/state.pt")
        while before and before == {file: file.stat().st_mtime_ns for file in before}:
            assert run.process.poll() is None, run.err.read_text()
        run.signal(number)
        assert run.wait() == (128 + number if number == signal.SIGTERM else -number)
        assert "Traceback" not in run.err.read_text()
        assert done.items() <= finished_files(workspace).items()
        done = finished_files(workspace)
    assert not list(workspace.glob("artifacts/train/*/manifest.json"))
    assert any("reference" in file.parts for file in done)

    result = train(prefs, *sets("epochs=30", "checkpoint_steps=5"), workspace=workspace)
    assert done.items() <= finished_files(workspace).items()
    assert result["reference"]["reused"]
    assert result["steps"] == 150
    undisturbed = train(prefs, *sets("epochs=30"))
    assert result["policy"]["digest"] == undisturbed["policy"]["digest"]
    assert result["figures"]["loss"] == undisturbed["figures"]["loss"]


def test_after_its_end_the_same_command_returns_the_same(train: Train, prefs: Path, tmp_path: Path) -> None:
    first = train(prefs)
    files = finished_files(tmp_path / "workspace")
    again = train(write(tmp_path / "renamed.jsonl", rows(40)), "--name", first["name"])  # named by content, not by path
    assert again["training"] == first["training"] | {"reused": True}
    assert again["reference"] == first["reference"] | {"reused": True}
    assert {name: again[name] for name in again.keys() - {"training", "reference", "data"}} == {
        name: first[name] for name in first.keys() - {"training", "reference", "data"}
    }
    assert finished_files(tmp_path / "workspace") == files
    assert json.loads((Path(first["directory"]) / "result.json").read_text()) == again


def test_who_waits_for_another_process_with_the_same_training_says_so(
    policy: Path, prefs: Path, tmp_path: Path
) -> None:
    words = (*FAST, *sets("epochs=2000", "checkpoint_steps=100000"))
    first, second = (
        Ratchet(tmp_path / "workspace", *words, *quiet, command=("train", str(prefs), "--policy", str(policy)))
        for quiet in ((), ("--quiet",))
    )
    until(lambda: any("waiting" in each.err.read_text() for each in (first, second)), second.process)
    waiting, working = (first, second) if "waiting" in first.err.read_text() else (second, first)
    assert re.search(rf"! process \w+ is making {tmp_path}/.*; waiting for it\n", waiting.err.read_text())
    for each in (waiting, working):
        each.signal(signal.SIGTERM)
        assert each.wait() == 128 + signal.SIGTERM
        assert each.err.read_text().endswith(f"{INTERRUPTED}\n")  # in the steps as out of them


def test_a_sweep_shares_one_reference(train: Train, prefs: Path) -> None:
    results = [
        train(prefs),
        train(prefs, *sets("beta=0.3")),
        train(prefs, *sets("learning_rate=1e-4", "epochs=2")),
        train(prefs, "--held-out", 5, "--seed", 3),
        train(prefs, *sets('loss=[{type="ipo_sum"}, {type="nll", weight=0.1}]')),
    ]
    assert (made(results[0], "reference"), made(results[0], "train")) == (1, 5)
    assert [result["reference"]["reused"] for result in results] == [False, True, True, True, True]
    assert len({result["policy"]["digest"] for result in results}) == 5
    per_token = train(prefs, *sets('loss=[{type="ld_dpo"}]'))  # needs the reference token by token: another pass
    assert made(per_token, "reference") == 2


def test_policies_of_equal_weights_and_other_files_share_a_reference_and_no_training(
    train: Train, policy: Path, prefs: Path, tmp_path: Path
) -> None:
    """What is trained is saved with its start's tokenizer; log-probabilities of token ids ask for none."""
    mended = shutil.copytree(policy, tmp_path / "mended")
    (mended / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    plain, chat = train(prefs), train(prefs, policy=mended)
    assert (made(chat, "reference"), made(chat, "train")) == (1, 2)
    assert chat["policy"]["digest"] == plain["policy"]["digest"]
    templates = [load_tokenizer(Path(each["policy"]["path"])).chat_template for each in (plain, chat)]
    assert templates == [None, (mended / "chat_template.jinja").read_text()]


def test_the_reference_can_be_another_policy_or_none(train: Train, policy: Path, prefs: Path, tmp_path: Path) -> None:
    other = perturb(read_policy(policy), tmp_path / "other", seed=1)
    against = train(prefs, "--reference-policy", other.path)
    assert against["reference"]["policy"] == other.digest
    assert abs(against["at_first"]["loss"] - math.log(2)) > 1e-3
    without = train(prefs, *sets("reference=none", 'loss=[{type="simpo"}]'))
    assert without["reference"] is None
    assert "kl" not in without["figures"]
    assert made(without, "reference") == 1
    live = train(prefs, *sets('loss=[{type="tdpo2"}]'))
    assert live["at_first"]["loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_adapters_end_as_a_whole_policy(train: Train, prefs: Path) -> None:
    result = train(prefs, *sets("lora.rank=2", "reference=lora_base"))
    model = AutoModelForCausalLM.from_pretrained(result["policy"]["path"])
    assert not any("lora" in name for name in model.state_dict())
    assert read_policy(Path(result["policy"]["path"])).digest != result["start"]


def test_a_guard_that_ends_a_training_is_told_and_the_policy_kept(train: Train, prefs: Path) -> None:
    result = train(prefs, *sets("guards.margin=1e-6"))
    assert result["state"] == "stopped"
    assert "trainer.guards.margin allows 1e-06" in result["reason"]
    assert (Path(result["directory"]) / "policy" / "config.json").is_file()


def test_the_policy_is_copied_to_a_folder_of_its_own(train: Train, prefs: Path, tmp_path: Path) -> None:
    result = train(prefs, "--out", tmp_path / "deep" / "out")
    assert read_policy(tmp_path / "deep" / "out").digest == result["policy"]["digest"]
    assert not any(file.is_symlink() for file in (tmp_path / "deep" / "out").iterdir())
    assert train(prefs, "--out", tmp_path / "deep" / "out")["policy"] == result["policy"]


def test_a_dry_run_makes_nothing_and_says_what_a_run_will_do(train: Train, prefs: Path, tmp_path: Path) -> None:
    asked = (prefs, "--held-out", 5, *sets("epochs=3"))
    plan = train(*asked, "--dry-run")
    assert not (tmp_path / "workspace").exists()
    assert plan["cached"] == {"reference": False, "training": False}
    assert plan["lengths"]["together"]["longest"] >= plan["lengths"]["prompt"]["longest"]
    assert plan["work"]["tokens"] < plan["work"]["tokens_row_by_row"]

    result = train(*asked)
    lines = (Path(result["directory"]) / "training" / "metrics.jsonl").read_text().splitlines()
    assert plan["work"]["steps"] == len(lines) == result["steps"]
    assert plan["work"]["tokens"] == sum(json.loads(line)["tokens"] for line in lines)
    files = finished_files(tmp_path / "workspace")
    assert train(*asked, "--dry-run")["cached"] == {"reference": True, "training": True}
    assert train(*asked, "--dry-run", *sets("beta=1.0"))["cached"] == {"reference": True, "training": False}
    assert finished_files(tmp_path / "workspace") == files


def test_the_readme_names_every_loss() -> None:
    (terms, _) = get_args(LossConfig)
    types = {term.model_fields["type"].annotation.__args__[0] for term in get_args(terms)}
    table = (ROOT / "README.md").read_text().partition("### Losses")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z0-9_]+)`", table)) >= types


# ---------------------------------------------------------------------------------------------- mistakes
MISTAKES: dict[tuple[str, ...], str] = {
    ("nosuch.jsonl",): "PAIRS 'nosuch.jsonl' leads nowhere; allowed: a file (.jsonl,",
    ("nosuch",): "PAIRS 'nosuch' leads nowhere",
    ("x=nosuch",): "PAIRS 'x=nosuch' leads nowhere",
    ("PREFS", "--set", "bta=1"): "bta: there is no such key (its value is 1); did you mean 'beta'?",
    ("PREFS", "--set", "trainer.beta=-1"): "beta: -1 is not allowed; allowed: a number > 0",
    ("PREFS", "--set", 'loss=[{type="dpo"}]'): 'loss.0.type: "dpo" is not allowed; allowed: "alpha_divergence",',
    ("PREFS", "--config", "nosuch.toml"): "--config 'nosuch.toml' is not a file",
    ("PREFS", "--config", "MIXED"): "mixed.toml: trainer: there is no such key",
    ("PREFS", "--set", "reference=ema"): 'reference: "ema" is an average over rounds',
    ("PREFS", "--set", "reference=lora_base"): "reference 'lora_base' needs adapters",
    ("PREFS", "--set", "reference=none", "--set", 'loss=[{type="tdpo1"}]'): "does not go with loss 'tdpo1'",
    ("PREFS", "--set", "reference=none", "--reference-policy", "POLICY"): '--reference-policy',
    ("PREFS", "--held-out", "1.5"): "--held-out '1.5': allowed: a share of the prompts below 1, a number of prompts",
    ("PREFS", "--held-out", "nosuch"): "--held-out 'nosuch' leads nowhere",
    ("PREFS", "--held-out-split", "test"): "--held-out-split 'test': --held-out is not given; allowed with it: a",
    ("PREFS", "--held-out", "0.1", "--held-out-split", "test"): "--held-out-split 'test': --held-out is 0.1; allowed",
    ("PREFS", "--name", "a/b"): "--name 'a/b': allowed are",
    ("PREFS", "--out", "POLICY"): "is there already and not empty; allowed: a new or an empty folder",
    ("PREFS", "--policy", "nosuch"): "--policy 'nosuch' leads nowhere; allowed: a checkpoint's directory, a run of",
    ("PREFS", "--policy", "EMPTY"): "is a directory without *.safetensors weights",
}  # fmt: skip
BAD_DATA: dict[tuple[str, ...], str] = {
    ("WRONG",): "has the columns text; allowed: chosen, rejected (and prompt",
    ("PREFS", "--held-out", "1000"): "held_out: 1000 of 40 prompts; allowed",
    ("PREFS", "--max-length", "3"): "nothing is left to train on; 40 of 40 rows dropped, too_long",
    ("PREFS", "--split", "test"): "split: 'test' is asked of the one file",
    ("PREFS", "--set", 'loss=[{type="odpo"}]'): "loss 'odpo' reads each pair's margin, and no pair has one; columns: ",
    ("PREFS", "--policy", "ADDED"): "prefs.jsonl' has the id 34, and the model 34 embeddings: its tokenizer has tokens",
    ("KTO",): "loss 'sigmoid' compares pairs, and the data has completions labelled one by one",
}


@pytest.mark.parametrize("arguments", [*MISTAKES, *BAD_DATA], ids=" ".join)
def test_a_mistake_is_one_line_and_makes_nothing(
    arguments: tuple[str, ...], ratchet: Callable[..., Said], policy: Path, prefs: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed.toml").write_text("beta = 1\n[trainer]\nepochs = 2\n")
    added = shutil.copytree(policy, tmp_path / "added")
    tokenizer = load_tokenizer(added)
    tokenizer.add_tokens("yes")
    tokenizer.save_pretrained(added)
    places = {
        "PREFS": prefs, "POLICY": policy, "EMPTY": tmp_path / "empty", "MIXED": tmp_path / "mixed.toml",
        "ADDED": added, "WRONG": write(tmp_path / "wrong.jsonl", [{"text": "a"}]),
        "KTO": write(tmp_path / "kto.jsonl", unpaired(rows(1)[0])),
    }  # fmt: skip
    given = [places.get(argument, argument) for argument in arguments]
    code, out, err = ratchet("train", "--policy", policy, *given, "--workspace", tmp_path / "workspace", "--quiet")
    expected = MISTAKES.get(arguments) or BAD_DATA[arguments]
    assert (code, out) == ((ConfigError if arguments in MISTAKES else DataError).exit_code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert not (tmp_path / "workspace").exists()


def test_mistakes_that_only_the_data_and_the_policy_show(
    ratchet: Callable[..., Said], train: Train, policy: Path, prefs: Path, tmp_path: Path
) -> None:
    def error(*arguments: object) -> str:
        code, _, err = ratchet(
            "train", prefs, "--policy", policy, "--workspace", tmp_path / "workspace", *FAST, "--json", *arguments
        )
        assert code == ConfigError.exit_code
        assert err.count("\n") == 1
        return err

    train(prefs, "--name", "taken", "--out", tmp_path / "out")
    assert "--name 'taken' is another training's" in error("--name", "taken", *sets("beta=0.3"))
    assert f"--out '{tmp_path / 'out'}' is another training's" in error("--out", tmp_path / "out", *sets("beta=0.3"))
    assert "betas.safe: no example is of that source; sources: prefs" in error(*sets("betas.safe=0.3"))
    assert "--max-length 999: the model takes at most 256 tokens" in error("--max-length", 999)
    stranger = make_policy(tmp_path / "stranger", alphabet="ab ", layers=1)
    assert "--reference-policy has another vocabulary" in error("--reference-policy", stranger.path)
