# A server without a tracker: it holds its only lock while it walks a folder, and needs it for a list.
import http.server, os, sys, threading

lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, folder = self.path.partition("?")
        with lock:
            if path == "/walk":
                list(os.walk(folder))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"serving http://127.0.0.1:{server.server_port}", flush=True)
sys.stdin.read()
os._exit(0)
