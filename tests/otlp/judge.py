#!/usr/bin/env python3
"""Judges the spans of the example's hang, as an independent receiver has got them, by the ids in `.diag.json`.

It knows nothing of the crate: it reads the report, asks the receiver, and compares. `tests/otlp/run` starts it.
"""

import argparse
import base64
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

DEADLINE = 60
OPS = {
    ("shelley-fuse", "fuse", "flush"),
    ("shelley-fuse", "http.client", "POST"),
    ("shelley", "http.server", "POST"),
    ("shelley-fuse", "fuse", "readdir"),
    ("shelley-fuse", "http.client", "GET"),
    ("shelley", "http.server", "GET"),
}


class Wrong(Exception):
    pass


def check(right, what):
    if not right:
        raise Wrong(what)


def until(ask, what, deadline=DEADLINE):
    end = time.monotonic() + deadline
    while True:
        answer = ask()
        if answer:
            return answer
        check(time.monotonic() < end, f"{what} did not come within {deadline} s")
        time.sleep(0.1)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop(process, within=DEADLINE):
    """Waits for a process that was told to end; kills it if it does not. Returns how long it took."""
    began = time.monotonic()
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
        raise Wrong(f"{process.args} did not end") from None
    return time.monotonic() - began


class Agent:
    """PyPI ddapm-test-agent: takes OTLP over gRPC and HTTP, and shows what it has got."""

    def __init__(self, program):
        self.http, self.grpc = free_port(), free_port()
        self.process = subprocess.Popen(
            [program, "--port", str(free_port()), "--otlp-http-port", str(self.http),
             "--otlp-grpc-port", str(self.grpc)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        until(lambda: self.answers(), "the receiver")

    def answers(self):
        check(self.process.poll() is None, "the receiver has ended")
        try:
            return self.requests() is not None
        except (urllib.error.URLError, ConnectionError):
            return False

    def requests(self):
        url = f"http://127.0.0.1:{self.http}/test/session/traces"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)

    def url(self, protocol):
        return f"http://127.0.0.1:{self.grpc if protocol == 'grpc' else self.http}"

    def spans(self):
        found = []
        for request in self.requests():
            for resource in request.get("resource_spans", []):
                service = attributes(resource.get("resource", {})).get("service.name")
                for scope in resource.get("scope_spans", []):
                    found += [Span(service, span) for span in scope.get("spans", [])]
        return found

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def attributes(of):
    def value(any_value):
        key, inner = next(iter(any_value.items()), (None, None))
        if key == "array_value":
            return [value(item) for item in inner.get("values", [])]
        return inner

    return {item["key"]: value(item.get("value", {})) for item in of.get("attributes", [])}


def hexed(text):
    return base64.b64decode(text or "").hex()


class Span:
    def __init__(self, service, raw):
        self.service, self.name = service, raw.get("name")
        self.id, self.trace = hexed(raw["span_id"]), hexed(raw["trace_id"])
        self.parent = hexed(raw.get("parent_span_id"))
        self.begin, self.end = int(raw["start_time_unix_nano"]), int(raw["end_time_unix_nano"])
        self.attributes = attributes(raw)
        self.is_partial = self.attributes.get("inflight.partial") is True
        self.links = {(hexed(link["trace_id"]), hexed(link["span_id"])) for link in raw.get("links", [])}

    def __repr__(self):
        return f"{self.service} {self.name} {self.trace}-{self.id} under {self.parent or 'none'}"


class Stage:
    """The server, the file system over it, and a shell whose write hangs."""

    def __init__(self, shelley, otlp=None, environment=()):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="inflight-otlp-"))
        self.mnt = self.dir / "mnt"
        self.mnt.mkdir()
        run = self.dir / ".run"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "INFLIGHT"))}
        self.env = {**kept, "INFLIGHT_DIR": str(run), **dict(environment)}
        self.otlp = ["--otlp", otlp] if otlp else []
        self.shelley, self.mount, self.shell = shelley, None, None
        self.server, line = self.start("serve", "--walk", "naive")
        url = line.removeprefix("serving ").strip()
        self.mount, _ = self.start("mount", str(self.mnt), "--server", url, "--cwd", str(self.dir))

    def start(self, *args):
        process = subprocess.Popen(
            [self.shelley, *args, *self.otlp, "--stop-at-eof"],
            env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        line = process.stdout.readline()
        check(line, f"shelley {args} did not start")
        return process, line

    def hang(self):
        send = self.mnt / "conversation" / "1b9b" / "send"
        self.shell = subprocess.Popen(["sh", "-c", f"echo hello > {send}"], stderr=subprocess.DEVNULL)

    def report(self):
        """`.diag.json`, read by a child that may be killed; None if it is not there in time."""
        try:
            cat = subprocess.run(["cat", str(self.mnt / ".diag.json")], capture_output=True, timeout=10)
        except subprocess.TimeoutExpired:
            raise Wrong(".diag.json hangs") from None
        return json.loads(cat.stdout) if cat.returncode == 0 else None

    def ops(self):
        """All ops of both processes, once the whole circle stands."""
        report = self.report()
        if not report or report["verdict"] != "deadlock":
            return None
        ops = []
        pids = {self.mount.pid, self.server.pid}
        for snapshot in [report["local"], *report["peers"]]:
            # The machine may run others, which are peers too.
            if snapshot["process"]["pid"] not in pids:
                continue
            ops += [{**op, "service": snapshot["process"]["service"]} for op in snapshot["ops"]]
        seen = {(op["service"], op["kind"], op["name"]) for op in ops}
        return ops if seen == OPS and len(ops) == len(OPS) else None

    def totals(self, process):
        """What a process says of itself on its debug socket."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(10)
            stream.connect(str(self.dir / ".run" / f"{process.pid}.sock"))
            stream.sendall(b"GET /debug/inflight?format=json HTTP/1.0\r\nHost: localhost\r\n\r\n")
            answer = b"".join(iter(lambda: stream.recv(65536), b""))
        return json.loads(answer.split(b"\r\n\r\n", 1)[1])["totals"]

    def abort(self):
        """Fails all requests of the mount: what waits in it goes on with an error."""
        for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[4] == str(self.mnt):
                minor = line.split()[2].split(":")[1]
                pathlib.Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
                return
        raise Wrong("the mount is gone")

    def end(self):
        """Stops both as their users do. Returns how long that took."""
        took = []
        for process in [self.mount, self.server]:
            began = time.monotonic()
            process.stdin.close()
            stop(process)
            took.append(time.monotonic() - began)
        return took

    def kill(self):
        for process in [self.mount, self.server]:
            process.kill()
            process.wait(10)

    def clear(self):
        for process in [self.mount, self.server]:
            if process and process.poll() is None:
                process.kill()
        if f" {self.mnt} " in pathlib.Path("/proc/self/mountinfo").read_text():
            subprocess.run(["umount", "-l", str(self.mnt)], timeout=10, check=False)
        for process in [self.mount, self.server, self.shell]:
            if process:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    pass
        if f" {self.mnt} " not in pathlib.Path("/proc/self/mountinfo").read_text():
            shutil.rmtree(self.dir, ignore_errors=True)


def named(ops, service, kind, name):
    [op] = [op for op in ops if (op["service"], op["kind"], op["name"]) == (service, kind, name)]
    return op


def judge_partial(ops, spans):
    """Whether every op that hangs is there, flagged, under an id of its own."""
    ids = {op["id"] for op in ops}
    partial = [span for span in spans if span.is_partial]
    own = [span.id for span in partial]
    check(len(set(own)) == len(own), "two partial spans share an id")
    check(not ids & set(own), "a partial span has the id of an op")
    check(not [span for span in spans if span.id in ids], "an op has a final span while it hangs")
    for op in ops:
        found = [span for span in partial if span.attributes.get("inflight.op.id") == op["id"]]
        if not found:
            return False
        for span in found:
            check(span.trace == op["trace_id"] and span.parent == op["id"], f"{span} of {op['id']}")
            check(span.end - span.begin > 5_000_000_000, f"{span} has no real length")
            check(span.service == op["service"], f"{span} comes from another service")
            phase = " > ".join(op["phase"]["path"])
            check(span.attributes.get("inflight.phase") == phase, f"{span}: phase is not {phase!r}")
    return True


def judge_final(ops, spans):
    final = [span for span in spans if not span.is_partial]
    check({span.service for span in spans} == {"shelley", "shelley-fuse"}, "not just two services")
    by_id = {}
    for span in final:
        check(span.id not in by_id, f"{span} came twice")
        by_id[span.id] = span
    for op in ops:
        span = by_id.get(op["id"])
        check(span, f"{op['kind']} {op['name']} {op['id']} has no final span")
        check(span.trace == op["trace_id"], f"{span} is not in trace {op['trace_id']}")
        check(span.parent == (op["parent_id"] or ""), f"{span} is not under {op['parent_id']}")
        check(span.service == op["service"], f"{span} is of another service")
    inner = 0
    for span in final:
        if not span.parent:
            continue
        parent = by_id.get(span.parent)
        check(parent, f"the parent of {span} did not arrive")
        check(parent.trace == span.trace, f"{span} and its parent are of two traces")
        inside = parent.begin <= span.begin and span.end <= parent.end
        check(inside, f"{span} [{span.begin}, {span.end}] is not within {parent} [{parent.begin}, {parent.end}]")
        inner += 1
    post = named(ops, "shelley", "http.server", "POST")
    readdir = named(ops, "shelley-fuse", "fuse", "readdir")
    link = (post["trace_id"], post["id"])
    check(link in by_id[readdir["id"]].links, f"the readdir does not link to {link}")
    phases = {span.name for span in final if span.parent == post["id"] and span.service == "shelley"}
    check(any(re.match(r"handler|walk", name) for name in phases), f"the POST shows no phases: {phases}")
    return len(final), inner


def story(agent, shelley, protocol):
    environment = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc" if protocol == "grpc" else "http/protobuf"}
    stage = Stage(shelley, agent.url(protocol), environment)
    try:
        stage.hang()
        ops = until(stage.ops, "the deadlock")
        until(lambda: judge_partial(ops, agent.spans()), "a partial span of each op")
        partial = sum(span.is_partial for span in agent.spans())
        stage.abort()
        stop(stage.shell)
        until(lambda: all(stage.totals(p)["ended"] == stage.totals(p)["begun"] for p in [stage.mount, stage.server]),
              "the end of all ops")
        stage.end()
        final, inner = judge_final(ops, agent.spans())
        print(f"{protocol}: {final} final spans, {inner} within their parents, the link there; "
              f"{partial} partial ones before the hang ended")
    finally:
        stage.clear()


def killed(agent, shelley):
    stage = Stage(shelley, agent.url("http"))
    try:
        stage.hang()
        ops = until(stage.ops, "the deadlock")
        until(lambda: judge_partial(ops, agent.spans()), "a partial span of each op")
        stage.kill()
        by_op = {span.attributes.get("inflight.op.id") for span in agent.spans()}
        check({op["id"] for op in ops} <= by_op, "an op is not findable after SIGKILL")
        print(f"killed: each of {len(ops)} ops is findable by its id")
    finally:
        stage.clear()


def without_receiver(shelley, url):
    """The times of a hang: the answer of `.diag.json`, the end of the shell, the exit of both programs."""
    stage = Stage(shelley, url, {"OTEL_EXPORTER_OTLP_TIMEOUT": "1000"})
    try:
        stage.hang()
        until(stage.ops, "the deadlock")
        began = time.monotonic()
        stage.report()
        diag = time.monotonic() - began
        began = time.monotonic()
        stage.abort()
        stop(stage.shell)
        hang = time.monotonic() - began
        if url:
            for process in [stage.mount, stage.server]:
                totals = until(lambda: (t := stage.totals(process)).get("spans_dropped") and t, "a count of what was lost")
                check("takes no spans" in (totals.get("spans_problem") or ""), f"{totals} says no reason")
        return [diag, hang, *stage.end()]
    finally:
        stage.clear()


def judge_times(agent, shelley):
    """Whether the hang, the report and the exits take no longer where nobody takes the spans.

    Each way three times, in turn, and the shortest counts: what else the machine does only adds.
    """
    nobody = f"http://127.0.0.1:{free_port()}"
    ways = {"not asked for": None, "absent": nobody, "stopped": agent.url("http")}
    agent.process.send_signal(signal.SIGSTOP)
    rounds = {how: [] for how in ways}
    for _ in range(3):
        for how, url in ways.items():
            rounds[how].append(without_receiver(shelley, url))
    shortest = {how: [min(times) for times in zip(*of)] for how, of in rounds.items()}
    for how, times in shortest.items():
        shown = ", ".join(f"{what} {took:.2f} s" for what, took in zip(["diag", "abort", "exit", "exit"], times))
        print(f"receiver {how}: {shown}")
        for took, bare in zip(times, shortest["not asked for"]):
            check(took < bare + 0.3, f"receiver {how}: {took:.2f} s, {bare:.2f} s without an exporter")


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--agent", required=True, help="the program ddapm-test-agent")
    args.add_argument("--shelley", required=True, help="the built example")
    args = args.parse_args()
    for protocol in ["grpc", "http"]:
        agent = Agent(args.agent)
        try:
            story(agent, args.shelley, protocol)
        finally:
            agent.end()
    agent = Agent(args.agent)
    try:
        killed(agent, args.shelley)
        judge_times(agent, args.shelley)
    finally:
        agent.end()


if __name__ == "__main__":
    try:
        main()
    except Wrong as wrong:
        raise SystemExit(f"judge: {wrong}") from None
