"""A moeserve of one's own for a check: started, found by its ready line, and ended."""
import os, re, signal, subprocess, sys, tempfile, time


class Served:
    def __init__(self, program, *options, env=None, preexec_fn=None):
        self.log = tempfile.NamedTemporaryFile("w+", prefix="moeserve-check-", suffix=".log")
        self.process = subprocess.Popen(
            [program, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *options],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env={**os.environ, **(env or {})}, preexec_fn=preexec_fn)
        ready = re.compile(r"moeserve: ready line=(\S+) http=(\S+)")
        for line in self.process.stdout:
            found = ready.match(line)
            if found:
                self.line, self.http = found.groups()
                break
        else:
            raise RuntimeError(f"the server did not start:\n{self.read_log()}")
        scheme = "https" if "--tls-cert" in options else "http"
        self.url = f"{scheme}://{self.http}"

    def read_log(self):
        self.log.flush()
        with open(self.log.name) as f:
            return f.read()

    def rss_kb(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))

    def num_fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self, timeout=40):
        """Ends it as an operator would; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return None


class Checks:
    """Runs functions named check_*, one line each, and counts."""

    def __init__(self):
        self.failed = []
        self.passed = 0

    def run(self, functions, *args):
        for f in functions:
            name = f.__name__.removeprefix("check_")
            start = time.monotonic()
            try:
                note = f(*args)
                self.passed += 1
                print(f"ok     {name}{'  ' + note if note else ''}  ({time.monotonic() - start:.1f} s)",
                      flush=True)
            except Exception as e:  # any failure is this check's, and the others go on
                self.failed.append(name)
                print(f"FAILED {name}: {type(e).__name__}: {e}", flush=True)

    def finish(self):
        print(f"{self.passed} passed, {len(self.failed)} failed")
        sys.exit(1 if self.failed else 0)
