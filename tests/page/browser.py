"""Headless Chromium over the DevTools protocol, by a pipe, with the standard library only."""
import base64
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {  # name: (virtual key code, text)
    "Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), "ArrowUp": (38, ""), "ArrowDown": (40, ""),
    "ArrowLeft": (37, ""), "ArrowRight": (39, ""), "Home": (36, ""), "End": (35, ""), " ": (32, " "),
}
SHIFT = 8


def find():
    """The path of a browser, or None. PAGE_BROWSER names another one."""
    for name in (os.environ.get("PAGE_BROWSER", ""), *NAMES):
        path = shutil.which(name) if name else None
        if path:
            return path
    return None


class Browser:
    """One browser process. Pages have storage of their own each."""

    def __init__(self, path):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        self.profile = tempfile.TemporaryDirectory(prefix="moeserve-page-", ignore_cleanup_errors=True)
        # Chromium reads the protocol from descriptor 3 and writes it to descriptor 4.
        shell = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        options = ["--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu",
                   "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
                   "--disable-component-update", "--hide-scrollbars", "--mute-audio",
                   "--font-render-hinting=none", f"--user-data-dir={self.profile.name}"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # which Chromium does not have for root
        self.process = subprocess.Popen(["sh", "-c", shell, "sh", path, *options, "about:blank"],
                                        pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self._id = 0
        self._lock = threading.Lock()
        self._answers = {}
        self._sessions = {}
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self):
        rest = b""
        while True:
            data = os.read(self._read, 1 << 16)
            if not data:
                break
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers.pop(message["id"]).put(message)
                elif message.get("sessionId") in self._sessions:
                    self._sessions[message["sessionId"]].on_event(message["method"], message["params"])

    def call(self, method, params=None, session=None, timeout_s=30):
        answer = queue.Queue()
        with self._lock:
            self._id += 1
            self._answers[self._id] = answer
            message = {"id": self._id, "method": method, "params": params or {}}
            if session:
                message["sessionId"] = session
            os.write(self._write, json.dumps(message).encode() + b"\0")
        result = answer.get(timeout=timeout_s)
        if "error" in result:
            raise RuntimeError(f"{method}: {result['error']['message']}")
        return result["result"]

    def page(self, **how):
        return Page(self, **how)

    def close(self):
        try:
            self.call("Browser.close", timeout_s=5)
            self.process.wait(10)
        except (queue.Empty, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.profile.cleanup()


class Page:
    """One tab, and what it logged and loaded."""

    def __init__(self, browser, width=1280, height=800, dark=False, mobile=False, reduced_motion=False):
        self.browser = browser
        self.complaints = []  # of the console: errors, exceptions, violations of the policy
        self.requests = []    # URLs
        self.context = browser.call("Target.createBrowserContext")["browserContextId"]
        self.target = browser.call("Target.createTarget",
                                   {"url": "about:blank", "browserContextId": self.context})["targetId"]
        self.session = browser.call("Target.attachToTarget",
                                    {"targetId": self.target, "flatten": True})["sessionId"]
        browser._sessions[self.session] = self
        for domain in ("Page", "Runtime", "Log", "Network", "DOM", "Accessibility"):
            self.call(domain + ".enable")
        self.call("Emulation.setFocusEmulationEnabled", {"enabled": True})
        self.size(width, height, mobile)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                    {"name": "prefers-reduced-motion", "value": "reduce" if reduced_motion else "no-preference"}]
        self.call("Emulation.setEmulatedMedia", {"features": features})

    def call(self, method, params=None):
        return self.browser.call(method, params, self.session)

    def on_event(self, method, params):
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a)) for a in params["args"]))
        elif method == "Log.entryAdded":
            entry = params["entry"]
            # A status of 400 and above is no fault of the page.
            if entry["source"] != "network" and entry["level"] in ("error", "warning"):
                self.complaints.append(entry["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def size(self, width, height, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride",
                  {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile})
        self.call("Emulation.setTouchEmulationEnabled", {"enabled": mobile})

    def open(self, url):
        self.call("Page.navigate", {"url": url})
        self.wait("document.readyState === 'complete'")

    def eval(self, expression):
        result = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True})
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(f"{expression}: {details.get('exception', {}).get('description', details['text'])}")
        return result["result"].get("value")

    def wait(self, expression, timeout_s=15):
        """Until the expression is true; its value."""
        end = time.monotonic() + timeout_s
        while True:
            value = self.eval(expression)
            if value:
                return value
            if time.monotonic() > end:
                raise AssertionError(f"not within {timeout_s} s: {expression}")
            time.sleep(0.03)

    def text(self, selector):
        return self.eval(f"document.querySelector({json.dumps(selector)})?.innerText")

    def key(self, name, modifiers=0):
        code, text = KEYS[name] if name in KEYS else (ord(name.upper()), name)
        base = {"key": name, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", {**base, "type": "keyDown" if text else "rawKeyDown", "text": text})
        self.call("Input.dispatchKeyEvent", {**base, "type": "keyUp"})

    def write(self, text):
        self.call("Input.insertText", {"text": text})

    def click(self, selector):
        box = self.eval(f"(() => {{ const n = document.querySelector({json.dumps(selector)});"
                        "n.scrollIntoView({block: 'nearest'}); const r = n.getBoundingClientRect();"
                        "return [r.x + r.width / 2, r.y + r.height / 2] })()")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent",
                      {"type": kind, "x": box[0], "y": box[1], "button": "left", "clickCount": 1})

    def click_text(self, text):
        """The visible button with this text."""
        found = self.eval(f"(() => {{ const b = [...document.querySelectorAll('button')].filter(b => b.offsetParent &&"
                          f" b.textContent === {json.dumps(text)}).at(-1); document.querySelectorAll('[data-here]')"
                          ".forEach(n => n.removeAttribute('data-here')); b?.setAttribute('data-here', ''); return !!b })()")
        if not found:
            raise AssertionError(f"there is no button '{text}'")
        self.click("[data-here]")

    def shot(self, path):
        data = self.call("Page.captureScreenshot", {"format": "png"})["data"]
        with open(path, "wb") as f:
            f.write(base64.b64decode(data))

    def controls(self):
        """(role, name) of everything that takes focus, from the accessibility tree."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        result = []
        for node in nodes:
            focusable = any(p["name"] == "focusable" and p["value"].get("value") for p in node.get("properties", []))
            if focusable and not node.get("ignored") and node["role"]["value"] != "RootWebArea":
                result.append((node["role"]["value"], node.get("name", {}).get("value", "").strip()))
        return result

    def close(self):
        self.browser.call("Target.closeTarget", {"targetId": self.target})
        del self.browser._sessions[self.session]
        self.browser.call("Target.disposeBrowserContext", {"browserContextId": self.context})
