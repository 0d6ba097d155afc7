"""How client commands talk to a server: one HTTP client, and errors that name the fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import click
import httpx

from engine.errors import ServerUnreachable, SwitchyardError
from engine.http_errors import ServerError, raise_for_error

__all__ = ["DEFAULT_URL", "Client", "ServerError", "client_options", "print_json"]

DEFAULT_URL = "http://127.0.0.1:8000"
F = TypeVar("F", bound=Callable[..., Any])


def client_options(command: F) -> F:
    """Add --url and --api-key."""
    for option in (
        click.option("--api-key", envvar="SWITCHYARD_API_KEY", help="Key of the server, where it asks for one."),
        click.option("--url", envvar="SWITCHYARD_URL", default=DEFAULT_URL, show_default=True, help="The server."),
    ):
        command = option(command)
    return command


class Client:
    """A connection to one server."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        try:
            # Proxies of the environment are for the outside world, not for the server next door.
            self._http = httpx.Client(base_url=self._url, headers=headers, timeout=timeout_s, trust_env=False)
        except (httpx.InvalidURL, ValueError) as error:
            raise SwitchyardError(f"--url {url!r} is not a URL ({error}). Example: {DEFAULT_URL}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection, which a command that ends need not do."""
        self._http.close()

    def call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Send one request and return its JSON.

        Raises: ServerUnreachable; ServerError with the server's own message.
        """
        try:
            response = self._http.request(method, path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerUnreachable(self._url, str(error) or type(error).__name__) from None
        raise_for_error(response)
        answer: dict[str, Any] = response.json()
        return answer

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The data of each server-sent event of a streamed answer.

        Raises: also when the stream breaks off or carries an error.
        """
        try:
            with self._http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise_for_error(response)
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        event = json.loads(line.removeprefix("data: "))
                        if "error" in event:
                            raise ServerError(200, event["error"]["message"], event["error"]["code"])
                        yield event
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerUnreachable(self._url, str(error) or type(error).__name__) from None
        raise SwitchyardError("the answer broke off before it was complete; ask again.")


def print_json(value: Any) -> None:
    """The one JSON object of a `--json` run."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))
