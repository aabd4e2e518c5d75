"""pacs-node inside Orthanc: the script for its Python plugin ("PythonScript" in Orthanc's configuration).

Everything is done by another process, ``pacs_node.orthanc_host``, which this script starts, keeps running and
ends. Here it is only told that something was stored, and asked what comes in under ``/pacs-node/``. Nothing
else of Orthanc is called: the plugin holds Python's lock through every native call. Nothing is imported
but the standard library, so the Python that runs the node may be any.

Orthanc's configuration needs a section "PacsNode": the keys of pacs-node.yaml themselves, or
``"config": "/path/of/pacs-node.yaml"``; and, unless pacs-node lies beside this file, ``"python"``: the
interpreter of the environment that it is installed in (or PACS_NODE_PYTHON in Orthanc's own environment).
"""

import contextlib
import json
import os
import queue
import select
import shutil
import subprocess
import threading
import time
from pathlib import Path

import orthanc

WRONG_CONFIGURATION = 2  # the host's exit code
START_AGAIN_SECONDS, LONGEST_SECONDS, STEADY_SECONDS = 1.0, 30.0, 60.0
ANSWER_SECONDS, STOP_SECONDS = 120.0, 3.0
ROOT = Path(os.path.realpath(__file__)).parent.parent

BUTTON = """
$('#study,#series').live('pagebeforecreate', function() {
  var page = $(this), level = page.attr('id') === 'study' ? 'studies' : 'series';
  var button = $('<a href="#">').text('Analyse with pacs-node');
  $('<li data-icon="search">').append(button).insertBefore(page.find('a[id$="-delete"]').closest('li'));
  button.click(function(event) {
    event.preventDefault();
    $.ajax({
      url: '../pacs-node/' + level + '/' + $.mobile.pageData.uuid + '/analyze',
      type: 'POST', dataType: 'json',
      success: function(answer) {
        var reasons = $.map(answer.instances, function(i) { return i.reason || null; });
        alert('pacs-node: ' + answer.taken + ' to be analysed, ' + answer.repeated + ' known already.' +
              (reasons.length ? '\\n' + $.unique(reasons).join('\\n') : ''));
      },
      error: function(request) { alert('pacs-node: ' + (request.responseText || 'no answer')); }
    });
  });
});
"""


class Held:
    """How long Orthanc's threads, or Python's lock, were held here."""

    def __init__(self):
        self.seconds, self.longest, self.calls, self.studies = 0.0, 0.0, 0, 0

    def __enter__(self):
        self._began = time.perf_counter()

    def __exit__(self, *raised):
        took = time.perf_counter() - self._began
        self.seconds, self.longest, self.calls = self.seconds + took, max(self.longest, took), self.calls + 1

    def as_dict(self):
        return {
            "seconds": round(self.seconds, 6),
            "longest": round(self.longest, 6),
            "calls": self.calls,
            "studies": self.studies,
            "seconds_per_study": round(self.seconds / max(self.studies, 1), 6),
        }


class Host:
    """The other process."""

    def __init__(self):
        self.held, self.logging = Held(), Held()
        self.errors = []
        self._setup, self._process, self._starts = b"", None, 0
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._waiting, self._number = {}, 0

    def start(self):
        """At ORTHANC_STARTED: before it, Orthanc's REST API cannot be called."""
        configuration = json.loads(orthanc.GetConfiguration())
        path = getattr(orthanc, "GetConfigurationPath", str)() or ""
        token = getattr(orthanc, "GenerateRestApiAuthorizationToken", None)
        if token is not None:
            authorization = token()
        else:
            users = configuration.get("RegisteredUsers") or {}
            authorization = next((_basic(*user) for user in users.items()), None)
        last = json.loads(orthanc.RestApiGet("/changes?last"))["Last"]
        setup = {
            "configuration": configuration,
            "path": path,
            "authorization": authorization,
            "last_change": last,
        }
        self._setup = json.dumps(setup).encode() + b"\n"
        self._python = _python(configuration.get("PacsNode"))
        threading.Thread(target=self._keep_running, name="pacs-node", daemon=True).start()

    def wake(self):
        """Say that something was stored. Never waits: what is not said is found a little later."""
        self._write(b"\n")

    def ask(self, method, path, query):
        """Status and body (JSON) for a request."""
        reply = queue.Queue(1)
        with self._lock:
            self._number += 1
            number = self._number
            self._waiting[number] = reply
        request = json.dumps({"id": number, "method": method, "path": path, "query": query}).encode() + b"\n"
        try:
            if len(request) > select.PIPE_BUF:
                return 414, {"error": "the request is too long"}
            if not self._write(request):
                return 503, {"error": "pacs-node does not run", "log": self.errors[-20:]}
            return reply.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            return 504, {"error": f"pacs-node has not answered within {ANSWER_SECONDS:g} seconds"}
        finally:
            self._waiting.pop(number, None)

    def stop(self):
        """At ORTHANC_STOPPED. Unfinished jobs go on at the next start, so nobody waits for them."""
        self._stopping.set()
        self._release()
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # its worker notices, and ends

    def _write(self, line):
        process = self._process
        if process is None or process.poll() is not None:
            return False
        try:
            # Lines are shorter than PIPE_BUF, so that they are written whole or not at all.
            return os.write(process.stdin.fileno(), line) == len(line)
        except OSError:
            return False

    def _keep_running(self):
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._run()
            if self._stopping.is_set():
                return
            if code == WRONG_CONFIGURATION:
                self._log(
                    "ERROR",
                    "not running: correct its configuration, then restart Orthanc",
                )
                return
            failures = 0 if time.monotonic() - began > STEADY_SECONDS else failures + 1
            delay = min(LONGEST_SECONDS, START_AGAIN_SECONDS * 2 ** (failures - 1)) if failures else 0.0
            self._log("ERROR", f"pacs-node's process has ended ({code}); it is started again in {delay:g} s")
            self._stopping.wait(delay)

    def _run(self):
        environment = dict(os.environ)
        if (ROOT / "pacs_node").is_dir():
            others = os.environ.get("PYTHONPATH")
            environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{others}" if others else str(ROOT)
        try:
            process = subprocess.Popen(
                [self._python, "-m", "pacs_node.orthanc_host.host"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            self._log("ERROR", f"{self._python}: {error.strerror}. Correct PacsNode.python")
            return WRONG_CONFIGURATION
        self._starts += 1
        threading.Thread(target=self._pass_on_log, args=(process.stderr,), daemon=True).start()
        threading.Thread(target=self._take_answers, args=(process.stdout,), daemon=True).start()
        try:
            process.stdin.write(self._setup)
            process.stdin.flush()
            os.set_blocking(process.stdin.fileno(), False)
            self._process = process
        except BrokenPipeError:
            pass  # it has ended already, and its log says why
        code = process.wait()
        self._release()
        return code

    def _release(self):
        """Let those go who wait for an answer that will not come."""
        for reply in list(self._waiting.values()):
            with contextlib.suppress(queue.Full):
                reply.put_nowait((503, {"error": "pacs-node has ended; try again", "log": self.errors[-20:]}))

    def _take_answers(self, stream):
        for line in stream:
            answer = json.loads(line)
            waiting = self._waiting.get(answer["id"])
            if waiting is not None:
                with contextlib.suppress(queue.Full):
                    waiting.put_nowait((answer["status"], answer["body"]))

    def _pass_on_log(self, stream):
        for line in stream:
            text = line.decode("utf-8", "replace").rstrip()
            words = text.split(None, 2)
            self._log(words[1] if len(words) == 3 else "ERROR", text)

    def _log(self, level, text):
        if level == "ERROR":
            self.errors = [*self.errors[-49:], text]
        if self._stopping.is_set():
            return  # Orthanc does not end while it is called
        write = {"DEBUG": orthanc.LogInfo, "ERROR": orthanc.LogError}.get(level, orthanc.LogWarning)
        with self.logging:
            write("pacs-node: " + text)

    def as_dict(self):
        return {"held": self.held.as_dict(), "logging": self.logging.as_dict(), "starts": self._starts}


def _python(section):
    section = section if isinstance(section, dict) else {}
    named = section.get("python") or os.environ.get("PACS_NODE_PYTHON")
    beside = ROOT / ".venv" / "bin" / "python"
    return str(named or (beside if beside.exists() else shutil.which("python3") or "python3"))


def _basic(user, password):
    import base64

    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def on_change(change, level, resource):
    if change == orthanc.ChangeType.ORTHANC_STARTED:
        host.start()
    elif change == orthanc.ChangeType.ORTHANC_STOPPED:
        host.stop()
    elif change == orthanc.ChangeType.NEW_INSTANCE:
        with host.held:
            host.wake()
    elif change == orthanc.ChangeType.NEW_STUDY:
        host.held.studies += 1


def on_request(output, uri, **request):
    path = uri.partition("/pacs-node")[2]
    status, body = host.ask(request["method"], path, dict(request.get("get") or {}))
    if path.strip("/") in ("", "status") and isinstance(body, dict):
        body = {**body, "plugin": host.as_dict()}
    text = json.dumps(body, indent=1)
    if status == 405:  # which the plugin's library sends only so
        output.SendMethodNotAllowed(body["use"])
    elif status == 200:
        output.AnswerBuffer(text, "application/json")
    else:
        output.SendHttpStatus(status, text, len(text))


host = Host()
orthanc.RegisterOnChangeCallback(on_change)
orthanc.RegisterRestCallback("/pacs-node(/.*)?", on_request)
if hasattr(orthanc, "ExtendOrthancExplorer"):
    orthanc.ExtendOrthancExplorer(BUTTON)
