"""The Python of one page: blocks come in on standard input and run in one namespace, `__main__`.

Each is a line of JSON with its code, the page and the line where it stands; the answer is a line of
JSON with what it printed and, where it failed, its traceback.
"""

import contextlib
import io
import json
import os
import sys
import traceback


def run(told: dict[str, object], namespace: dict[str, object]) -> dict[str, object]:
    """Run a block.

    Args:
        told: code, page, line; "only", a name that the code makes and that alone is kept.
        namespace: of the page.
    """
    printed = io.StringIO()
    failed = None
    only = told.get("only")
    place: dict[str, object] = {} if only else namespace
    # As many empty lines in front as the page has: tracebacks then name its own lines.
    code = "\n" * (int(str(told["line"])) - 1) + str(told["code"])
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(code, str(told["page"]), "exec"), place)
            if only:
                namespace[str(only)] = place[str(only)]
        except BaseException:
            failed = traceback.format_exc()
    return {"printed": printed.getvalue(), "failed": failed}


def main() -> None:
    """Answer until there is no more."""
    # A channel of its own: what C libraries print goes to the error stream.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path[0] = ""  # as in an interpreter that is started in the page's folder
    namespace = sys.modules["__main__"].__dict__
    namespace["__name__"] = "__main__"
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), namespace)), file=channel, flush=True)


if __name__ == "__main__":
    main()
