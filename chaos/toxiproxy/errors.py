"""What can go wrong with a control call to a Toxiproxy server."""

import requests


class ToxiproxyError(Exception):
    """A control call that did not do its work. The message is one line: call, proxy, what the server said."""


class ToxiproxyUnsafe(ToxiproxyError):
    """Refused before it was sent: it would crash the server, or silently mean something else."""


class ToxiproxyGone(ToxiproxyError):
    """Nothing listens at the API's address: the server has ended, and all its faults with it."""


class ToxiproxyUnreachable(ToxiproxyError):
    """The connection to the API failed in another way than a refusal."""


class ToxiproxyTimeout(ToxiproxyError):
    """No answer within the deadline. The change may or may not have been made."""


class ToxiproxyMalformed(ToxiproxyError):
    """The answer is not what Toxiproxy's API says."""


class ToxiproxyUnverified(ToxiproxyError):
    """The server agreed, but reading back shows another state."""


class ToxiproxyRefused(ToxiproxyError):
    """The server answered with an error `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def explained(where: str, error: BaseException, limit_s: float) -> BaseException:
    """The error that a call failed with, as one of these if it has to do with the server; else as it is."""
    match error:
        case ToxiproxyRefused():
            return ToxiproxyRefused(f"{where}: {error}", error.status)
        case ToxiproxyError():
            return type(error)(f"{where}: {error}")
        case requests.Timeout():
            return ToxiproxyTimeout(f"{where}: no answer within {limit_s:g} s")
        case requests.JSONDecodeError() | KeyError() | TypeError() | ValueError():
            return ToxiproxyMalformed(f"{where}: answer is not Toxiproxy's: {type(error).__name__}: {one_line(error)}")
        case requests.RequestException() | OSError():
            if _was_refused(error):
                return ToxiproxyGone(f"{where}: nothing listens there")
            return ToxiproxyUnreachable(f"{where}: {one_line(error)}")
        case _:
            return error


def _was_refused(error: BaseException | None) -> bool:
    for _ in range(8):
        if error is None:
            return False
        if isinstance(error, ConnectionRefusedError):
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(error: BaseException) -> str:
    """An error's text, at most 200 characters."""
    return " ".join(str(error).split())[:200]
