"""The page itself, built with Gradio: what is where, and what a click does."""

from __future__ import annotations

import base64
import io
import random
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
import torch
from fastapi import FastAPI, Request, Response
from PIL import Image
from torch import Tensor

from jem.app.subject import SHOWN_SIDE, Subject
from jem.errors import JemError
from jem.generation import counterfactual, inpaint, sample
from jem.generation.samples import sampler_of

POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; worker-src 'self' blob:"
"""The browser refuses to load anything from, or send anything to, another place than the page."""

FRAMES = 12
"""Pictures of a chain in its film."""

PAD = f"""
<p>Draw with the mouse, a pen or a finger, as large as the examples are.</p>
<canvas width="{SHOWN_SIDE}" height="{SHOWN_SIDE}" aria-label="drawing area"
 style="border: 1px solid currentColor; touch-action: none; cursor: crosshair"></canvas>
<p><button style="text-decoration: underline">Clear the drawing</button></p>
"""
DRAWING = """
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
let down = false, asked = 0;
function ink() {
  const style = getComputedStyle(canvas);
  Object.assign(pen, {lineWidth: STROKE, lineCap: "round", strokeStyle: style.color});
}
function tell() { props.value = canvas.toDataURL("image/png"); trigger("input"); }
canvas.addEventListener("pointerdown", event => {
  down = true; ink(); canvas.setPointerCapture(event.pointerId);
  pen.beginPath(); pen.moveTo(event.offsetX, event.offsetY);
  pen.lineTo(event.offsetX, event.offsetY); pen.stroke();
});
canvas.addEventListener("pointermove", event => {
  if (!down) return;
  pen.lineTo(event.offsetX, event.offsetY); pen.stroke();
  clearTimeout(asked); asked = setTimeout(tell, 100);
});
canvas.addEventListener("pointerup", () => { down = false; clearTimeout(asked); tell(); });
element.querySelector("button").addEventListener("click", () => {
  pen.clearRect(0, 0, canvas.width, canvas.height);
});
"""
"""A place to draw on, and what tells the page of each stroke."""

PROGRESS = gr.Progress()
"""As a default argument it has Gradio show how far a function is."""

FONT = ("ui-sans-serif", "system-ui", "sans-serif")


def build_page(subjects: Sequence[Subject]) -> FastAPI:
    """The page of some models, as a web application.

    Args:
        subjects: Models with one input shape and the same classes, in one order; the first one
            draws, completes and changes, all of them answer.

    Returns:
        The application; nothing that it serves asks for anything from elsewhere.
    """
    first = subjects[0]
    with gr.Blocks(title=f"jem: {first.name}", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {first.name}\n{_about(subjects)}")
        if len(first.shape) == 3:
            _image_tabs(subjects)
        else:
            _table_tab(subjects)
    app = FastAPI()

    @app.middleware("http")
    async def keep_to_ourselves(request: Request, call_next: Any) -> Response:  # noqa: ANN401
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    theme = gr.themes.Default(font=FONT, font_mono=("ui-monospace", "monospace"))
    gr.mount_gradio_app(
        app, blocks, path="", theme=theme, footer_links=[], ssr_mode=False, show_error=True
    )
    return app


def _about(subjects: Sequence[Subject]) -> str:
    names = " beside ".join(f"**{subject.name}**" for subject in subjects)
    return f"{names}. The class, how sure the model is, and whether it rejects the input, and why."


def _shows_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """A mistake of the user becomes a sentence on the page."""

    @wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        try:
            return function(*arguments, **named)
        except JemError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def _answers(subjects: Sequence[Subject]) -> tuple[list[Any], Callable[[Tensor], list[Any]]]:
    """Where the answers of all models stand, side by side, and what fills them."""
    places: list[Any] = []
    with gr.Row():
        for subject in subjects:
            with gr.Column(min_width=280):
                gr.Markdown(f"**{subject.name}**")
                places += [
                    gr.Markdown("Nothing to judge yet.", elem_id=f"verdict-{subject.name}"),
                    gr.Label(
                        label="calibrated probability", num_top_classes=4, show_heading=False
                    ),
                    gr.Plot(show_label=False),
                ]
                gr.Markdown("Its score (orange) among those of inputs like the data (blue).")

    def answer(x: Tensor) -> list[Any]:
        values: list[Any] = []
        for subject in subjects:
            probabilities, verdict, figure = subject.answer(x)
            values += [verdict, probabilities, figure]
        return values

    return places, answer


def _stroke(subject: Subject) -> int:
    """Width of a stroke in pixels of the drawing: at least that of a pixel of the data."""
    return max(SHOWN_SIDE // 12, 3 * SHOWN_SIDE // (2 * min(subject.shape[1:])))


# -- images ---------------------------------------------------------------------------------------


def _image_tabs(subjects: Sequence[Subject]) -> None:
    first = subjects[0]
    current = gr.State(None)  # the input that is looked at, (1, C, H, W)
    with gr.Tab("Look"):
        with gr.Row():
            with gr.Column(min_width=320, scale=1):
                pad = gr.HTML(
                    html_template=PAD,
                    js_on_load=DRAWING.replace("STROKE", str(_stroke(first))),
                    visible=first.shape[0] == 1,
                    elem_id="pad",
                )
                file = gr.File(label="or give an image", file_types=["image"])
                pick = gr.Button("or take a test input", visible=first.splits is not None)
            with gr.Column(min_width=200, scale=1):
                seen = gr.Image(
                    label="what the model sees", interactive=False, format="png", buttons=[]
                )
                near = gr.Gallery(
                    label="nearest training examples", columns=3, visible=first.splits is not None
                )
        places, answer = _answers(subjects)

        def look(x: Tensor) -> list[Any]:
            return [x, first.picture(x), first.nearest(x), *answer(x)]

        @_shows_errors
        def drawn(value: str) -> list[Any]:
            content = base64.b64decode(value.partition(",")[2])
            ink = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[..., 3]
            return look(first.from_strokes(ink))

        @_shows_errors
        def given(path: str | None) -> list[Any]:
            if path is None:
                return [gr.skip()] * (3 + len(places))
            return look(first.from_file(Path(path)))

        def picked() -> list[Any]:
            test = first.splits.test  # type: ignore[union-attr]
            i = random.randrange(len(test))
            return look(test[i : i + 1][0])

        outputs = [current, seen, near, *places]
        pad.input(drawn, pad, outputs, show_progress="hidden", trigger_mode="always_last")
        file.change(given, file, outputs)
        pick.click(picked, None, outputs)
    if len(first.classes) > 1 and first.splits is not None:
        with gr.Tab("Change"):
            _change_tab(first, current)
    if first.model.sampler is not None:  # a classifier without a density draws nothing
        with gr.Tab("Complete"):
            _complete_tab(first, current)
        with gr.Tab("Draw new ones"):
            _draw_tab(first)


def _needed(x: Tensor | None) -> Tensor:
    if x is None:
        raise gr.Error("choose an input under Look first", print_exception=False)
    return x


def _complete_tab(subject: Subject, current: gr.State) -> None:
    gr.Markdown("The model fills in a half of the input that you chose under Look.")
    half = gr.Radio(["lower", "upper", "left", "right"], value="lower", label="half to fill in")
    seed = gr.Number(0, label="seed", precision=0)
    with gr.Row():
        go, stop = gr.Button("Complete", variant="primary"), gr.Button("Stop")
    done = gr.Gallery(label="the input, what was kept, and four completions", columns=3)

    @_shows_errors
    def complete(
        x: Tensor | None, half: str, seed: float, progress: gr.Progress = PROGRESS
    ) -> list[Image.Image]:
        x = _needed(x)
        known = torch.ones_like(x, dtype=torch.bool)
        axis = -1 if half in ("left", "right") else -2
        first, second = known.tensor_split([known.shape[axis] // 2], dim=axis)
        (first if half in ("upper", "left") else second).fill_(False)
        made = inpaint(
            subject.model,
            x.repeat(4, 1, 1, 1),
            known.repeat(4, 1, 1, 1),
            seed=int(seed),
            progress=lambda done, total: progress((done, total), desc="completing"),
        )
        kept = x.where(known, torch.full_like(x, subject.ground()))
        return [subject.picture(image[None]) for image in (x[0], kept[0], *made)]

    event = go.click(complete, [current, half, seed], done)
    stop.click(None, cancels=event)


def _change_tab(subject: Subject, current: gr.State) -> None:
    gr.Markdown(
        "The nearest input that the model takes for another class, and finds as likely as data."
    )
    target = gr.Dropdown(subject.classes, value=subject.classes[0], label="make it a ...")
    go = gr.Button("Change", variant="primary")
    with gr.Row():
        before = gr.Image(label="before", interactive=False, format="png", buttons=[])
        after = gr.Image(label="after", interactive=False, format="png", buttons=[])
    said = gr.Markdown()

    @_shows_errors
    def change(x: Tensor | None, target: str) -> tuple[Image.Image, Image.Image, str]:
        x, splits = _needed(x), subject.splits
        index = subject.classes.index(target)
        found = counterfactual(subject.model, x, index, reference=splits.calibration.x)  # type: ignore[union-attr]
        text = f"Distance: {float(found.distance[0]):.2f}."
        if not found.success[0]:
            text = "Nothing was found that is both of this class and likely: the nearest miss."
        return subject.picture(x), subject.picture(found.x), text

    go.click(change, [current, target], [before, after, said])


def _draw_tab(subject: Subject) -> None:
    usual = sampler_of(subject.model).num_steps
    label = gr.Dropdown(subject.classes, value=subject.classes[0], label="class")
    with gr.Row():
        steps = gr.Slider(1, 4 * usual, value=usual, step=1, label="Langevin steps")
        guidance = gr.Slider(0, 4, value=1, step=0.1, label="guidance: varied to typical")
        seed = gr.Number(0, label="seed", precision=0)
    with gr.Row():
        go, stop = gr.Button("Draw", variant="primary"), gr.Button("Stop")
    with gr.Row():
        drawn = gr.Gallery(label="new ones", columns=4)
        film = gr.Image(
            label="the chain of the first",
            interactive=False,
            type="filepath",
            buttons=["download"],
        )

    @_shows_errors
    def draw(
        label: str, steps: int, guidance: float, seed: float, progress: gr.Progress = PROGRESS
    ) -> tuple[list[Image.Image], str]:
        index = subject.classes.index(label)
        frames = []
        for k in np.unique(np.linspace(0, steps, FRAMES).round().astype(int)):
            progress((int(k), steps), desc="drawing")
            x = sample(
                subject.model, [index] * 8, seed=int(seed), num_steps=int(k), guidance=guidance
            )
            frames.append(subject.picture(x[:1]).convert("RGB"))
        with tempfile.NamedTemporaryFile(suffix=".gif", delete=False) as file:
            frames[0].save(file, save_all=True, append_images=frames[1:], duration=300, loop=0)
        return [subject.picture(image[None]) for image in x], file.name

    event = go.click(draw, [label, steps, guidance, seed], [drawn, film])
    stop.click(None, cancels=event)


# -- tables ---------------------------------------------------------------------------------------


def _table_tab(subjects: Sequence[Subject]) -> None:
    """A field for each column of the table, which begins at a row of the test part."""
    first = subjects[0]
    rows = first.rows()
    fields: list[Any] = []
    with gr.Row():
        for name in rows.columns:
            values = rows[name].dropna()
            if pd.api.types.is_numeric_dtype(values):
                low, high = float(values.min()), float(values.max())
                room = max(high - low, 1e-6)  # to the left and to the right of the data, too
                fields.append(gr.Slider(low - room, high + room, label=str(name), min_width=240))
            else:
                choices = sorted(values.astype(str).unique())
                fields.append(gr.Dropdown(choices, label=str(name), allow_custom_value=True))
    pick = gr.Button("Take a test row", variant="primary")
    places, answer = _answers(subjects)

    def picked() -> list[Any]:
        row = rows.iloc[random.randrange(len(rows))]
        numbers = [pd.api.types.is_number(value) for value in row]  # six digits: float32 has seven
        return [float(f"{v:.6g}") if n else v for v, n in zip(row, numbers, strict=True)]

    @_shows_errors
    def judge(*values: Any) -> list[Any]:  # noqa: ANN401
        return answer(first.from_row(dict(zip(rows.columns, values, strict=True))))

    gr.on([field.input for field in fields], judge, fields, places, show_progress="hidden")
    pick.click(picked, None, fields).then(judge, fields, places)
