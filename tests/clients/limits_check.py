#!/usr/bin/env python3
"""What clients of HTTP see when there is too much to do, too little time, or the server is told to stop.

    python3 tests/clients/limits_check.py build/moeserve

Standard library only.
"""
import json, signal, socket, sys, threading, time
from served import Checks, Served


class Answer:
    """One request over a connection of its own; status 0: nobody listens."""

    def __init__(self, http, **body):
        start = time.monotonic()
        body = json.dumps({"prompt": "Once", "ignore_eos": True, **body}).encode()
        data = b""
        try:
            host, port = http.rsplit(":", 1)
            with socket.create_connection((host, int(port)), timeout=60) as c:
                c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
                          % (len(body), body))
                while piece := c.recv(65536):
                    data += piece
        except ConnectionRefusedError:
            pass
        self.status = int(data[9:12] or 0)
        self.ms = (time.monotonic() - start) * 1e3
        self.head, _, self.body = data.partition(b"\r\n\r\n")


def ask(s, count, **body):
    """So many at once: the threads, and where each puts its answer."""
    answers = [None] * count

    def one(i):
        answers[i] = Answer(s.http, **body)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    return threads, answers


def all_of(s, count, **body):
    threads, answers = ask(s, count, **body)
    for t in threads:
        t.join()
    assert all(answers), "a client was not answered"
    return answers


def check_too_much_is_refused_at_once():
    s = Served(sys.argv[1], "--max-num-seqs", "4", "--max-queued-requests", "16")
    answers = all_of(s, 300, max_tokens=200)
    refused = sorted(a.ms for a in answers if a.status == 429)
    assert all(b"\r\nRetry-After: " in a.head for a in answers if a.status == 429)
    assert all(a.status in (200, 429) for a in answers) and 0 < len(refused) < 300
    assert Answer(s.http, max_tokens=1).status == 200 and s.stop() == 0
    return f"{len(refused)} of 300, half within {refused[len(refused) // 2]:.1f} ms, the last after {refused[-1]:.0f} ms"


def check_requests_end_in_time():
    s = Served(sys.argv[1], "--request-timeout", "0.5")
    answers = all_of(s, 16, max_tokens=2000)
    assert all(a.status == 504 and json.loads(a.body)["error"]["code"] == "timeout" for a in answers)
    times = sorted(a.ms for a in answers)
    assert times[-1] < 5000
    assert Answer(s.http, max_tokens=1).status == 200 and s.stop() == 0
    return f"16 after {times[0]:.0f} to {times[-1]:.0f} ms"


def check_a_draining_server_lets_requests_end():
    s = Served(sys.argv[1])
    threads, answers = ask(s, 64, max_tokens=400, stream=True)
    time.sleep(1)
    start = time.monotonic()
    s.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert Answer(s.http, max_tokens=1).status == 0, "a new connection was accepted"
    for t in threads:
        t.join()
    assert all(a.status == 200 and b"data: [DONE]" in a.body for a in answers)
    assert s.process.wait(20) == 0
    return f"64 streams, {time.monotonic() - start:.1f} s after the signal"


if __name__ == "__main__":
    checks = Checks()
    checks.run([f for n, f in list(globals().items()) if n.startswith("check_")])
    checks.finish()
