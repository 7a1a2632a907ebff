"""One request to a chat model that speaks OpenAI's protocol, and everything that can be wrong with its answer."""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from prealign_ds.config import Settings
from prealign_ds.languages import check_language

_MOST_ANSWER_BYTES = 16 << 20


class ChatSettings(Settings):
    """An endpoint, and how it is asked; a YAML file for ``tools/build_table.py --chat``."""

    url: str
    """Its base, such as http://localhost:8000/v1; requests go to /chat/completions below it."""
    model: str
    """Name of the model."""
    languages: list[str] = Field(min_length=1)
    """Codes of the target languages."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key, which is written nowhere; without it none is sent."""
    senses: int = Field(3, ge=1)
    """Translations to ask for in each language."""
    words_per_request: int = Field(40, ge=1)
    """Words in one request."""
    parallel: int = Field(8, ge=1)
    """Requests under way at once."""
    requests_per_minute: float = Field(0, ge=0)
    """Limit of the rate; 0 sets none."""
    attempts: int = Field(6, ge=1)
    """Tries of one request, with growing waits between them, before its words are asked in halves."""
    timeout: float = Field(120, gt=0)
    """Seconds that one request may take."""
    price: tuple[float, float] = (0.0, 0.0)
    """Of a million prompt tokens, and of a million answered ones, in any currency."""
    most_cost: float = Field(0, ge=0)
    """Stop when this is spent, and do not begin what is estimated to cost more; 0 sets no limit."""

    @model_validator(mode="after")
    def _check(self) -> ChatSettings:
        parts = urlsplit(self.url)
        if parts.username or parts.password:
            raise ValueError(f"url: {parts.hostname}: leave the password out, and set {self.key_variable}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: {self.url!r}: give one such as http://localhost:8000/v1")
        for language in self.languages:
            check_language(language)
        if self.most_cost and not any(self.price):
            raise ValueError("most_cost: a limit needs the price of a million tokens")
        return self

    @property
    def host(self) -> str:
        """Whom errors speak of."""
        return urlsplit(self.url).hostname or self.url


class Retry(Exception):
    """A request that may succeed another time; ``kind`` is counted, ``delay`` what the endpoint asks to wait."""

    def __init__(self, kind: str, text: str = "", delay: float | None = None):
        super().__init__(f"{kind}{f' ({text})' if text else ''}")
        self.kind, self.delay = kind, delay


class Endpoint:
    """The protocol: one request, its answer as JSON, and what went wrong in words."""

    def __init__(self, settings: ChatSettings):
        self._settings = settings
        self._url = settings.url.rstrip("/") + "/chat/completions"
        self._structured = True
        self._lock = threading.Lock()
        self._next = 0.0

    def ask(self, prompt: str, languages: Sequence[str]) -> tuple[Any, tuple[int, int]]:
        """The JSON value that the model wrote, and its prompt and answer tokens.

        Args:
            prompt: The question.
            languages: Keys of the answer's entries, beside ``word``.

        Raises:
            Retry: If another try may help.
            ValueError: If none can.
        """
        self._await_turn()
        structured = self._structured
        answer = self._post(self._body(prompt, languages, structured), structured)
        try:
            choice = answer["choices"][0]
            text, ended = choice["message"]["content"], choice.get("finish_reason")
            usage = answer.get("usage") or {}
            tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise Retry("not a chat completion") from error
        if ended == "length":
            raise Retry("answer cut at the model's limit")
        return _json_in(text), tokens

    def _await_turn(self) -> None:
        if not self._settings.requests_per_minute:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60 / self._settings.requests_per_minute
        time.sleep(turn - now)

    def _body(self, prompt: str, languages: Sequence[str], structured: bool) -> bytes:
        message = {"role": "user", "content": prompt}
        body: dict[str, Any] = {"model": self._settings.model, "messages": [message], "temperature": 0}
        if structured:
            schema = {"name": "translations", "strict": True, "schema": _schema(languages)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return json.dumps(body, ensure_ascii=False).encode()

    def _post(self, body: bytes, structured: bool) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "prealign-ds"}
        if key := os.environ.get(self._settings.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, body, headers)
        deadline = time.monotonic() + self._settings.timeout
        try:
            with urllib.request.urlopen(request, timeout=self._settings.timeout) as response:
                data = _read_until(response, deadline)
        except urllib.error.HTTPError as error:
            raise self._refused(error, structured) from None  # the chain would hold the request and its key
        except (OSError, http.client.HTTPException) as error:
            timed_out = isinstance(error, TimeoutError) or "timed out" in str(error)
            raise Retry("timed out" if timed_out else "connection lost", type(error).__name__) from None
        try:
            return json.loads(data)
        except ValueError:
            raise Retry("answer is not JSON") from None

    def _refused(self, error: urllib.error.HTTPError, structured: bool) -> Exception:
        with error:
            try:
                told = " ".join(error.read(2000).decode(errors="replace").split())[:200]
            except (OSError, http.client.HTTPException):
                told = ""
        key = os.environ.get(self._settings.key_variable)
        told = told.replace(key, "***") if key else told
        if error.code in (400, 422) and structured:  # many servers know no structured output
            self._structured = False
            return Retry("structured output refused", delay=0.0)
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            return Retry(f"HTTP {error.code}", told, _retry_after(error.headers.get("Retry-After")))
        remedy = {
            401: f"set {self._settings.key_variable} to a valid key",
            403: f"set {self._settings.key_variable} to a key that may use this model",
            404: "check the url (it ends in /v1 for most servers) and the model's name",
        }.get(error.code, "check the url and the model")
        return ValueError(f"chat: {self._settings.host} refuses with HTTP {error.code} ({told}); {remedy}")


def _schema(languages: Sequence[str]) -> dict[str, Any]:
    texts = {"type": "array", "items": {"type": "string"}}
    properties = {"word": {"type": "string"}, **dict.fromkeys(languages, texts)}
    entry = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"translations": {"type": "array", "items": entry}},
        "required": ["translations"],
        "additionalProperties": False,
    }


def _read_until(response: Any, deadline: float) -> bytes:
    """The whole body; a server that trickles it for ever is cut off, and so is one that has no end."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline or size > _MOST_ANSWER_BYTES:
            raise TimeoutError("timed out")
    if response.length:  # read1 does not tell that the connection ended early
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _json_in(text: Any) -> Any:
    """The JSON value in a model's text: bare, in a fence, or between other words.

    Raises:
        Retry: If there is none.
    """
    if isinstance(text, str):
        start = min((place for place in (text.find("{"), text.find("[")) if place >= 0), default=-1)
        if start >= 0:
            try:
                return json.JSONDecoder().raw_decode(text, start)[0]
            except (ValueError, RecursionError):
                pass
    raise Retry("the model wrote no valid JSON")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which has seconds or a date; at most 5 minutes."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), 300.0) if math.isfinite(seconds) else None
