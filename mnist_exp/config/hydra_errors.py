"""Errors of Hydra and OmegaConf in one line."""

import re
import shlex

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.config.rules import rule_of
from mnist_exp.config.schema import ARGUMENTS, REPLACED
from mnist_exp.errors import first_line

# Hydra's advice on an option of a group applies to a YAML file, or is itself refused.
_ADVICE = (
    (
        rf"Could not override '({'|'.join(ARGUMENTS)})'\. No match in the defaults list\.\nTo append .* use (\S+)",
        r"\1 is not in the defaults list of this config; change its values by key, \1.KEY=VALUE; "
        r"only a config without \1 takes \2",
    ),
    (r"Multiple values for (\S+)\. To override a value use 'override \S+ (.+)'", r"\1 has an option: \1=\2 changes it"),
    (r"(Config group override must be a string or a list)\. Got (\w+)", r"\1, the name of an option, got \2"),
    (r"(\S+) appears more than once in the final defaults list", r"\1 has an option: \1=OPTION changes it"),
)


def explain(error: Exception) -> str:
    """An error of Hydra, OmegaConf or YAML in one line, with the valid keys or the rule if there is one."""
    cause = error.__cause__ or error.__context__ if isinstance(error, HydraException) else error
    text, _, _ = str(error).partition("\nConfig search path")
    for its, ours in _ADVICE:
        text = re.sub(its, ours, text)
    text = text.replace("\n\t", ", ").replace(":, ", ": ")  # Hydra's list of a group's options
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("    ")]
    if isinstance(error, OverrideParseException):
        said = [line for line in lines[:-1] if "Error parsing" not in line and "Lexer" not in line]
        return f"{error.override!r} is not of the form key=value{': ' * bool(said)}{''.join(said[:1])}{_quoting(error)}"
    if isinstance(cause, OmegaConfBaseException):
        if isinstance(cause, KeyError | AttributeError) and isinstance(cause.parent_node, DictConfig):
            within = str(cause.full_key or "").rpartition(".")[0]
            keys = sorted(key for key in map(str, cause.parent_node) if f"{within}.{key}" not in REPLACED)
            where = [] if lines[0].startswith("Could not override") else [lines[0].rstrip(".")]
            return "; ".join([*where, f"{cause.full_key} is not a key of the config", f"valid here: {', '.join(keys)}"])
        if cause is not error:
            lines = [lines[0].rstrip("."), first_line(cause)]
        else:
            lines = [f"{cause.full_key}: {lines[0]}" if cause.full_key else lines[0]]
        if "does not support deletion" in lines[-1]:
            lines = [f"{cause.full_key} cannot be deleted, every config has it"]
        elif cause.full_key and (rule := rule_of(cause.full_key)):
            lines.append(f"it must be {rule.says}")
    return "; ".join(lines)


def _quoting(error: OverrideParseException) -> str:
    """Advice on quotes for a text that Hydra's grammar reads as something else."""
    key, equals, value = error.override.partition("=")
    if not equals or not value.isprintable() or value[:1] in tuple("[{'\""):
        return ""
    quoted = f"{key}='{value.replace(chr(39), chr(92) + chr(39))}'"
    typed = shlex.quote(quoted) if set(quoted) & set('"$`!\\') else f'"{quoted}"'
    return f"; a text with special characters stands in quotes, and these in quotes of the shell: {typed}"
