"""What lies at the root of an error that Ray raised."""

from __future__ import annotations

from pipeline.errors import RaysightError

_RAYS_ADVICE = "\nFailed to "  # Ray Data appends advice on its own settings to every error message


def explain(error: BaseException) -> RaysightError:
    """Our own error where one lies below Ray's wrappers, else the last line of what lies at the root."""
    root = error
    while True:
        if isinstance(root, RaysightError) and type(root).__module__ == RaysightError.__module__:
            return type(root)(str(root).partition(_RAYS_ADVICE)[0])
        cause = getattr(root, "cause", None)
        below = cause if isinstance(cause, BaseException) else root.__cause__
        if below is None:
            break
        root = below
    lines = [line for line in str(root).strip().splitlines() if line.strip()]
    return RaysightError(f"Ray gave up: {type(root).__name__}: {lines[-1] if lines else ''}; run again to resume")
