"""``python -m pancrafter.cli``: the ``pancrafter`` command where its script is not on the path."""

from pancrafter.cli import main

main()
