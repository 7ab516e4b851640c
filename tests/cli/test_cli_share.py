import ast
import json
import shlex
import shutil


def test_a_folder_and_what_to_do_with_it(csham, finished, tmp_path):
    code, out, _ = csham("share", finished, tmp_path / "a", "--repo", "user/name")
    assert code == 0
    for word in ("resnet20, last epoch (1)", "README.md", "no licence was given", "csham.load", "hf upload user/name"):
        assert word in out
    code, out, _ = csham("share", finished, tmp_path / "b", "--licence", "mit", "--quiet")
    assert (code, "hf upload" in out) == (0, False)


def test_words_to_paste_are_quoted(csham, finished, tmp_path):
    run, folder = shutil.copytree(finished, tmp_path / "my run"), tmp_path / "it's mine"
    code, out, _ = csham("share", run, folder)
    assert code == 0
    top1 = json.loads((run / "summary.json").read_text())["top1"]
    assert f", {top1:.2f}% top-1 on the test images, in {folder}\n" in out
    load, upload = (line.partition(": ")[2] for line in out.splitlines()[-2:])
    assert ast.literal_eval(load.removeprefix("csham.load")) == str(folder)
    assert shlex.split(upload) == ["hf", "upload", "user/name", str(folder)]
    (run / "summary.json").unlink()
    _, _, err = csham("share", run, tmp_path / "other")
    assert f"csham train --resume '{run}' goes on" in err


def test_json(csham, finished, tmp_path):
    code, out, _ = csham("share", finished, tmp_path / "a", "--weights", "last", "--license", "mit", "--json")
    written, summary = json.loads(out), json.loads((finished / "summary.json").read_text())
    assert code == 0
    assert (written["top1"], written["weights"], written["license"]) == (summary["top1"], "last", "mit")
    assert written["files"] == {path.name: path.stat().st_size for path in (tmp_path / "a").iterdir()}


def test_what_cannot_be_shared_ends_with_code_2(csham, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "summary.json").unlink()
    for words, message in (
        ((tmp_path / "nothing", tmp_path / "a"), "no run folder"),
        ((run, tmp_path / "a"), "has not finished"),
        ((finished, tmp_path), "not an empty folder"),
        ((finished, tmp_path / "a", "--weights", "frist"), "Known: last, best"),
        ((finished, tmp_path / "a", "--license", "my own"), "--license takes"),
    ):
        code, out, err = csham("share", *words)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert message in err
    assert not (tmp_path / "a").exists()


def test_a_hostile_folder_ends_with_code_2(csham, finished, copy_unlisted, tmp_path):
    run = copy_unlisted(finished, tmp_path / "run")
    (run / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    code, _, err = csham("share", run, tmp_path / "a")
    assert code == 2
    assert "damaged or not a safetensors file" in err
    assert not (tmp_path / "a").exists()
