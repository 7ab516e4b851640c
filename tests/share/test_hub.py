"""The Hub's client, against a server of our own: what is pushed is what was shared, and it comes back."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import file_download

import csham
from csham.errors import UserError
from csham.files import SUMS
from csham.share import HubModel, share

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as the client asks for: one repository, its files in ``server.files``."""

    def log_message(self, *args):
        pass

    def answer(self, content, code=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        files, path = self.server.files, self.path.partition("?")[0]
        self.server.asked.append(path)
        if "/resolve/" in path:
            name = path.rpartition("/")[2]
            if name in files:
                return self.answer(files[name], X_Repo_Commit=COMMIT, ETag=f'"{hash(files[name])}"')
        elif path.startswith("/api/models/user/name/tree/"):
            entries = [{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in files.items()]
            return self.answer(entries)
        elif path.startswith("/api/models/user/name"):
            return self.answer({"id": "user/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/user/name", "id": "user/name"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/user/name/commit/{COMMIT}"
            self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.answer({})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # older ones keep a copy there
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=module is constants)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def shared(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("share") / "shared"
    share(finished, folder, license="mit", repo="user/name")
    return folder


def test_saved_and_back(shared, finished, tmp_path):
    model = HubModel.from_run(finished, license="mit", repo="user/name")
    model.save_pretrained(tmp_path / "again")
    for name in ("config.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (shared / name).read_bytes(), name
    back = HubModel.from_pretrained(tmp_path / "again")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(back(x), model(x))
    assert back.trained.classes == ["ant", "bee", "cow"]
    with pytest.raises(UserError, match=r"HubModel.from_run takes a run folder"):
        HubModel.from_pretrained(finished)


def test_pushed_and_back(hub, shared, finished):
    model = HubModel.from_pretrained(shared)
    assert "user/name" in model.push_to_hub("user/name", token="hf_test")
    assert sorted(hub.files) == sorted(path.name for path in shared.iterdir())
    assert hub.files["README.md"] == (shared / "README.md").read_bytes()
    hub.files["pytorch_model.bin"] = hub.files["modeling.py"] = b"cos\nsystem\n."
    trained = csham.load("hf:user/name")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(trained.network(x), model(x))
    assert not [path for path in hub.asked if "pytorch_model" in path or "modeling" in path]
    assert torch.equal(HubModel.from_pretrained("user/name")(x), model(x))
    assert torch.equal(csham.load("hf:user/name@main").network(x), model(x))


def test_a_hostile_repository_is_refused(hub, shared):
    hub.files.update({path.name: path.read_bytes() for path in shared.iterdir()})
    del hub.files[SUMS]  # who is hostile has none
    hub.files["config.json"] = hub.files["config.json"].replace(b'"resnet20"', b'"hf-hub:evil/model"')
    with pytest.raises(UserError, match="backbone should be the name of a network"):
        csham.load("hf:user/name")


def test_what_is_not_there(hub):
    with pytest.raises(UserError, match="hf:user/other could not be had"):
        csham.load("hf:user/other")
    with pytest.raises(UserError, match=r"has no file config.json|no run folder|not a run folder"):
        csham.load("hf:user/name")
    for name in ("hf:", "hf:name", "hf:a/b/c", "hf:../..", "hf:user/na me"):
        with pytest.raises(UserError, match=r"names no repository|could not be had"):
            csham.load(name)


def test_other_weights_do_not_go_under_the_same_card(shared, tmp_path):
    model = HubModel.from_pretrained(shared)
    with torch.no_grad():
        model.network.fc.bias.add_(1)
    with pytest.raises(UserError, match="the weights have changed"):
        model.save_pretrained(tmp_path / "a")
    HubModel(model.trained, card="# mine").save_pretrained(tmp_path / "b")
    assert (tmp_path / "b/README.md").read_text() == "# mine"
    HubModel(model.trained).save_pretrained(tmp_path / "c")
    assert "31." not in (tmp_path / "c/README.md").read_text()
    assert csham.load(tmp_path / "c").classes == ["ant", "bee", "cow"]


def test_a_hostile_folder_is_refused_before_the_mixin_reads_it(shared, tmp_path):
    folder = shutil.copytree(shared, tmp_path / "a")
    (folder / SUMS).unlink()
    (folder / "config.json").write_bytes(b"[" * 200_000)
    with pytest.raises(UserError, match="nested too deeply"):
        HubModel.from_pretrained(folder)
