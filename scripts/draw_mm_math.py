"""Draw how an MM_Math row becomes data, an SFT row and a DPO pair: three SVG files in resources/.

uv run python scripts/draw_mm_math.py
"""

import base64
import html
import io
import textwrap
from pathlib import Path

from school_geometry import figures
from school_geometry.problems import Problem
from tunebook.checkers import maths

RESOURCES = Path(__file__).parents[1] / "resources"
PROBLEM = Problem("third_angle", (("a", 65), ("b", 40)), 0, "ABCD")
# A wrong intermediate result, carried on to a wrong answer.
FLAWED = PROBLEM.solution.replace("105", "115").replace("80 - 5 = 75", "70 - 5 = 65").replace("{75}", "{65}")
# Boxes (blue, plain, good, rejected), tokens (prompt, image, learnt), texts, arrows.
STYLE = """.b{fill:#eef3f8;stroke:#1f4e79;stroke-width:1.5}.p{fill:#fff;stroke:#9db4c9}
.g{fill:#eaf5ec;stroke:#2e7d43;stroke-width:1.5}.r{fill:#fbecec;stroke:#a33;stroke-width:1.5}
.n{fill:#d9d9d9;stroke:#888}.i{fill:#f3dfb5;stroke:#a5822f}.l{fill:#9cc3e6;stroke:#1f4e79}
.t{fill:#1f4e79;font-weight:bold}.s{fill:#444;font-size:12.5px}
.h{fill:#1f4e79;font-size:12.5px;font-weight:bold}.c{fill:#222;font:11.5px Menlo,Consolas,monospace}
.a{stroke:#777;stroke-width:1.8;fill:none;marker-end:url(#m)}.k{stroke:#777;stroke-width:1.3;fill:none}"""


def picture(name: str, height: int, label: str, *parts: str) -> None:
    """Write one SVG file, 900 wide, in the style of pipeline.svg."""
    fonts = 'font-family="Helvetica, Arial, sans-serif" font-size="15"'
    tip = '<path d="M0,0 L8,4 L0,8 z" fill="#777"/>'
    marker = f'<marker id="m" markerWidth="9" markerHeight="9" refX="7" refY="4" orient="auto">{tip}</marker>'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" {fonts} role="img"'
        f' aria-label="{label}">',
        f"<style>{STYLE}</style>",
        f'<rect width="900" height="{height}" fill="#fff"/>',
        f"<defs>{marker}</defs>",
        *parts,
        "</svg>",
    ]
    (RESOURCES / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def box(x: float, y: float, width: float, height: float, kind: str = "b", title: str = "") -> str:
    """A rectangle of one of the kinds of `STYLE`, with a title at its top."""
    corners = 8 if kind in "bgr" else 3
    rect = f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{corners}"/>'
    if title:
        rect += text(x + width / 2, y + 24, title, "t")
    return rect


def text(x: float, y: float, words: str, kind: str = "s", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(words)}</text>'


def list_of(x: float, y: float, lines: tuple[str, ...], step: float = 24) -> str:
    """Lines one below the other, each centred."""
    return "".join(text(x, y + step * i, line) for i, line in enumerate(lines))


def code(x: float, y: float, words: str, width: int) -> str:
    """Lines of `width` characters at most, from y downwards."""
    svg = ""
    for line in words.splitlines():
        for part in textwrap.wrap(line, width):
            svg += text(x, y, part, "c", "start")
            y += 15
    return svg


def field(x: float, y: float, name: str, words: str, width: int) -> str:
    """A column of a row: its name and its text."""
    return text(x, y, name, "h", "start") + "\n" + code(x, y + 17, words, width)


def arrow(path: str) -> str:
    return f'<path class="a" d="{path}"/>'


def figure(x: float, y: float, side: float) -> str:
    """The problem's own figure, as it lies in the data set."""
    # Sixteen greys are enough for a line drawing, and keep the SVG small.
    png = io.BytesIO()
    figures.draw(PROBLEM, 300).convert("L").quantize(16).save(png, "PNG", optimize=True)
    data = base64.b64encode(png.getvalue()).decode()
    image = f'<image x="{x}" y="{y}" width="{side}" height="{side}" href="data:image/png;base64,{data}"/>'
    return box(x, y, side, side, "p") + image


def tokens(x: float, y: float, n: int, kind: str) -> str:
    """A strip of tokens."""
    svg = ""
    for i in range(n):
        svg += f'<rect class="{kind}" x="{x + 13 * i:.1f}" y="{y}" width="10" height="22" rx="2"/>'
    return svg


def masked(x: float, y: float, n: int) -> str:
    """A strip of labels without a loss, each crossed out."""
    return tokens(x, y, n, "n") + "\n" + "\n".join(text(x + 13 * i + 5, y + 15, "×") for i in range(n))


def brace(x: float, end: float, y: float) -> str:
    return f'<path class="k" d="M{x},{y} v6 H{end} v-6"/>'


def preprocessing() -> None:
    question = figures.question(PROBLEM)
    checks = (
        "image opens, inside its folder",
        "RGB, scaled to the largest side",
        "solution ends in one \\boxed{}",
    )
    rewriting = ("numbered steps, house format", "kept only if it ends in", "the same final answer")
    picture(
        "mm_math_preprocessing.svg",
        405,
        "from a raw MM_Math row to a checked row with its image",
        # left: as it is downloaded
        box(15, 15, 270, 375, title="MM_Math row, raw"),
        figure(80, 50, 140),
        field(28, 212, "question", question, 34),
        field(28, 272, "solution: LaTeX prose", figures.solution(PROBLEM), 34),
        # middle: what is done to it
        arrow("M285,75 H330"),
        box(335, 15, 230, 120, title="checked"),
        list_of(450, 64, checks),
        arrow("M450,135 V165"),
        box(335, 170, 230, 120, title="rewritten"),
        list_of(450, 219, rewriting),
        arrow("M450,290 V320"),
        text(460, 309, "either one fails", "s", "start"),
        box(335, 325, 230, 65, "r", "quarantine.jsonl"),
        text(450, 373, "the row and the reason"),
        # right: as it is trained on
        arrow("M565,230 H610"),
        box(615, 15, 270, 375, title="row to train on"),
        figure(680, 50, 140),
        field(628, 212, "prompt: image and question", question, 34),
        field(628, 272, "completion: house format", PROBLEM.solution, 34),
    )


def sft() -> None:
    top, low = 190, 226  # the strip of tokens, and the labels under it
    picture(
        "mm_math_sft.svg",
        330,
        "how an SFT row is built: image and prompt tokens masked, completion trained",
        # above: the row
        figure(15, 15, 130),
        box(150, 15, 215, 130, "p"),
        field(160, 36, "prompt: image and question", figures.question(PROBLEM), 28),
        box(480, 15, 405, 130, "p"),
        field(490, 36, "completion", PROBLEM.solution, 55),
        arrow("M80,145 V183"),
        text(90, 169, "vision tower", "s", "start"),
        arrow("M257,145 V183"),
        text(267, 169, "tokenizer", "s", "start"),
        arrow("M682,145 V183"),
        text(692, 169, "tokenizer", "s", "start"),
        # below: its tokens, and their labels
        tokens(15, top, 10, "i"),
        tokens(150, top, 16, "n"),
        tokens(365, top, 7, "n"),
        tokens(480, top, 31, "l"),
        text(410, 169, "chat template"),
        masked(15, low, 10),
        masked(150, low, 16),
        masked(365, low, 7),
        tokens(480, low, 31, "l"),
        brace(15, 453, low + 28),
        brace(480, 880, low + 28),
        text(235, low + 54, "image and prompt: label −100, no loss", "t"),
        text(680, low + 54, "completion: the loss, every token of it", "t"),
        text(235, low + 74, "the model sees them, it is not trained to write them"),
        text(680, low + 74, "from “### Solution” to the end of the turn"),
    )


def dpo() -> None:
    def side(y: int, kind: str, name: str, solution: str) -> str:
        verdict = f"{maths.boxed(solution)} ≠ {PROBLEM.answer}: verified wrong"
        if maths.verify(solution, PROBLEM.answer, boxed_only=True).correct:
            verdict = f"{maths.boxed(solution)} = {PROBLEM.answer}: verified right"
        return (
            box(270, y, 330, 150, kind)
            + text(282, y + 22, name, "t", "start")
            + text(588, y + 22, verdict, "s", "end")
            + code(282, y + 44, solution, 48)
        )

    policy = (
        "log p of both completions,",
        "the SFT model as reference;",
        "chosen up against rejected,",
        "loss on completions alone",
    )
    picture(
        "mm_math_dpo.svg",
        345,
        "how a DPO pair is built: the same image and prompt, "
        "a completion verified right and one verified wrong",
        box(15, 15, 205, 315, title="the same prompt"),
        figure(42, 52, 150),
        code(28, 226, figures.question(PROBLEM), 25),
        text(117, 312, "image and question, for both"),
        arrow("M220,90 H265"),
        arrow("M220,255 H265"),
        side(15, "g", "chosen", PROBLEM.solution),
        side(180, "r", "rejected", FLAWED),
        arrow("M600,90 C630,90 630,150 650,160"),
        arrow("M600,255 C630,255 630,195 650,185"),
        box(655, 90, 230, 165, title="DPO"),
        list_of(770, 142, policy, 26),
        text(770, 290, "an answer that fails its check"),
        text(770, 308, "is in no pair"),
    )


if __name__ == "__main__":
    preprocessing()
    sft()
    dpo()
