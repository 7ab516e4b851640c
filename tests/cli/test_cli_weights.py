"""One run, one number: every command takes the same weights, and says which."""

import json

import pytest
import torch

import csham as library
from csham.training.checkpoints import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """A run whose chosen epoch answers otherwise than its last: the head of the former is turned round."""
    from csham.cli import main

    run = tmp_path_factory.mktemp("weights") / "run"
    assert main([*small, "--epochs", "4", "--precision", "fp32", "--run", str(run)]) == 0
    content = load_checkpoint(run / "checkpoints" / "best.ckpt")
    names = [name for name in content["model"] if name.startswith("fc")]
    content["model"].update({name: -content["model"][name] for name in names})
    save_checkpoint(run / "checkpoints" / "best.ckpt", content)
    return run


def answers_of(run, images, csham, *words):
    lines = csham("predict", run, images, "--json", *words)[1].splitlines()
    return {line["path"]: line["predictions"][0]["class"] for line in map(json.loads, lines)}


def top1(answers):
    return 100 * sum(path.split("/")[-2] == name for path, name in answers.items()) / len(answers)


def test_one_number_everywhere(csham, run, images, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    measured = json.loads(csham("evaluate", run, "--json")[1])
    assert (measured["top1"], measured["weights"], measured["epoch"]) == (summary["top1"], "last", 4)
    everything = json.loads(csham("evaluate", run, images, "--part", "all", "--json")[1])
    answers = answers_of(run, images, csham)
    assert top1(answers) == pytest.approx(everything["top1"])
    assert answers_of(run, images, csham, "--weights", "best") != answers

    shared = json.loads(csham("share", run, tmp_path / "shared", "--json")[1])
    assert (shared["top1"], shared["weights"], shared["epoch"]) == (summary["top1"], "last", 4)
    assert answers_of(tmp_path / "shared", images, csham) == answers
    assert library.load(tmp_path / "shared").epoch == 4

    path = tmp_path / "w.safetensors"
    words = ("--format", "safetensors", "--samples", "4", "--output", path)
    exported = json.loads(csham("export", run, *words, "--json")[1])
    assert (exported["weights"], exported["epoch"]) == ("last", 4)
    assert answers_of(path, images, csham) == answers


def test_the_other_weights_keep_their_name_wherever_they_go(csham, run, tmp_path):
    best = library.load(run, weights="best")
    folder, file = tmp_path / "shared", tmp_path / "w.safetensors"
    assert csham("share", run, folder, "--weights", "best")[0] == 0
    words = ("--format", "safetensors", "--samples", "4", "--output", file, "--weights", "best", "--quiet")
    assert csham("export", run, *words)[0] == 0
    x = torch.randn(2, 3, 16, 16)
    for place in (folder, file, folder / "model.safetensors"):
        found = library.load(place)
        assert (found.weights, found.epoch) == ("best", best.epoch)
        assert torch.equal(found.network(x), best.network(x))


@pytest.mark.parametrize("command", ["predict", "explain", "export", "app", "evaluate", "share"])
def test_every_command_takes_the_same_words(csham, run, images, tmp_path, command):
    more = {"predict": [images], "explain": [images], "share": [tmp_path / "a"]}.get(command, [])
    code, _, err = csham(command, run, *more, "--weights", "frist")
    assert (code, err) == (2, "error: unknown weights 'frist'. Known: last, best.\n")
