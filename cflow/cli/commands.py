"""The list that every command adds itself to."""

import tyro

__all__ = ["app"]

app = tyro.extras.SubcommandApp()
