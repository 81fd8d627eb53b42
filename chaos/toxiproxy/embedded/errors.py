"""What the API answers when it cannot do what was asked."""


class ApiError(Exception):
    """One clear line and an HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class BadBody(ApiError):
    """The request's body is not what the call takes."""

    def __init__(self, message: str) -> None:
        super().__init__(f"bad request body: {message}", 400)


class MissingField(ApiError):
    """A field that has no default is missing or empty."""

    def __init__(self, field: str) -> None:
        super().__init__(f"missing required field: {field}", 400)


class ListenError(ApiError):
    """A proxy cannot listen where it should."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 500)


def proxy_not_found() -> ApiError:
    """No proxy of that name."""
    return ApiError("proxy not found", 404)


def toxic_not_found() -> ApiError:
    """The proxy has no toxic of that name."""
    return ApiError("toxic not found", 404)
