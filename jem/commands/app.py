"""`jem app`: a page in the browser to try models on."""

import threading
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jem.checks import check_integer, refuse
from jem.commands.runs import note, open_run
from jem.errors import InputError
from jem.serving.scorer import scorer_from_state


@dataclass
class AppFlags:
    """Try a model in the browser: draw or give an input, and see class, verdict and reason.

    For images the page also completes halves, changes an input to another class, and draws new
    ones; for tables it has a field for each column. Several models answer side by side, such as a
    run and its control. Needs pip install 'jem-classifier[app]'.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Run folders, or model files such as RUN/model.pt; all of the same data."""
    port: int = 7860
    """Where the page is: http://127.0.0.1:7860."""
    host: str = "127.0.0.1"
    """The address to answer at. Another one lets other machines in."""
    browser: bool = True
    """Open the page in the browser."""
    network: str | None = None
    """`module:factory` of your own network, if a run does not name it."""
    data: str | None = None
    """Where the training data are now, if they were moved; without them there are no examples."""
    data_root: str | None = None
    """Folder of downloaded data sets."""


def app(argv: list[str]) -> int:
    """Serve the page until it is stopped."""
    args = tyro.cli(AppFlags, args=argv, prog="jem app")
    check_integer("--port", args.port, 1, 65535)
    try:
        import uvicorn

        from jem.app.page import build_page
        from jem.app.subject import Subject
    except ImportError as error:
        raise InputError(f"{error}: pip install 'jem-classifier[app]'") from error
    if not args.runs:
        refuse("RUN", "be one run folder or model file or more", "none")
    subjects: list[Subject] = []
    for path in args.runs:
        run = open_run(path, args.network)
        try:
            splits = run.splits(args.data, args.data_root)
        except InputError as error:
            note(f"no examples on the page: {error}")
            splits = None
        # "control" or "model.pt" says nothing without the folder that it is in
        parts = path.resolve().parts
        name = "/".join(parts[-2:] if parts[-1] in ("control", "model.pt") else parts[-1:])
        subjects.append(Subject(name, scorer_from_state(run.content, run.model, path), splits))
        first, last = subjects[0], subjects[-1]
        if (last.shape, last.classes) != (first.shape, first.classes):
            wanted = f"have inputs of shape {first.shape} and classes {', '.join(first.classes)}"
            refuse(str(path), wanted, f"{last.shape} and {', '.join(last.classes)}")
    page = build_page(subjects)
    address = f"http://{args.host}:{args.port}"
    if args.host not in ("127.0.0.1", "::1", "localhost"):
        note("other machines can reach this page, and all that it answers")
    print(f"{address}\nCtrl+C ends it", flush=True)
    if args.browser:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    # A browser keeps connections open; without a limit Ctrl+C would wait for it to be closed.
    uvicorn.run(
        page, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=1
    )
    return 0
