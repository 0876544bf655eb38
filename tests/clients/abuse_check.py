#!/usr/bin/env python3
"""What a hostile or broken client may do to the HTTP port, each followed by a good request that is
answered. The last word is the server's end: status 0, its log without a sanitizer's report.

    python3 tests/clients/abuse_check.py build/moeserve [SCALE]

SCALE below 1 makes fewer of everything (for builds with sanitizers). Standard library only.
"""
import glob, json, random, re, resource, signal, socket, subprocess, sys, tempfile, time
from served import Checks, Served

SCALE = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0


def scaled(n):
    return max(1, int(n * SCALE))


def address(s):
    host, port = s.http.rsplit(":", 1)
    return host, int(port)


def connect(s, timeout=30):
    return socket.create_connection(address(s), timeout=timeout)


def read_all(c, limit=1 << 20):
    """Everything until the end, a reset or a timeout."""
    data = b""
    try:
        while len(data) < limit and (piece := c.recv(65536)):
            data += piece
    except (ConnectionError, socket.timeout, TimeoutError):
        pass
    return data


def say(s, text, timeout=30):
    with connect(s, timeout) as c:
        try:
            c.sendall(text if isinstance(text, bytes) else text.encode())
        except ConnectionError:
            pass
        return read_all(c)


def body_of(obj):
    return obj if isinstance(obj, bytes) else json.dumps(obj).encode()


def post(path, obj, *headers):
    data = body_of(obj)
    return ("\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(data)}",
                         *headers]) + "\r\n\r\n").encode() + data


GOOD = {"prompt": "27+15=", "max_tokens": 8, "temperature": 0, "stop": "\n"}


def status_of(answer):
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def good(s, timeout=60):
    answer = say(s, post("/v1/completions", GOOD), timeout)
    assert status_of(answer) == 200 and b'"text":"42"' in answer, answer[:300]


def refused(answer, *statuses):
    assert status_of(answer) in statuses, (statuses, answer[:300])
    return answer


def idle_state(s):
    return json.loads(say(s, "GET /stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").split(b"\r\n\r\n", 1)[1])


def wait_until_idle(s, seconds=20):
    until = time.monotonic() + seconds
    while True:
        state = idle_state(s)
        if state["running"] == state["waiting"] == 0 and state["kv_blocks_used"] == state["kv_blocks_cached"]:
            return
        assert time.monotonic() < until, state
        time.sleep(0.05)


# ---- heads and bodies ----------------------------------------------------------------------------

def check_slow_loris_heads_and_bodies(s):
    head = [connect(s) for _ in range(scaled(300))]
    body = [connect(s) for _ in range(scaled(300))]
    for c in head:
        c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost:")
    for c in body:
        c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{")
    good(s)
    start = time.monotonic()
    for c in head:
        c.settimeout(60)
        refused(read_all(c), 408)
    assert time.monotonic() - start < 40
    good(s)
    for c in body:
        c.settimeout(60)
        refused(read_all(c), 408)
    good(s)


def check_huge_heads(s):
    for junk in ("X: " + "a" * (1 << 20), "X" * (1 << 20) + ": a", "\r\n".join(f"X{i}: a" for i in range(50000))):
        refused(say(s, f"GET /health HTTP/1.1\r\nHost: x\r\n{junk}\r\n\r\n"), 431, 400, 0)
        good(s)
    refused(say(s, f"GET /{'a' * (1 << 20)} HTTP/1.1\r\nHost: x\r\n\r\n"), 414, 431, 400, 0)
    good(s)


def check_bodies_that_are_too_long(s):
    for length in (1 << 30, 1 << 40, (1 << 63) - 1, 1 << 64, 10 ** 30):
        refused(say(s, f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"), 413, 400)
        good(s)
    refused(say(s, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"), 400)
    with connect(s) as c:
        try:
            c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(1000):
                c.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        except (ConnectionError, TimeoutError):
            pass
        answer = read_all(c)
    assert status_of(answer) in (413, 0), answer[:200]
    good(s)


def check_chunked_nonsense(s):
    for chunks in ("zz\r\n", "-1\r\n", "0x5\r\nhello\r\n", "5\r\nhelloX", "5 \r\nhello\r\n0\r\n\r\n", "fffffffffffffffff\r\n",
                   "5;" + "a" * 100000 + "\r\n", "\r\n\r\n", "5\nhello\n0\n\n", "1\r\na\r\n" * 10 + "zz\r\n", "+5\r\nhello\r\n0\r\n\r\n"):
        answer = say(s, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        assert status_of(answer) // 100 == 4, (chunks[:40], answer[:200])
        good(s)


def check_request_smuggling(s):
    hidden = "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    for head in ("Content-Length: 3\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 3",
                 "Content-Length: 3\r\nContent-Length: 4", "Content-Length: 3, 4", "Content-Length: +3",
                 "Content-Length : 3", " Content-Length: 3", "Transfer-Encoding: chunked, identity",
                 "Transfer-Encoding: xchunked", "Transfer-Encoding : chunked", "Transfer-Encoding:\tchunked\r\n\tx",
                 "X: a\r\n Content-Length: 3", "X: a\nContent-Length: 3", "X: a\rContent-Length: 3", "X\0: a",
                 "Content-Length: 0x3", "Content-Length: 3\r\nHost: y", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"):
        answer = say(s, f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n0\r\n\r\n{hidden}")
        assert answer.count(b"HTTP/1.1 ") == 1 and status_of(answer) in (400, 411, 501), (head, answer[:400])
        assert b"Connection: close" in answer or b"connection: close" in answer, (head, answer[:300])
        good(s)


def check_broken_heads(s):
    for head in ("GET /health\r\n\r\n", "GET  /health HTTP/1.1\r\nHost: x\r\n\r\n", "GET /health HTTP/3.0\r\nHost: x\r\n\r\n",
                 "GET /health HTTP/1.1\r\n\r\n", "get /health HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + "a" * 500,
                 "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /he\0alth HTTP/1.1\r\nHost: x\r\n\r\n", "{\"prompt\":\"a\"}\n", "GET / HTTP/1.1\nHost: x\n\n"):
        answer = say(s, head.encode("latin-1"), 15)
        assert status_of(answer) // 100 in (4, 5) or answer == b"", (head[:40], answer[:200])
        good(s)


# ---- JSON ----------------------------------------------------------------------------------------

def check_deep_and_wide_json(s):
    for deep in (b"[" * 100000, b'{"a":' * 100000, b'{"prompt":' + b"[" * 100000 + b"]" * 100000 + b"}",
                 b'{"prompt":"a","stop":' + b"[" * 100000 + b"]" * 100000 + b"}", b'{"prompt":[' + b"[]," * 100000 + b"[]]}",
                 b'{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"name":"a","schema":' + b'{"items":' * 100000 + b"{}" + b"}" * 100000 + b"}}}"):
        refused(say(s, post("/v1/completions", deep)), 400)
        refused(say(s, post("/v1/chat/completions", deep)), 400)
        good(s)


def check_invalid_utf8_in_every_string(s):
    for path, bodies in (("/v1/completions", (b'{"prompt":"%s"}', b'{"prompt":["%s"]}', b'{"prompt":"a","stop":"%s"}', b'{"prompt":"a","stop":["%s"]}', b'{"prompt":"a","model":"%s"}',
                                              b'{"prompt":"a","user":"%s"}', b'{"prompt":"a","suffix":"%s"}', b'{"prompt":"a","%s":1}')),
                         ("/v1/chat/completions", (b'{"messages":[{"role":"%s","content":"a"}]}', b'{"messages":[{"role":"user","content":"%s"}]}',
                                                   b'{"messages":[{"role":"user","content":[{"type":"text","text":"%s"}]}]}', b'{"messages":[{"role":"user","name":"%s","content":"a"}]}')),
                         ("/tokenize", (b'{"prompt":"%s"}',))):
        for body in bodies:
            for junk in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\x80", b"a\xe2\x82"):
                answer = refused(say(s, post(path, body % junk)), 400)
                answer.split(b"\r\n\r\n", 1)[1].decode("utf-8", "strict")
    good(s)


def check_every_number_at_its_edges(s):
    numbers = ["0", "-0", "-1", "1", "1e308", "-1e308", "1e-400", "2147483647", "2147483648", "-2147483649", "9223372036854775807",
               "9223372036854775808", "1e999", "NaN", "Infinity", "-Infinity", "0.5", "1.0000000000000000000001", "\"1\"", "true", "null", "[]", "{}", "1" * 400]
    fields = ["n", "best_of", "max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
              "frequency_penalty", "seed", "logprobs"]
    for field in fields:
        for number in numbers:
            if field in ("max_tokens", "n", "best_of") and number not in ("null",):
                extra = "" if field == "max_tokens" else ',"max_tokens":2'
            else:
                extra = ',"max_tokens":2'
            body = f'{{"prompt":"27+15=","stop":"\\n"{extra},"{field}":{number}}}'.encode()
            answer = say(s, post("/v1/completions", body), 60)
            assert status_of(answer) in (200, 400, 429), (body, answer[:200])
        good(s)
    for field in ("top_logprobs", "max_completion_tokens"):
        for number in numbers:
            body = f'{{"messages":[{{"role":"user","content":"a"}}],"logprobs":true,"stop":"a","{field}":{number}}}'.encode()
            answer = say(s, post("/v1/chat/completions", body), 120)
            assert status_of(answer) in (200, 400, 429), (body, answer[:200])
        good(s)
    wait_until_idle(s)


# ---- clients that misbehave while they are answered ----------------------------------------------

LONG = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "stream": True, "logprobs": 20}


def check_clients_that_never_read(s):
    held = []
    for _ in range(scaled(100)):
        c = socket.socket()
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        c.connect(address(s))
        c.sendall(post("/v1/completions", LONG))
        held.append(c)
    good(s, 120)
    for c in held:
        c.close()
    wait_until_idle(s, 60)
    good(s)


def check_a_client_that_is_stopped(s):
    code = ("import socket,sys,time\nc=socket.create_connection((sys.argv[1],int(sys.argv[2])))\n"
            "c.sendall(bytes.fromhex(sys.argv[3]))\nc.recv(100)\nprint('reading',flush=True)\n"
            "total=0\nwhile True:\n d=c.recv(65536)\n if not d: break\n total+=len(d)\n tail=d\nprint(tail[-20:])")
    host, port = address(s)
    p = subprocess.Popen([sys.executable, "-c", code, host, str(port), post("/v1/completions", LONG).hex()], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "reading\n"
    p.send_signal(signal.SIGSTOP)
    good(s)
    time.sleep(3)
    good(s)
    p.send_signal(signal.SIGCONT)
    assert "[DONE]" in p.communicate(timeout=120)[0]


def check_cancels_at_random_moments(s):
    r = random.Random(7)
    pending = []
    for i in range(scaled(10000)):
        c = connect(s)
        c.sendall(post("/v1/completions", {**LONG, "max_tokens": 50, "logprobs": None}))
        pending.append((time.monotonic() + r.random() ** 3 * 0.3, c))
        if len(pending) >= 64:
            pending.sort(key=lambda p: p[0])
            when, c = pending.pop(0)
            time.sleep(max(0, when - time.monotonic()))
            if r.random() < 0.3:
                c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            c.close()
    for _, c in pending:
        c.close()
    wait_until_idle(s, 60)
    good(s)


def check_half_sent_requests(s):
    whole = post("/v1/completions", GOOD)
    for cut in range(1, len(whole)):
        with connect(s) as c:
            c.sendall(whole[:cut])
    good(s)
    wait_until_idle(s)


# ---- floods --------------------------------------------------------------------------------------

def check_more_connections_than_there_may_be(program):
    s = Served(program, "--max-connections", "50")
    held = [connect(s) for _ in range(50)]
    time.sleep(0.3)
    extra = [say(s, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n", 10) for _ in range(20)]
    assert all(status_of(a) == 503 for a in extra), extra
    for c in held:
        c.close()
    time.sleep(0.5)
    good(s)
    assert s.stop() == 0


def check_no_file_descriptors_left(program):
    s = Served(program, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    held = []
    for _ in range(200):
        try:
            held.append(connect(s, 2))
        except OSError:
            break
    time.sleep(0.5)
    ticks = sum(int(x) for x in open(f"/proc/{s.process.pid}/stat").read().rsplit(")", 1)[1].split()[11:13])
    time.sleep(1)
    spent = sum(int(x) for x in open(f"/proc/{s.process.pid}/stat").read().rsplit(")", 1)[1].split()[11:13]) - ticks
    assert spent < 50, f"it spins: {spent} ticks of CPU time in a second"
    for c in held:
        c.close()
    time.sleep(1.5)
    good(s)
    assert s.stop() == 0


def check_a_full_disk_under_the_log(program):
    with open("/dev/full", "w") as full:
        import served
        original = subprocess.Popen

        def with_full_log(*args, **kwargs):
            kwargs["stderr"] = full
            return original(*args, **kwargs)
        served.subprocess.Popen = with_full_log
        try:
            s = Served(program, "--verbose")
        finally:
            served.subprocess.Popen = original
    good(s)
    refused(say(s, post("/v1/completions", b"{")), 400)
    good(s)
    assert s.stop() == 0


def check_clock_jumps(program):
    """The day's time jumps by years, both ways, while requests run and connections are idle."""
    library = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not library:
        return "not run: there is no libfaketime"
    if b"san.so" in subprocess.run(["ldd", program], capture_output=True).stdout:
        return "not run: a sanitizer wants to be the first library"
    with tempfile.NamedTemporaryFile("w", prefix="moeserve-clock-") as clock:
        def jump(by):
            clock.seek(0)
            clock.write(by + "\n")
            clock.truncate()
            clock.flush()
        jump("+0d")
        s = Served(program, env={"LD_PRELOAD": library[0], "FAKETIME_TIMESTAMP_FILE": clock.name, "FAKETIME_NO_CACHE": "1",
                                 "FAKETIME_DONT_FAKE_MONOTONIC": "1"})
        with connect(s) as idle, connect(s) as running:
            running.sendall(post("/v1/completions", {**LONG, "max_tokens": 1500, "logprobs": None}))
            years = set()
            for by in ("+3650d", "-3650d", "+1d", "-7300d", "+0d"):
                jump(by)
                good(s)
                head = say(s, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                refused(head, 200)
                years.add(re.search(rb"Date: .* (\d{4}) ", head).group(1))
            assert len(years) >= 4, f"the clock does not jump: {years}"
            assert read_all(running).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            refused(read_all(idle), 200)
        assert s.stop() == 0


if __name__ == "__main__":
    program = sys.argv[1]
    served_one = Served(program, "--cors-origin", "https://page.example")
    checks = Checks()
    own = [check_more_connections_than_there_may_be, check_no_file_descriptors_left, check_a_full_disk_under_the_log,
           check_clock_jumps]
    checks.run([f for n, f in list(globals().items()) if n.startswith("check_") and f not in own], served_one)

    def check_the_server_ends_well():
        assert served_one.stop() == 0
        log = served_one.read_log()
        for words in ("Sanitizer", "runtime error", "CHECK(", "Assertion"):
            assert words not in log, log[-3000:]
    checks.run([check_the_server_ends_well])
    checks.run(own, program)
    checks.finish()
