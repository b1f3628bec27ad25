"""Every error a user can meet, as one tree.

    GemmaError
    ├── RequestError          400  the question itself
    │   ├── BadOption         400  an option or setting that is unknown or out of range
    │   ├── BadImage          400  a picture that cannot be used
    │   ├── BadAudio          400  a clip that cannot be used
    │   ├── PromptTooLong     400  more tokens than the context holds
    │   ├── UnsupportedInput  400  this model cannot take that kind of input
    │   ├── NoConversation    404  the panel has no such conversation
    │   └── ConversationChanged 409  another tab saved the conversation meanwhile
    ├── ModelError            500  the model's files or their loading
    │   ├── UnknownModel      404  no such model is installed
    │   ├── BadCheckpoint     422  a file that is truncated, foreign or inconsistent
    │   └── OutOfMemory       507  the model does not fit
    ├── BadAnswer             422  the answer has not the form that was asked for
    └── ServerError           503  between client and server
        ├── ServerNotRunning  503  no server, and none may be started
        ├── ServerStartFailed 503  the server did not come up
        ├── ServerBusy        503  too many requests wait already
        ├── ServerLost        502  the connection broke while waiting or answering
        └── NotAuthorized     401  the token is missing or wrong

An error says what is wrong (``message``) and the way out (``fix``). ``code`` and ``status`` travel over the
wire in OpenAI's error body, and :func:`from_wire` makes the same class again on the other side.
"""

from __future__ import annotations

from typing import Any, ClassVar


class GemmaError(Exception):
    """Base of the tree. ``str(error)`` is the message followed by the way out."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(f"{message} {fix}".strip())
        self.message = message
        self.fix = fix

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message alone. The traceback stays on the exception for ``%debug``."""
        return [f"{type(self).__name__}: {self}"]

    def to_wire(self) -> dict[str, Any]:
        """OpenAI's error body; ``fix`` is ours and ignored by other clients."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code, "fix": self.fix}}


class RequestError(GemmaError):
    """The question itself is wrong."""

    code = "invalid_request"
    status = 400


class BadOption(RequestError):
    """An option or setting is unknown or out of range."""

    code = "invalid_option"


class BadImage(RequestError):
    """A picture cannot be used."""

    code = "invalid_image"


class BadAudio(RequestError):
    """A clip cannot be used."""

    code = "invalid_audio"


class PromptTooLong(RequestError):
    """The prompt has more tokens than the context holds."""

    code = "context_length_exceeded"


class UnsupportedInput(RequestError):
    """This model cannot take that kind of input."""

    code = "unsupported_input"


class NoConversation(RequestError):
    """The panel has no conversation of that name."""

    code = "no_conversation"
    status = 404


class ConversationChanged(RequestError):
    """Another tab saved the conversation meanwhile."""

    code = "conversation_changed"
    status = 409


class ModelError(GemmaError):
    """The model's files or their loading."""

    code = "model_error"


class UnknownModel(ModelError):
    """No model of that name is installed."""

    code = "model_not_found"
    status = 404


class BadCheckpoint(ModelError):
    """A checkpoint file is truncated, foreign or inconsistent."""

    code = "bad_checkpoint"
    status = 422


class OutOfMemory(ModelError):
    """The model does not fit into memory."""

    code = "out_of_memory"
    status = 507


class BadAnswer(GemmaError):
    """The answer has not the form that was asked for."""

    code = "bad_answer"
    status = 422


class ServerError(GemmaError):
    """Something between the client and the model server."""

    code = "server_error"
    status = 503


class ServerNotRunning(ServerError):
    """There is no server, and none may be started."""

    code = "server_not_running"


class ServerStartFailed(ServerError):
    """The server did not come up."""

    code = "server_start_failed"


class ServerBusy(ServerError):
    """Too many requests wait already."""

    code = "server_busy"


class ServerLost(ServerError):
    """The connection broke while waiting or answering."""

    code = "server_lost"
    status = 502


class NotAuthorized(ServerError):
    """The token is missing or wrong."""

    code = "not_authorized"
    status = 401


def _tree(cls: type[GemmaError]) -> list[type[GemmaError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _tree(sub))]


def from_wire(status: int, body: object) -> GemmaError:
    """The error that an HTTP answer stands for.

    ``body`` is the decoded JSON, ours or another OpenAI-compatible server's; anything else becomes a plain
    :class:`GemmaError` that quotes the status.
    """
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        error = {"message": f"The server answered with HTTP status {status}."}
    by_code = {cls.code: cls for cls in _tree(GemmaError)}
    by_status: dict[int, type[GemmaError]] = {
        400: RequestError,
        401: NotAuthorized,
        403: NotAuthorized,
        404: UnknownModel,
        429: ServerBusy,
        503: ServerBusy,
    }
    cls = by_code.get(str(error.get("code"))) or by_status.get(status, GemmaError)
    return cls(str(error.get("message", "")), str(error.get("fix") or ""))
