"""The page's server, a process of its own, asked as browsers and others ask it: by HTTP."""

import http.client
import json
import signal
import subprocess
import sys
import uuid
from functools import partial

import pytest
from PIL import Image

from csham.app.serve import MAX_UPLOAD

pytestmark = pytest.mark.slow


class Server:
    """A process that serves the page of one run."""

    def __init__(self, run, *words):
        command = [sys.executable, "-m", "csham", "app", str(run), "--device", "cpu", *words]
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
        return response.status, response.read().decode()

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
        return self.call([file, "Grad-CAM"])

    def call(self, data):
        """Call what the page calls when it has an image."""
        session = uuid.uuid4().hex[:10]
        body = json.dumps({"data": data, "fn_index": 0, "session_hash": session}).encode()
        status, answer = self.ask("POST", "/gradio_api/queue/join", body, **{"Content-Type": "application/json"})
        assert status == 200, answer
        _, events = self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")
        told = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")]
        [end] = [event for event in told if event["msg"] == "process_completed"]
        return end

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
    assert {one["label"] for one in end["output"]["data"][1]["confidences"]} == {"ant", "bee", "cow"}


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
        end = server.call([{"path": path, "meta": {"_type": "gradio.FileData"}}, "Grad-CAM"])
        assert not end["success"]
