"""A chat model on this machine that speaks OpenAI's protocol, knows every word, and misbehaves as it is told.

As a program it prints its port and serves until it is killed; it appends each word that it has answered rightly to a
file, and every request's kind of misbehaviour to another.
"""

import json
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TROUBLES = (
    "busy broken cut not-json prose fenced missing wrong-words extra-languages strings nested too-long silent empty"
).split()


def translation(word, language):
    return {"de": "Wort" + word, "ru": "слово" + str(sum(map(ord, word)))}.get(language, f"{language}{word}")


class ChatServer(ThreadingHTTPServer):
    """Answers; ``share`` of the requests in trouble of one of ``troubles``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, share=0.0, troubles=TROUBLES, structured=True, seed=0, poison=(), log=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.share, self.troubles, self.structured = share, troubles, structured
        self.random, self.lock = random.Random(seed), threading.Lock()
        self.poison, self.log = set(poison), log
        self.prompt_tokens = 100
        self.answered, self.kinds, self.keys, self.times = Counter(), Counter(), set(), []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that is gone is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        words = json.loads(prompt[prompt.rindex("Words: ") + 7 :])
        languages = re.search(r"translations into ([a-z, ]+) \(ISO", prompt)[1].split(", ")
        with server.lock:
            server.times.append(time.monotonic())
            server.keys.add(self.headers.get("Authorization"))
            kind = server.random.choice(server.troubles) if server.random.random() < server.share else "fine"
            if "response_format" in body and not server.structured:
                kind = "no-structure"
            if server.poison & set(words):
                kind = "broken"
            server.kinds[kind] += 1
        if self.path != "/v1/chat/completions":
            return self._send(404, b'{"error": "no such path"}')
        getattr(self, "_" + kind.replace("-", "_"), self._answer)(kind, words, languages)

    def _answer(self, kind, words, languages):
        told = words[: len(words) // 2] if kind == "missing" else words
        entries = [{"word": w, **{code: [translation(w, code)] for code in languages}} for w in told]
        if kind == "wrong-words":
            entries += [{"word": "never" + w, "de": ["falsch"]} for w in words[:3]]
        if kind == "extra-languages":
            entries = [{**entry, "xx": ["extra"]} for entry in entries]
        if kind == "strings":
            entries = [{k: v[0] if isinstance(v, list) else v for k, v in entry.items()} for entry in entries]
        if kind == "nested":
            entries = [{"word": e.pop("word"), "translations": e} for e in entries]
        text = json.dumps({"translations": entries}, ensure_ascii=False)
        if kind == "fenced":
            text = f"Here you are:\n```json\n{text}\n```\nGlad to help."
        self._complete(text, told)

    def _complete(self, text, told=(), reason="stop"):
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
        usage = {"prompt_tokens": self.server.prompt_tokens, "completion_tokens": 10 * len(told)}
        data = json.dumps({"choices": [choice], "usage": usage}, ensure_ascii=False).encode()
        with self.server.lock:
            self.server.answered.update(told)
            if self.server.log and told:
                with open(self.server.log, "a") as log:
                    log.write("".join(word + "\n" for word in told))
        self._send(200, data)

    def _send(self, code, data, headers=(), length=None):
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def _busy(self, *_):
        self._send(429, b'{"error": "slow down"}', [("Retry-After", "0.05")])

    def _broken(self, *_):
        self._send(500, b"oh no", [("Retry-After", "0")])

    def _cut(self, *_):
        self._send(200, b'{"choices": [{"message": {"con', length=1000)
        self.connection.shutdown(socket.SHUT_RDWR)

    def _not_json(self, *_):
        self._send(200, b"<html>gateway</html>")

    def _prose(self, *_):
        self._complete("I would rather talk about the weather.")

    def _too_long(self, kind, words, languages):
        self._complete('{"translations": [{"word": "' + words[0], reason="length")

    def _empty(self, *_):
        self._send(200, b'{"choices": []}')

    def _silent(self, *_):
        time.sleep(0.6)
        self.close_connection = True

    def _no_structure(self, *_):
        self._send(400, b'{"error": "response_format is not known here"}')


if __name__ == "__main__":
    with ChatServer(float(sys.argv[1]), log=sys.argv[2]) as served:
        print(served.url, flush=True)
        threading.Event().wait()
