# A server without a tracker: it holds its only lock while it walks a folder, and needs it for a list.
import http.server, json, os, sys, threading

lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except BrokenPipeError:
            pass  # Whoever asked gave up.

    # `/walk?FOLDER` walks; all else is a list.
    def do_GET(self):
        path, _, folder = self.path.partition("?")
        with lock:
            if path == "/walk":
                list(os.walk(folder))
        self.answer(200, [])

    # A message, as the example's server takes it.
    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            list(os.walk(said["cwd"]))
        self.answer(201, {"status": "accepted", "conversation_id": "c000001"})

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"serving http://127.0.0.1:{server.server_port}", flush=True)
sys.stdin.read()
os._exit(0)
