#!/usr/bin/env python3
"""What clients of HTTP see of a rank that fails in the middle of their streams.

    python3 tests/clients/fault_check.py build/moeserve [ROUNDS]

Standard library only.
"""
import json, random, socket, sys, threading, time
from served import Checks, Served

ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
CLIENTS, TOKENS = 4, 40


def stream(s, number, out):
    """The text that came, what ended it ("done" or an error's code), and whether [DONE] came."""
    body = json.dumps({"prompt": f"Once upon a time {number}", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
                       "stream": True}).encode()
    host, port = s.http.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as c:
        c.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        data = b""
        try:
            while piece := c.recv(65536):
                data += piece
        except ConnectionError:
            pass
    text, end = "", None
    head, _, rest = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        out[number] = ("", json.loads(rest)["error"]["code"] if rest else "closed", False)
        return
    events = [line[6:] for line in rest.split(b"\n") if line.startswith(b"data: ")]
    for event in events[:-1]:
        e = json.loads(event)
        if "error" in e:
            end = e["error"]["code"]
        else:
            text += e["choices"][0]["text"]
            end = "done" if e["choices"][0]["finish_reason"] else end
    out[number] = (text, end, events[-1] == b"[DONE]")


def all_streams(s):
    out = {}
    threads = [threading.Thread(target=stream, args=(s, n, out)) for n in range(CLIENTS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(out) == CLIENTS, "a client was not answered"
    return out


def state(s):
    host, port = s.http.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as c:
        c.sendall(b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b""
        while piece := c.recv(65536):
            data += piece
    return json.loads(data.partition(b"\r\n\r\n")[2])


def check_idle(s):
    until = time.monotonic() + 10
    while (now := state(s))["running"] or now["waiting"] or now["kv_blocks_used"] != now["kv_blocks_cached"]:
        assert time.monotonic() < until, now
        time.sleep(0.05)


def served_with(fault, *options):
    return Served(sys.argv[1], "--ranks", "3", "--comm-timeout", "10", *(["--fault", fault] if fault else []), *options)


def check_a_killed_rank_is_not_noticed(wanted):
    for i in range(ROUNDS):
        s = served_with(f"kill@{i % 3}:{random.randint(6, TOKENS)}")
        got = all_streams(s)
        assert got == wanted, (got, wanted)
        check_idle(s)
        assert all_streams(s) == wanted and s.stop() == 0
    return f"{ROUNDS} times"


def check_nans_fail_their_requests_and_no_others(wanted):
    failed = 0
    for i in range(ROUNDS):
        s = served_with(f"nan@{i % 3}:{random.randint(6, TOKENS)}")
        for number, (text, end, done) in all_streams(s).items():
            assert done and end in ("done", "internal"), (text, end, done)
            assert wanted[number][0].startswith(text) and (end != "done" or text == wanted[number][0]), (text, wanted[number])
            failed += end == "internal"
        check_idle(s)
        assert all_streams(s) == wanted and s.stop() == 0
    assert failed, "no request was in a step with a NaN"
    return f"{ROUNDS} times, {failed} streams ended with an error event"


def check_a_stalled_rank_ends_the_server_after_an_answer(wanted):
    slowest = 0
    for i in range(ROUNDS):
        s = served_with(f"stall@{i % 3}:{random.randint(6, TOKENS)}", "--comm-timeout", "2")
        start = time.monotonic()
        for number, (text, end, done) in all_streams(s).items():
            assert end == "internal" and wanted[number][0].startswith(text), (text, end, done)
        assert s.process.wait(20) == 1
        slowest = max(slowest, time.monotonic() - start)
        assert slowest < 10
    return f"{ROUNDS} times, at most {slowest:.1f} s after the clients asked"


def check_too_few_blocks_change_no_token(wanted):
    s = served_with(None, "--num-kv-blocks", "9", "--no-enable-prefix-caching")
    assert all_streams(s) == wanted
    preempted = state(s)["preemptions_total"]
    assert preempted > 0, "nobody was preempted"
    check_idle(s)
    assert s.stop() == 0
    return f"{preempted} preemptions"


if __name__ == "__main__":
    plain = served_with(None)
    right = all_streams(plain)
    assert all(end == "done" for _, end, _ in right.values()) and plain.stop() == 0
    checks = Checks()
    checks.run([f for n, f in list(globals().items()) if n.startswith("check_") and n != "check_idle"], right)
    checks.finish()
