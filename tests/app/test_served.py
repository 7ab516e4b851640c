"""The page's server, a process of its own, asked as browsers and others ask it: by HTTP."""

import http.client
import json
import signal
import subprocess
import sys
import uuid
from functools import cached_property, partial

import pytest
from PIL import Image

import csham
from csham import ops
from csham.app.sentences import in_markdown
from csham.app.serve import MAX_UPLOAD
from csham.share import share

pytestmark = pytest.mark.slow


class Server:
    """A process that serves the page of some runs."""

    def __init__(self, *words):
        command = [sys.executable, "-m", "csham", "app", *map(str, words), "--device", "cpu"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # What a shell has put into the background ignores Ctrl-C, and so do the processes that it starts.
        as_in_front = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        self.process = subprocess.Popen(command, **pipes, text=True, preexec_fn=as_in_front)  # noqa: PLW1509
        self.address = self.process.stdout.readline().strip()
        self.port = int(self.address.rstrip("/").rpartition(":")[2])

    def ask(self, method, path, body=None, host=None, **headers):
        """Return the status, and the content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": host or f"127.0.0.1:{self.port}", **headers}.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")

    def upload(self, name, content):
        """Upload a file as the page does, and return the status, and where it lies."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return self.ask("POST", "/gradio_api/upload", body, **{"Content-Type": kind})

    def explain(self, name, content):
        """Upload a file and ask about it; return what the page is told: the answer, or the error."""
        status, answer = self.upload(name, content)
        assert status == 200, answer
        [path] = json.loads(answer)
        file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        return self.call("answer", [file, "Grad-CAM"])

    def call(self, function, data, session=None, **more):
        """Call what the page calls, as when it has an image."""
        session = session or uuid.uuid4().hex[:10]
        body = json.dumps({"data": data, "fn_index": self.functions[function], "session_hash": session, **more})
        kind = {"Content-Type": "application/json"}
        status, answer = self.ask("POST", "/gradio_api/queue/join", body.encode(), **kind)
        assert status == 200, answer
        _, events = self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")
        told = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")]
        [end] = [event for event in told if event["msg"] == "process_completed"]
        return end

    def choose(self, index):
        """Choose an example."""
        return self.call("choose", [], event_data={"index": index, "value": None})

    def chosen(self, index):
        """Choose an example; return what the page then shows."""
        [picture] = self.choose(index)["output"]["data"]
        return self.call("answer", [picture, "Most to see"])["output"]["data"]

    @cached_property
    def functions(self):
        """What the page can call, by its name in the code."""
        _, config = self.ask("GET", "/config")
        return {one["api_name"]: one["id"] for one in json.loads(config)["dependencies"]}

    def stop(self):
        """End it as Ctrl-C does, and return what it said."""
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=60)[1]


@pytest.fixture(scope="module")
def server(finished):
    server = Server(finished, "--allow-host", "lab.example")
    yield server
    server.stop()
    assert server.process.returncode == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:{port}", "localhost:{port}", "lab.example", "LAB.example:80"])
def test_names_of_this_machine_are_answered(server, host):
    status, page = server.ask("GET", "/", host=host.format(port=server.port))
    assert status == 200
    assert "csham: resnet20" in page


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "x.lab.example", ""])
def test_a_name_that_somebody_else_gave_this_machine_is_not(server, host):
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"):
        status, content = server.ask("GET", path, host=host.format(port=server.port) or " ")
        assert status == 400, path
        assert "resnet20" not in content


def test_an_image_is_answered(server, images):
    end = server.explain("bee.png", (images / "bee" / "3.png").read_bytes())
    assert end["success"]
    _, together, words, answers, *_ = end["output"]["data"]
    assert not together
    assert words.startswith("It says **")
    assert {one["label"] for one in answers["confidences"]} == {"ant", "bee", "cow"}


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    path = tmp_path_factory.mktemp("bomb") / "bomb.png"
    Image.new("1", (13000, 13000)).save(path)
    return path.read_bytes()


FILES = {
    "empty.png": (b"", "empty file (0 bytes)"),
    "text.png": (b"Dear network,\n", "not an image that Pillow can read"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image that Pillow can read"),
    "a<b>&.png": (b"Dear network,\n", "not an image that Pillow can read"),
    "bomb.png": (None, "too many pixels (169 million, and at most 89.5 are decoded)"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_image_is_named_with_the_reason(server, bomb, name):
    content, reason = FILES[name]
    end = server.explain(name, bomb if content is None else content)
    assert not end["success"]
    assert end["output"]["title"] == "This image cannot be used"
    # The page takes errors for HTML.
    shown = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert end["output"]["error"] == f"{shown}: {reason}."


def test_a_file_that_is_too_large_is_refused(server):
    status, answer = server.upload("large.png", bytes(MAX_UPLOAD + 1))
    assert status == 413
    assert "/tmp" not in answer


def test_a_path_that_was_not_uploaded_is_refused(server, images):
    for path in (str(images / "bee" / "3.png"), "/etc/hostname", "no/such"):
        end = server.call("answer", [{"path": path, "meta": {"_type": "gradio.FileData"}}, "Grad-CAM"])
        assert not end["success"]


def pictures(server):
    """Open the page, and return its examples: class and path of each."""
    end = server.call("open", [])
    gallery, note = end["output"]["data"]
    assert note == "Images of the test part of animals, on which this network was not trained."
    return [(one["caption"], one["image"]["path"]) for one in gallery["value"]]


def test_it_opens_with_images_of_the_test_part_and_an_answer(server):
    examples = pictures(server)
    assert sorted(answer for answer, _ in examples) == ["ant", "ant", "bee", "bee", "cow", "cow"]
    for _, path in examples:
        assert server.ask("GET", f"/gradio_api/file={path}")[0] == 200
        assert server.ask("GET", f"/gradio_api/file={path}", host="evil.example")[0] == 400
    [picture] = server.call("first", [None])["output"]["data"]
    said = server.call("answer", [picture, "Most to see"])["output"]["data"]
    assert said[2].startswith("It says **")
    assert said[-1]["selected_index"] == 0
    assert server.chosen(0)[2:4] == said[2:4]
    assert server.call("first", [picture])["output"]["data"] == [{"__type__": "update"}]  # somebody was faster


def test_an_example_is_answered_with_what_it_is(server):
    for index, (answer, _) in enumerate(pictures(server)):
        _, _, words, answers, picture, *_, gallery = server.chosen(index)
        assert gallery["selected_index"] == index
        right = answers["label"] == answer
        assert (", which is right; " if right else f", which is wrong: it is **{answer}**; ") in words
        assert words.endswith("; no attention attached.")
        assert picture["alt_text"].startswith(f"Grad-CAM of {answers['label']} over the image")


def test_an_image_that_is_taken_away_leaves_nothing(server):
    _, together, words, answers, *_, gallery = server.call("answer", [None, "Most to see"])["output"]["data"]
    assert (together, words, answers) == ("", "Drop an image, or paste one.", {})
    assert gallery["selected_index"] is None


@pytest.mark.parametrize("index", [6, -1, 10**30, "0", None, [0, 1], 0.5, True, {"a": 1}])
def test_an_example_that_is_none_is_refused(server, index):
    end = server.choose(index)
    assert not end["success"]
    assert end["output"]["error"] == "There is no such example."


@pytest.fixture(scope="module")
def several(finished, attended, tmp_path_factory):
    shared = tmp_path_factory.mktemp("shared") / "shared"
    share(finished, shared)
    server = Server(attended, finished, shared)
    yield server
    server.stop()
    assert server.process.returncode == 0


def test_several_runs_answer_the_same_image(several, images, attended, finished):
    _, page = several.ask("GET", "/config")
    assert "3 networks, one image" in page
    texts = [component["props"].get("value") for component in json.loads(page)["components"]]
    for name in ("resnet20 + csham (transfer)", "resnet20 in finished", "resnet20 in shared"):
        assert f"## {in_markdown(name)}" in texts
    path = images / "bee" / "3.png"
    _, together, *rest = several.explain("bee.png", path.read_bytes())["output"]["data"]
    answers, pictures = rest[1:6:2], rest[6:15:3]
    for run, answer in zip((attended, finished, finished), answers, strict=True):
        network = csham.load(run)
        with ops.use_kernels("reference"):
            shares = network.probabilities([path])[0]
        assert answer["label"] == network.classes[int(shares.argmax())]
        assert answer["confidences"][0]["confidence"] == pytest.approx(float(shares.max()), abs=0.01)
    assert together.startswith("All 3 say" if len({one["label"] for one in answers}) == 1 else "They differ: ")
    assert len({picture["value"]["path"] for picture in pictures}) == 2  # the shared one is the same


@pytest.fixture
def bare(finished):
    server = Server(finished, "--no-examples", "--quiet")
    yield server
    assert not server.stop()


def test_no_examples_where_they_are_not_wanted(bare):
    gallery, note = bare.call("open", [])["output"]["data"]
    assert (gallery["value"], gallery["visible"], note) == ([], False, "")
    assert bare.call("first", [None])["output"]["data"] == [{"__type__": "update"}]
    assert not bare.choose(0)["success"]


def test_the_examples_of_several_runs(several):
    _, note = several.call("open", [])["output"]["data"]
    assert note.endswith("animals; what resnet20 in shared learnt from are others, or not known.")
