"""README and docs: commands and recipes are parsed, links followed, generated pages complete."""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import json
import re
import shlex
import tomllib
from pathlib import Path

import cards
import docs_pages
import pytest
import typer.main
import yaml

from tunebook.cli import app
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import parse_set
from tunebook.recipe.schema import recipe_schema
from tunebook.recipe.sections import Recipe
from tunebook.runs.stages import STAGES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "reference" / "api.md"]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

# What a reader types that is no program of the project's. Nothing here is run.
OTHERS = {"pip", "cd", "export", "cp", "make", "source", "apt-get"}
OTHERS |= {"ollama", "vllm", "hf", "nvidia-smi", "sbatch"}

NEEDED = {
    "extends": "smollm2",
    "data": {"sources": [{"path": "my.csv"}]},
    "pairs": {"methods": ["on_policy"]},
    "clean": {"source": "raw.jsonl"},
}
"""What makes a recipe of a part of one, and a recipe against which every `--set` is held."""


@functools.cache
def generated() -> dict[str, str]:
    return docs_pages.generated()


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(path: Path) -> list[str]:
    """What a page gives a reader to type: lines of shell blocks, inline code that begins as a shell line."""
    lines = []
    for block in blocks(path, "bash"):
        lines += [re.sub(r" +#.*", "", line) for line in block.splitlines()]
    inline = r"`((?:[A-Z][A-Z0-9_]*=\S+ )*(?:uv|uvx|bash|pip|vllm|hf|make|python) [^`]+)`"
    lines += re.findall(inline, path.read_text())
    single = []
    for line in lines:
        single += [part.strip() for part in line.split("&&")]
    return [line for line in single if line]


def check_command(line: str, recipe: Path) -> None:
    """Fail when a command cannot be typed as it stands."""
    words = shlex.split(line)
    while "=" in words[0]:  # variables before it
        words.pop(0)
    if words[0] in OTHERS:
        return
    if words[:2] == ["uv", "sync"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(words[2:]) <= {"--extra", "--compile-bytecode", *extras}, line
        return
    if words[:2] in (["uv", "build"], ["uv", "venv"], ["uv", "pip"]):
        return
    if words[0] == "bash":
        script = (ROOT / words[1]).read_text()
        words = ["tunebook", re.search(r"tunebook (\w+)", script.splitlines()[1])[1], *words[2:]]
    if words[:2] == ["uv", "run"]:
        words = words[2:]
        while words[0] == "--with":
            words = words[2:]
    if words[0] == "python" and "-c" not in words:
        if words[1] == "-m":
            assert importlib.util.find_spec(words[2]), line
        else:
            assert (ROOT / words[1]).is_file(), line
        return
    if words[0] == "papermill":
        notebook = (ROOT / words[1]).read_text()
        for option, name in itertools.pairwise(words):
            assert option != "-p" or f"{name} =" in notebook or f"{name}:" in notebook, line
        return
    if words[0] in ("jupyter", "pytest", "python", "ray"):
        return
    assert words[0] == "tunebook", line
    command = typer.main.get_command(app)
    arguments = [word for word in words[1:] if word not in ("...", "--version")]
    while arguments and hasattr(command, "commands"):
        name = arguments.pop(0)
        assert name in command.commands, f"{line}: no command {name}"
        command = command.commands[name]
    if hasattr(command, "commands"):
        return
    if not arguments and any(parameter.required for parameter in command.params):
        return  # `tunebook init` as a name, in a sentence
    context = command.make_context(command.name, arguments)
    if set_ := context.params.get("set_"):
        load_recipe(recipe, overrides=parse_set(set_))


@pytest.fixture(scope="module")
def whole_recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("docs") / "my.yaml"
    path.write_text(yaml.safe_dump(NEEDED))
    return path


@pytest.fixture
def default_sources(tmp_path) -> Path:
    """The default recipe, whose sources `--set data.sources.0.train` and the like are about."""
    path = tmp_path / "geometry.yaml"
    path.write_text("extends: smollm2-math\n")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_command_can_be_typed(name, whole_recipe, default_sources):
    for line in commands(ROOT / name):
        try:
            check_command(line, whole_recipe)
        except UserError:
            check_command(line, default_sources)


def test_there_are_many_commands_and_recipes():
    lines = set()
    recipes = 0
    for page in PAGES:
        lines.update(commands(page))
        recipes += len(blocks(page, "yaml"))
    assert len(lines) > 70 and recipes > 10


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("uv run tunebook train", "no command train"),
        ("uv run tunebook sft --set sft.lerning_rate=1", "lerning_rate"),
        ("uv run tunebook sft --rate 1", "--rate"),
        ("uv run tunebook run --from-manifest", "--from-manifest"),
        ("bash train_sft.sh --set sft.lr=1", "sft.lr"),
        ("uv sync --extra nothing", "nothing"),
        ("uv run python scripts/nothing.py", "nothing.py"),
        ("uv run papermill notebooks/02_sft.ipynb out.ipynb -p sede 7", "sede"),
        ("trl sft", "trl sft"),
    ],
)
def test_a_wrong_command_is_noticed(line, wrong, whole_recipe):
    with pytest.raises(Exception, match=re.escape(wrong)):
        check_command(line, whole_recipe)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_can_be_read(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in blocks(ROOT / name, "yaml"):
        content = yaml.safe_load(text)
        assert set(content) <= set(Recipe.model_fields), text
        path = tmp_path / "my.yaml"
        path.write_text(text)
        assert content.get("extends"), f"{name}: a recipe to copy says what it extends\n{text}"
        recipe = load_recipe(path)
        assert recipe.model.base, text


@pytest.mark.parametrize("name", NAMES)
def test_python_of_the_pages_names_what_there_is(name):
    for text in blocks(ROOT / name, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tunebook"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_the_api_page_names_what_there_is():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs/reference/api.md").read_text(), re.MULTILINE)
    assert len(names) >= 10
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            thing = getattr(importlib.import_module(module), attribute)
            assert thing.__doc__, name


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    from markdown_it import MarkdownIt

    slugs = set()
    tokens = MarkdownIt().parse(text)
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open":
            words = re.sub(r"[^\w\s-]", "", inline.content.lower()).strip()
            slugs.add(re.sub(r"[-\s]+", "-", words))
    return slugs


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    page = ROOT / name
    made = {(ROOT / "docs" / path).resolve() for path in (*generated(), *docs_pages.figures())}
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        place = (page.parent / target).resolve() if target else page
        assert place.exists() or place in made, target
        if name != "README.md" and place not in made:
            assert (ROOT / "docs") in place.parents, f"{target} is outside the site"
        if anchor:
            assert anchor in anchors(place.read_text()), f"{target}#{anchor}"


def test_the_site_has_every_page_once():
    class Loader(yaml.SafeLoader):
        pass

    def pages(node) -> list[str]:
        if isinstance(node, str):
            return [node]
        values = node.values() if isinstance(node, dict) else node
        return [page for value in values for page in pages(value)]

    named = pages(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])  # noqa: S506 - a safe loader
    written = {str(path.relative_to(ROOT / "docs")) for path in PAGES[1:]}
    assert sorted(named) == sorted(written | set(generated()))


def keys(schema: dict, node: dict) -> set[str]:
    """All keys below a part of the schema."""
    names = set(node.get("properties", {}))
    for value in node.get("properties", {}).values():
        text = json.dumps(value)
        for definition in re.findall(r'"#/\$defs/(\w+)"', text):
            names |= keys(schema, schema["$defs"][definition])
        for choice in value.get("anyOf", []):
            names |= keys(schema, choice)
    return names


def test_the_reference_names_every_key_of_a_recipe():
    page = generated()["reference/recipe.md"]
    schema = recipe_schema()
    wanted = keys(schema, schema)
    assert {"learning_rate", "beta", "start", "price_in", "tasks", "at_least", "hub_split", "r"} <= wanted
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    sections = set(re.findall(r"^## `([\w.]+)`$", page, re.MULTILINE))
    assert wanted <= rows | sections
    assert {"model", "lora", "data", "clean", "sft", "pairs", "dpo", "evaluate", "export"} <= sections
    # A key with its type, its default and its own docstring.
    assert "| `samples` | `int >= 1` | `4` | Answers sampled for each prompt (`on_policy`). |" in page


def test_the_commands_page_names_every_command_and_option():
    page = generated()["reference/commands.md"]
    for name in ("init", "run", "sft", "dpo", "evaluate", "export", "recipe show"):
        assert f"\n## tunebook {name}\n" in page
    assert "| `--from-manifest` | Repeat the run of this manifest.json" in page
    assert "\n    uv run tunebook init my.csv\n" in page


def test_records_are_pages_without_links_into_the_repository():
    page = generated()["records/results.md"]
    assert "manifest (`resources/smollm2-math-new-words/manifest.json`)" in page
    assert not re.findall(r"\]\((?!https?:|#)", page)


def test_the_estimates_of_the_cards_are_those_of_the_formula():
    text = (ROOT / "docs" / "gpus.md").read_text()
    assert cards.filled(text) == text
    qwen = cards.QWEN3_4B.plan(rows=4, sides=1)
    assert qwen.linear == pytest.approx(3.6e9, rel=0.02)  # what Qwen3-4B's card calls non-embedding
    # A slow card is bound by its products, a fast one by the calls.
    assert cards.seconds(cards.QWEN3_4B, 65, 0.4, 10**6, 1) == pytest.approx(1_115, rel=0.02)
    assert cards.seconds(cards.QWEN3_4B, 990, 0.4, 1, 100) == 100 * cards.CALL


def test_the_readme_is_short_and_says_what_was_not_run():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1_500
    first_screen = text.partition("## Two commands")[0]
    assert "Nothing has been run on a GPU yet" in first_screen and "Linux x86-64" in first_screen
    assert "Nothing has been run on a GPU" in (ROOT / "docs/status.md").read_text().splitlines()[2]
    for room in (ROOT / "src" / "tunebook").iterdir():
        if (room / "__init__.py").exists() and room.name != "commands":
            assert f"── {room.name}/ " in text, room.name


def test_executed_notebooks_are_small_pages_of_every_stage_without_paths_of_a_machine():
    pages = {name: text for name, text in generated().items() if name.startswith("notebooks/")}
    in_the_chain = {f"notebooks/{spec.notebook}.md" for spec in STAGES.values() if spec.notebook}
    assert pages.keys() == in_the_chain
    for text in pages.values():
        assert "By `tunebook run` with the recipe `smollm2-math` on a CPU. " in text
        assert text.count("<p>") == text.count("</p>")  # else all below it is taken for HTML
        assert not re.search(r"/(root|tmp|home)/|widget-view|Traceback", text)
    files = [*docs_pages.NOTEBOOKS.iterdir()]
    assert sum(file.stat().st_size for file in files) < 1_500_000
    shown = set(re.findall(r"!\[figure\]\((.+?)\)", "".join(pages.values())))
    assert shown == {file.name for file in files if file.suffix == ".png"}
