"""Our classes for `transformers` as files of a model's folder, for `trust_remote_code=True`.

`transformers` copies the files of a folder that import each other by `from .name import ...`, and knows no packages. So
every module becomes a file of its own, named after its path, with such imports; the text is otherwise that of the
repository, which stays the one source.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from utils.files import parse_json, read_text
from utils.hf_layout import write_json

ROOT = Path(__file__).parents[2]
# Modules that auto_map names -> their files.
ENTRIES = {
    "models.hf.config": "configuration_ofa",
    "models.hf.model": "modeling_ofa",
    "models.hf.processing": "processing_ofa",
}
MODEL, TOKENIZER = "modeling_ofa.OFAForConditionalGeneration", "processing_ofa.OFATokenizer"
IMAGES, PROCESSOR = "processing_ofa.OFAImageProcessor", "processing_ofa.OFAProcessor"
# File of the layout -> its classes.
AUTO_MAPS: dict[str, dict[str, str | list[str | None]]] = {
    "config.json": {
        "AutoConfig": "configuration_ofa.OFAHFConfig",
        **dict.fromkeys(("AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText"), MODEL),
        "AutoProcessor": PROCESSOR,
    },
    "preprocessor_config.json": {"AutoImageProcessor": IMAGES, "AutoProcessor": PROCESSOR},
    "tokenizer_config.json": {"AutoTokenizer": [None, TOKENIZER], "AutoProcessor": PROCESSOR},
}
# It reads files of image trunks, and with them everything that knows checkpoints; a folder holds its trunk's weights.
LEFT_OUT = "utils.checkpoint"
HEADING = "# Written by `python -m utils.convert --with-code` of OFA, from {}: changes belong there.\n"


def write_code(folder: Path) -> None:
    """Adds the files of the classes to a folder in Hugging Face layout, and names the classes in its JSON files."""
    waiting, written = list(ENTRIES), set[str]()
    while waiting:
        module = waiting.pop()
        if module not in written:
            text, imported = _rewritten(module)
            (folder / f"{_name(module)}.py").write_text(HEADING.format(_path(module).relative_to(ROOT)) + text, "utf-8")
            written.add(module)
            waiting += imported
    for file, classes in AUTO_MAPS.items():
        if (folder / file).is_file():
            write_json(folder / file, {**parse_json(read_text(folder / file)), "auto_map": classes})


def _name(module: str) -> str:
    return ENTRIES.get(module, module.replace(".", "_"))


def _path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _rewritten(module: str) -> tuple[str, list[str]]:
    """Text of a module with relative imports, and the modules that it imports."""
    text = read_text(_path(module))
    lines, imported = text.splitlines(keepends=True), []
    for node in _own_imports(ast.parse(text)):
        name = str(node.module)
        start = lines[node.lineno - 1]
        if name == LEFT_OUT:
            names = [alias.asname or alias.name for alias in node.names]
            lines[node.lineno - 1 : node.end_lineno] = [
                " " * node.col_offset + " = ".join([*names, "None"]) + "  # not in this folder\n"
            ]
        else:
            lines[node.lineno - 1] = start.replace(f"from {name} ", f"from .{_name(name)} ", 1)
            imported.append(name)
    return "".join(lines), imported


def _own_imports(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    """Imports of our modules, last ones first: lines in front of them keep their numbers."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: node.lineno, reverse=True):
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and _path(str(node.module)).is_file():
            assert not any(_path(f"{node.module}.{name}").is_file() for name in names), "import names, not modules"
            yield node
        else:
            assert isinstance(node, ast.ImportFrom) or not any(_path(name).is_file() for name in names)
