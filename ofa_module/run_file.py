"""A run from a file: `--config run.yaml` holds flags by their names, and a run writes down the ones it had."""

import argparse
import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import FunctionType
from typing import Any

import yaml
from omegaconf import DictConfig

from utils.errors import UserError, one_sentence, quoted
from utils.files import atomic_write, read_text

WRITTEN = "config.yaml"  # beside the checkpoints
BOOL, NULL = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"
LIST = "tag:yaml.org,2002:seq"
PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "null", "str", "timestamp")}
TRUE = ("true", "yes", "on")
EXCLUSIVE = {"fp16": "bf16", "bf16": "fp16"}
NOT_WRITTEN = ("config", "device_id", "distributed_rank")  # of the file itself and of one process
_SWITCHED = re.compile(r"(--[\w-]+)=(true|false)", re.IGNORECASE)


@dataclass
class RunFile:
    """Flags of a file.

    Attributes:
        path: the file. values: name, with underscores -> the node of its value.
    """

    path: str
    values: Mapping[str, yaml.Node]

    def words(
        self, parser: argparse.ArgumentParser, given: Collection[str] = (), known_only: bool = False
    ) -> list[str]:
        """The flags as a command line has them.

        Args:
            parser: knows the flags. given: names that stand on the command line, which wins.
            known_only: leave out names that the parser does not know.

        Raises:
            UserError: a name that is no flag or stands twice, or a value that the flag does not take.
        """
        actions = _actions(parser)
        words: list[str] = []
        seen: set[str] = set()
        for name, node in self.values.items():
            action = actions.get(name)
            if action is None:
                if known_only:
                    continue
                near = get_close_matches(name, actions, 1, 0.5)
                advice = f"the nearest flag is {near[0]!r}" if near else "train.py --help lists the flags"
                raise UserError(f"{self._place(node)}: there is no flag {name!r}; {advice}.")
            if action.dest in seen:
                raise UserError(f"{self._place(node)}: {name!r} is set twice: remove one of the lines.")
            seen.add(action.dest)
            if action.dest not in given and EXCLUSIVE.get(action.dest) not in given:
                words += self._words(parser, action, name, node)
        return words

    def chosen_by(self, parser: argparse.ArgumentParser, own: argparse.ArgumentParser) -> "RunFile":
        """The file without flags of what the command line replaced: only the parser of the file's choices has them."""
        replaced = _actions(own).keys() - _actions(parser).keys()
        return RunFile(self.path, {name: node for name, node in self.values.items() if name not in replaced})

    def _words(
        self, parser: argparse.ArgumentParser, action: argparse.Action, name: str, node: yaml.Node
    ) -> Sequence[str]:
        if node.tag == NULL:
            return []
        if action.nargs == 0:
            if node.tag != BOOL:
                raise UserError(f"{self._place(node)}: {name!r} is a switch: write true or false.")
            return action.option_strings[:1] if (node.value.lower() in TRUE) == action.const else []
        items = node.value if isinstance(node, yaml.SequenceNode) and node.tag == LIST else [node]
        for item in items:
            if not isinstance(item, yaml.ScalarNode) or item.tag not in PLAIN:
                raise UserError(f"{self._place(item)}: {name!r} takes a text, a number or a list of them: write one.")
            if item.tag in (BOOL, NULL):
                raise UserError(
                    f"{self._place(item)}: {name!r} needs a value, and {item.value} means none: put text in quotes."
                )
        texts = [item.value for item in items]
        if not texts:
            raise UserError(f"{self._place(node)}: {name!r} is an empty list: write a value, or remove the line.")
        values = texts if action.nargs in ("+", "*") else [",".join(texts)]
        try:
            if isinstance(action.type, FunctionType):  # fairseq runs what stands for a list as Python
                ast.literal_eval(values[0])
            parser._get_values(action, values)
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise UserError(f"{self._place(node)}: {name!r} is {quoted(values[0])}: write numbers.") from error
        except argparse.ArgumentError as error:
            raise UserError(f"{self._place(node)}: {error.message}: correct {name!r}.") from error
        if not action.option_strings:
            return values
        flag = action.option_strings[0]
        return [f"{flag}={values[0]}"] if len(values) == 1 else [flag, *values]

    def _place(self, node: yaml.Node) -> str:
        return f"{self.path}, line {node.start_mark.line + 1}"


def named_file(argv: Sequence[str]) -> str | None:
    """The file that --config names, if it stands on a command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    return parser.parse_known_args(argv)[0].config


def read_run_file(path: str) -> RunFile:
    """The flags of a file; nothing in it is executed. UserError if it is not YAML with one flag a line."""
    try:
        node = yaml.compose(read_text(path), yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"--config={path} cannot be read ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config={path} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(
            f"--config={path} is not YAML ({one_sentence(error)}): write one `name: value` per line."
        ) from error
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise UserError(f"--config={path} holds no flags: write one `name: value` per line, such as `batch_size: 8`.")
    values: dict[str, yaml.Node] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{path}, line {line}: the name of a flag is a list or mapping: write a name.")
        name = key.value.replace("-", "_")
        if name == "config":
            raise UserError(
                f"{path}, line {line}: a file of flags cannot include another one: remove {quoted(key.value)}."
            )
        if name in values:
            raise UserError(f"{path}, line {line}: {key.value!r} is set twice: remove one of the lines.")
        if isinstance(value, yaml.MappingNode):
            raise UserError(
                f"{path}, line {line}: {key.value!r} contains nested names: write every flag at the top level."
            )
        values[name] = value
    return RunFile(path, values)


def without_switches(argv: Sequence[str]) -> list[str]:
    """A command line without words such as `--fp16=false`, which switch off what a file switches on."""
    return [word for word in argv if not _SWITCHED.fullmatch(word)]


def switched(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line with `--fp16=true` as `--fp16` and without `--fp16=false`, and the names of such switches."""
    words, names, actions = [], [], _actions(parser)
    for word in argv:
        found = _SWITCHED.fullmatch(word)
        action = actions.get(found[1][2:].replace("-", "_")) if found else None
        if found is None or action is None or action.nargs != 0:
            words.append(word)
            continue
        names.append(action.dest)
        if (found[2].lower() == "true") == action.const:
            words.append(found[1])
    return words, names


def make_optional(parser: argparse.ArgumentParser) -> None:
    """Lets a command line leave out what stands in the file."""
    for action in parser._actions:
        action.required = False
        if not action.option_strings:
            action.nargs = "?"


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Flags by each of their names, with underscores."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            names = [name.removeprefix("--").replace("-", "_") for name in action.option_strings]
            found |= dict.fromkeys([action.dest, *names], action)
    return found


def written(values: Mapping[str, Any], given: Sequence[str]) -> str:
    """The text of a file that repeats a run: the flags that were given, then the defaults of the others.

    Args:
        values: the value of each flag as the command line has it, before an architecture fills in its sizes.
    """
    given = [name for name in given if name in values]
    others = sorted(values.keys() - set(given))
    lines = [*_lines(values, given), "", "# Not given: the defaults of this version.", *_lines(values, others)]
    return "\n".join(["# The flags of this run: `python train.py --config=FILE` repeats it.", *lines]) + "\n"


def _lines(values: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        value = values[name]
        if isinstance(value, list | tuple):
            value = [_plain(item) for item in value]
        yield yaml.safe_dump({name: _plain(value)}, default_flow_style=True, width=10**9)[1:-2]  # no {}


def _plain(value: Any) -> Any:
    """What YAML writes as argparse reads it: `inf` and not `.inf`, `1e-05` and not `1.0e-05`."""
    return repr(value) if isinstance(value, float) and repr(value) != yaml.safe_dump(value).split("\n")[0] else value


def save_run_file(text: str, cfg: DictConfig) -> None:
    """Writes the flags of a run beside its checkpoints; UserError if that fails."""
    path = Path(cfg.checkpoint.save_dir, WRITTEN)
    try:
        with atomic_write(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"The flags of the run cannot be written: {one_sentence(error)}") from error


def put_under_name(cfg: DictConfig) -> None:
    """--run-name: a folder of that name for checkpoints, curves and log; UserError if it is no name of a folder."""
    name = cfg.training.run_name
    if name is None:
        return
    if not name.strip() or name != Path(name).name or name.startswith((".", "-")) or not name.isprintable():
        raise UserError(f"--run-name={name} is not a folder name: use letters, digits, '-', '_' and '.'.")
    cfg.checkpoint.save_dir = str(Path(cfg.checkpoint.save_dir, name))
    if cfg.common.tensorboard_logdir:
        cfg.common.tensorboard_logdir = str(Path(cfg.common.tensorboard_logdir, name))
    if cfg.common.log_file:
        log = Path(cfg.common.log_file)
        cfg.common.log_file = str(log.parent / name / log.name)
