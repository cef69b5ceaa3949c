"""`python -m deploy.audit`: one audit; `python -m deploy.audit serve`: one after another."""

from __future__ import annotations

import sys

from deploy.audit import command, serve

if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve.main()
    else:
        command.main(sys.argv[1:])
