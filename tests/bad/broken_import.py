"""A module that fails to import."""

import no_such_library  # noqa: F401  # type: ignore
