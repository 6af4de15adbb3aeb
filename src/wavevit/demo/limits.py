"""What one server gives to all who use it."""

from dataclasses import dataclass

MEGABYTE = 1_000_000
MEGAPIXEL = 1_000_000


@dataclass(frozen=True)
class Limits:
    """How much users may ask for.

    Attributes:
        upload_mb: Largest file, megabytes.
        megapixels: Largest picture; known from a file's header, before anything is decoded.
        queue: Requests that may wait for the network.
        users: Pages that may be open at the same time.
        keep_minutes: For so long pictures of users are kept on the server.
        store_mb: Room for the pictures of all users, megabytes.

    Raises:
        ValueError: A number out of range.
    """

    upload_mb: float = 20.0
    megapixels: float = 50.0
    queue: int = 64
    users: int = 32
    keep_minutes: float = 10.0
    store_mb: float = 1000.0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("upload_mb", 0.01, 1000),
            ("megapixels", 0.01, 178),  # beyond, `data.images` refuses
            ("queue", 1, 10_000),
            ("users", 1, 10_000),
            ("keep_minutes", 0.1, 1440),
            ("store_mb", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                option = f"--{'' if name == 'keep_minutes' else 'max_'}{name}".replace("_", "-")
                raise ValueError(f"{option} must be {least:g} to {most:g}, got {value:g}")
