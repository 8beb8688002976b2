"""Mistakes that the command-line parser finds, in diffcli's own words: what is wrong with which flag, and what to type.

The parser's messages are written for programmers and differ between its versions; only flags, values and limits are taken
from them.
"""

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

KEYS = {  # flags of other programs whose meaning is a key of the preset here
    "--lr": "train.optimizer.lr",
    "--learning-rate": "train.optimizer.lr",
    "--weight-decay": "train.optimizer.weight_decay",
    "--optimizer": "train.optimizer.kind",
    "--batch-size": "train.batch_size",
    "--bs": "train.batch_size",
    "--gradient-accumulation-steps": "train.accumulate",
    "--max-grad-norm": "train.clip",
    "--ema": "train.ema",
    "--ema-decay": "train.ema",
    "--precision": "train.precision",
    "--mixed-precision": "train.precision",
    "--compile": "train.compile",
    "--workers": "train.workers",
    "--num-workers": "train.workers",
    "--save-every": "train.every.save",
    "--log-every": "train.every.log",
    "--data": "data.root",
    "--size": "data.size",
    "--image-size": "data.size",
    "--resolution": "data.size",
    "--classes": "task.conditioners.0.num_classes",
    "--num-classes": "task.conditioners.0.num_classes",
    "--guidance": "guidance",
    "--sampler": "sampler.kind",
    "--lora-rank": "train.lora.rank",
    "--rank": "train.lora.rank",
    "--lora-alpha": "train.lora.alpha",
    "--alpha": "train.lora.alpha",
    "--freeze": "train.freeze",
}
SAID = {  # what is said of flags that neither a key nor a flag stands for, where the command ends in one of these words
    ("--epochs", ()): "type --steps N: --dry-run says how many steps an epoch has; ",
    ("--lora", ("train", "resume")): "type --set train.lora.rank=8 to train small changes of the model of --from; ",
    ("--lora", ("new",)): "type `diffcli train --preset NAME.yaml --set train.lora.rank=8` after it; ",
    ("--lora-scale", ("sample", "gif", "fid", "export")): "put the scale behind the run, as in --lora RUN:0.5; ",
}
FLAGS = {  # flags of other programs, by those that mean the same here
    "--cfg": "--guidance",
    "--cfg-scale": "--guidance",
    "--guidance-scale": "--guidance",
    "--num": "--n",
    "--num-samples": "--n",
    "--num-images": "--n",
    "--num-steps": "--steps",
    "--num-inference-steps": "--steps",
    "--eta": "--ddim-eta",
    "--output": "--out",
    "--output-dir": "--out",
    "--checkpoint": "--ckpt",
    "--model": "--ckpt",
    "--config": "--preset",
    "--label": "--class",
    "--gpus": "--nproc",
    "--num-processes": "--nproc",
    "--max-steps": "--steps",
    "--root": "--data",
    "--data-dir": "--data",
    "--outdir": "--run-dir",
}
DEMANDS = (  # (what the parser says, what is meant)
    (r"valid integer", "must be a whole number"),
    (r"valid (?:number|float)", "must be a number"),
    (r"greater than or equal to (\S+)", "must be at least {}"),
    (r"less than or equal to (\S+)", "must be at most {}"),
    (r"range (\S+?)<=x<=(\S+?)\.?$", "must be from {} to {}"),
    (r"range x>=(\S+?)\.?$", "must be at least {}"),
    (r"valid boolean", "is a switch and takes no value"),
)
COMMAND = "diffcli"


def in_our_words(error: Any) -> tuple[str, str]:
    """Problem and hint of an error of the parser."""
    path = _command(error)
    see = f"see `{path} --help`"
    message = (
        error.format_message().replace("Value error, ", "").rstrip(".")
    )  # a word of the validator behind newer typers
    kind = type(error).__name__
    if kind == "NoSuchOption":
        return f"{error.option_name}: {path} has no such option", f"{_instead(error, path)}{see}"
    named = re.match(r"(?:Missing|Option|Invalid value for) ?(?:option|argument|parameter)? ?'?([^':]+)'?", message)
    name = named[1].split(" / ")[0] if named else ""
    if kind == "MissingParameter":
        shown = name if name.startswith("-") else name.upper()
        return f"{path}: {shown} is missing", f"{_example(error, path, name)}{see}"
    if "requires an argument" in message:
        return f"{name}: no value is given", f"type {name} VALUE; {see}"
    if message.startswith("Got unexpected extra argument"):
        extra = message[message.index("(") + 1 :].rstrip(")") if "(" in message else ""
        extra = extra.removeprefix("s) (")
        return (
            f"{path}: '{extra}' is one argument too many",
            f"leave it out, give it by a flag, or put a value of several words in quotes; {see}",
        )
    if message.startswith("No such command"):
        return _no_command(error, path, message)
    if kind == "BadParameter":
        return _value(error, name, message, see)
    return message, see


def _value(error: Any, name: str, message: str, see: str) -> tuple[str, str]:
    from diffcli.config import did_you_mean

    said = message.partition(": ")[2] or message
    found = _given(getattr(error, "param", None))
    flag = name if found is None else f"{name} {found}"
    choices = re.search(r"is not one of (.*)$", said)
    if choices:
        words = re.findall(r"'([^']*)'", choices[1])
        wrong = re.search(r"'([^']*)' is not one of", said)
        shown = wrong[1] if wrong else found or ""
        return f"{name} is '{shown}': no such choice", f"{did_you_mean(shown, words)}; {see}"
    for pattern, meant in DEMANDS:
        if demand := re.search(pattern, said):
            return f"{flag}: {meant.format(*(limit.rstrip(',.') for limit in demand.groups()))}", f"change it; {see}"
    shown = said if found is None or found in said else f"{said} (found {found!r})"
    return f"{name}: {shown}" if name else shown, see


def _command(error: Any) -> str:
    """The command that was typed, as `diffcli train`."""
    context = getattr(error, "ctx", None)
    if context is not None:
        return str(context.command_path)
    return " ".join([COMMAND, *sys.argv[1:2]]) if sys.argv[1:2] and sys.argv[1][:1] != "-" else COMMAND


def _instead(error: Any, path: str) -> str:
    """What to type instead of an unknown option: a key, a flag of the same meaning, or one with a similar spelling."""
    from difflib import get_close_matches

    name = error.option_name.replace("_", "-")
    value = next(iter(_values([name, error.option_name])), "VALUE")
    last = path.split()[-1]
    for (flag, commands), said in SAID.items():
        if name == flag and (not commands or last in commands):
            return said
    command = error.ctx.command if error.ctx is not None else None
    known = [opt for param in getattr(command, "params", ()) for opt in (*param.opts, *param.secondary_opts)]
    if last in ("train", "resume") and name in KEYS and "--set" in known:
        return f"type --set {KEYS[name]}={value}; "
    if last == "new" and name in KEYS:
        return f"type `diffcli train --preset NAME.yaml --set {KEYS[name]}={value}` after it, or change the file; "
    if FLAGS.get(name) in known:
        return f"type {FLAGS[name]} {value}; "
    close = get_close_matches(name, [opt for opt in known if opt.startswith("--")], n=2, cutoff=0.7)
    return f"did you mean {' or '.join(close)}? " if close else ""


def _example(error: Any, path: str, name: str) -> str:
    if name == "--preset":
        words = [word for word in sys.argv[2:] if not word.startswith("-")]
        return f"type {path} --preset {words[0] if words else 'NAME'}, of `diffcli presets list`; "
    params = [each for each in error.ctx.command.params if each.required] if error.ctx is not None else []
    words = [_typed(each) for each in params] or [f"{name} VALUE" if name.startswith("-") else name.upper()]
    return f"type {' '.join([path, *words])}; "


def _typed(param: Any) -> str:
    """A required argument or option as it is typed: by its value if it was given, else by what stands in the help."""
    from diffcli.config import quoted

    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    flag, value = max(param.opts, key=len), _given(param)
    return f"{flag} {param.metavar or 'VALUE' if value is None else quoted(value)}"


def _no_command(error: Any, path: str, message: str) -> tuple[str, str]:
    from diffcli.config import did_you_mean

    found = re.search(r"'([^']*)'", message)
    word = found[1] if found else ""
    group = error.ctx.command if error.ctx is not None else None
    return f"{path} {word}: no such command", (
        f"{did_you_mean(word, sorted(getattr(group, 'commands', {})))}; see `{path} --help`"
    )


def _given(param: Any) -> str | None:
    """The value that was typed for a parameter; None if none was."""
    return next(iter(_values(getattr(param, "opts", []))), None)


def _values(options: Sequence[str]) -> list[str]:
    """The values that were typed for one of these flags, the last first."""
    found = [value for option, value in pairwise(sys.argv) if option in options and not value.startswith("--")]
    found += [item.partition("=")[2] for item in sys.argv if item.partition("=")[0] in options and "=" in item]
    return found[::-1]
