#!/usr/bin/env python3
"""What HTTP costs beside the line protocol: 64 chat clients at once, streams, alternately by both.

    python3 tests/clients/protocol_bench.py build/moeserve [ROUNDS [CLIENTS [TOKENS]]]

Standard library only. The client does as little as it can: it notes when bytes of a first token come
and when an answer has ended, and parses nothing.
"""
import json, random, selectors, socket, statistics, sys, time
from served import Served

ROUNDS, CLIENTS, TOKENS = (int(a) for a in (sys.argv[2:] + ["15", "64", "128"][len(sys.argv[2:]):])[:3])


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def asked(seed):
    r = random.Random(seed)
    return {"messages": [{"role": "user", "content": f"Tell me a story about {r.randint(0, 10**9)} friends"}],
            "max_tokens": TOKENS, "temperature": 0.8, "seed": seed, "ignore_eos": True}


def line_request(s, seed):
    return address(s.line), (json.dumps({"id": 1, **asked(seed)}) + "\n").encode(), b'"token"', b'"done":true'


def http_request(s, seed):
    body = json.dumps({**asked(seed), "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return address(s.http), head + body, b'"content":"', b"[DONE]"


def one_round(s, make, first_seed):
    """Median and 90th percentile of the time to the first token, and tokens per second of all."""
    chosen = selectors.DefaultSelector()
    requests = [make(s, first_seed + i) for i in range(CLIENTS)]
    clients = []
    for where, data, first, last in requests:
        c = socket.create_connection(where)
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        clients.append(c)
    start, firsts, open_clients = time.perf_counter(), {}, CLIENTS
    for i, c in enumerate(clients):
        c.sendall(requests[i][1])
        chosen.register(c, selectors.EVENT_READ, i)
    tails = [b""] * CLIENTS
    while open_clients:
        for key, _ in chosen.select():
            data, i = key.fileobj.recv(1 << 16), key.data
            now = time.perf_counter()
            tails[i] = tails[i][-64:] + data
            if i not in firsts and requests[i][2] in tails[i]:
                # A role comes with an empty content first: that is no token.
                if b'"content":""' not in tails[i] or tails[i].count(b'"content":"') > 1:
                    firsts[i] = now - start
            if requests[i][3] in tails[i]:
                chosen.unregister(key.fileobj)
                key.fileobj.close()
                open_clients -= 1
    seconds = time.perf_counter() - start
    waits = sorted(firsts.values())
    assert len(waits) == CLIENTS, "an answer without a token"
    return statistics.median(waits), waits[int(0.9 * CLIENTS)], CLIENTS * TOKENS / seconds


if __name__ == "__main__":
    served = Served(sys.argv[1], "--no-enable-prefix-caching")
    results = {"line": [], "http": []}
    for name, make in (("line", line_request), ("http", http_request)):
        one_round(served, make, 1)  # warm-up
    for i in range(ROUNDS):
        order = [("line", line_request), ("http", http_request)]
        for name, make in order if i % 2 else reversed(order):
            results[name].append(one_round(served, make, 1000 * (i + 1)))
    for name, rounds in results.items():
        ttft, late, rate = (statistics.median(x) for x in zip(*rounds))
        print(f"{name}: time to first token {1000 * ttft:.1f} ms (median), {1000 * late:.1f} ms (90th percentile), {rate:.0f} tok/s")
    ratios = [statistics.median(h[k] / l[k] for h, l in zip(results["http"], results["line"])) for k in range(3)]
    print(f"http / line: time to first token {ratios[0]:.3f} (median), {ratios[1]:.3f} (90th percentile), tok/s {ratios[2]:.3f}")
    served.stop()
