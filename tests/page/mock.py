"""A server that answers like moeserve, as well or as badly as a check wants."""
import json
import select
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LAYERS, EXPERTS = 3, 8


def first_stats():
    return {
        "model": {"name": "mock-moe", "max_model_len": 2048, "vocab_size": 1536, "ranks": 2,
                  "num_layers": LAYERS, "num_experts": EXPERTS},
        "running": 0, "waiting": 0, "kv_blocks_used": 300, "kv_blocks_cached": 100, "kv_blocks_total": 1000,
        "prompt_tokens_total": 1000, "completion_tokens_total": 5000, "prefix_hit_tokens_total": 250,
        "preemptions_total": 3, "steps_total": 777, "last_step_age_ms": 12.5, "healthy": True,
        "connections": 2, "uptime_s": 3725,
        "replicas": [{"running": 0, "waiting": 0, "healthy": True}],
        "ranks": [{"rank": 0, "expert_tokens": 300, "bytes": 24070000000},
                  {"rank": 1, "expert_tokens": 100, "bytes": 12000000000}],
        "experts": {"enabled": True,
                    "counts": [[100 * layer + 10 * e for e in range(EXPERTS)] for layer in range(LAYERS)]},
    }


class Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients come and go as they like."""


class Mock:
    """The server and what it has seen. `answers` holds a function for each coming POST, called with
    the request's Handler and its body; without one the answer is "Hello."."""

    def __init__(self, page):
        self.page = page  # (headers, body) of `/`
        self.key = None
        self.stats = first_stats()
        self.stats_status = 200
        self.stats_delay_s = 0
        self.stats_times = []
        self.stats_at_once = 0
        self.stats_most_at_once = 0
        self.answers = []
        self.posts = []  # (path, body)
        self.gone = threading.Event()  # a client left before its answer was whole
        self.lock = threading.Lock()
        self.connections = set()
        self.server = None
        self.port = 0
        self.start()

    def start(self):
        mock = self

        class Bound(Handler):
            pass

        Bound.mock = mock
        self.server = Server(("127.0.0.1", self.port), Bound)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        """The server is gone, with its connections."""
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # its client left first
        self.connections.clear()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mock = None

    def setup(self):
        super().setup()
        self.mock.connections.add(self.connection)

    def log_message(self, *_):
        pass

    def whole(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in dict({"Content-Type": "application/json"}, **dict(headers)).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def error(self, status, message, code=None, headers=()):
        self.whole(status, {"error": {"message": message, "type": "error", "param": None, "code": code}}, headers)

    def begin(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def piece(self, data):
        """Bytes of the stream; False when the client is gone."""
        data = data.encode() if isinstance(data, str) else data
        try:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            return not self.left()
        except OSError:
            self.mock.gone.set()
            return False

    def left(self):
        """Has the client closed the connection?"""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            left = bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            left = True
        if left:
            self.mock.gone.set()
        return left

    def end(self):
        try:
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.mock.gone.set()

    def cut(self):
        """The connection breaks."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def allowed(self):
        if self.mock.key is None or self.headers.get("Authorization") == f"Bearer {self.mock.key}":
            return True
        self.error(401, "a key is needed: Authorization: Bearer KEY", "unauthorized")
        return False

    def do_GET(self):
        if self.path == "/":
            headers, body = self.mock.page
            self.whole(200, body, headers)
        elif self.path == "/stats":
            if self.allowed():
                self.answer_stats()
        elif self.path == "/v1/models":
            if self.allowed():
                self.whole(200, {"object": "list", "data": [{"id": self.mock.stats["model"]["name"], "object": "model"}]})
        else:
            self.error(404, f"no such path: {self.path}")

    def answer_stats(self):
        m = self.mock
        with m.lock:
            m.stats_times.append(time.monotonic())
            m.stats_at_once += 1
            m.stats_most_at_once = max(m.stats_most_at_once, m.stats_at_once)
        time.sleep(m.stats_delay_s)
        with m.lock:
            m.stats_at_once -= 1
        if m.stats_status == 200:
            self.whole(200, m.stats)
        else:
            self.error(m.stats_status, "no figures today")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.mock.posts.append((self.path, body))
        answer = self.mock.answers.pop(0) if self.mock.answers else says("Hello.")
        answer(self, body)


def event(handler, text, **more):
    """One event with this text, as its path wants it."""
    choice = {"index": 0, "finish_reason": None}
    choice.update({"delta": {"content": text}} if "chat" in handler.path else {"text": text})
    return "data: " + json.dumps({"id": "x", "object": "chunk", "choices": [choice], **more}, ensure_ascii=False) + "\n\n"


def last_events(handler, completion_tokens, reason="stop"):
    choice = {"index": 0, "finish_reason": reason}
    choice.update({"delta": {}} if "chat" in handler.path else {"text": ""})
    usage = {"prompt_tokens": 7, "completion_tokens": completion_tokens, "total_tokens": 7 + completion_tokens,
             "prompt_tokens_details": {"cached_tokens": 3}}
    return "".join("data: " + json.dumps(d) + "\n\n" for d in
                   ({"choices": [choice]}, {"choices": [], "usage": usage})) + "data: [DONE]\n\n"


def says(*texts, delay_s=0, reason="stop"):
    """A well-behaved stream of these texts."""
    def answer(handler, _):
        handler.begin()
        for text in texts:
            if not handler.piece(event(handler, text)):
                return
            time.sleep(delay_s)
        handler.piece(last_events(handler, len(texts), reason))
        handler.end()
    return answer


def says_bytes(make, size=1):
    """The bytes of make(handler), in chunks of this size."""
    def answer(handler, _):
        data = make(handler)
        data = data.encode() if isinstance(data, str) else data
        handler.begin()
        handler.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(data), size):
            if not handler.piece(data[i:i + size]):
                return
            time.sleep(0.001)
        handler.end()
    return answer


def refuses(status, message, code=None, **headers):
    return lambda handler, _: handler.error(status, message, code, {k.replace("_", "-"): v for k, v in headers.items()})


def breaks(text, how):
    """A stream that fails after this text: by an error event, a cut, or an early end."""
    def answer(handler, _):
        handler.begin()
        handler.piece(event(handler, text))
        time.sleep(0.1)
        if how == "error":
            handler.piece('data: {"error":{"message":"a rank was lost","type":"server_error","code":"internal"}}\n\n')
            handler.end()
        elif how == "end":
            handler.end()
        else:
            handler.cut()
    return answer
