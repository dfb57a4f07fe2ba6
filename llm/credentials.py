"""A text -> whether it holds a credential, and the text without: known by key, shape, the environment, or a URL."""

import os
import re

from llm.environment import variables

MASK = "***"
LEAST_LENGTH = 8  # of a variable's value: a shorter one stands by chance in words

# Names of credentials. Those that end in _token are, but for the tokens of a vocabulary: pad_token, mask_token, ...
_NAMED = r"(?:api|access|private|secret)_?key|passw(?:or)?d|secret|credentials?|(?<!bos|cls|eos|pad|sep|unk|ask)_token"
SECRET_NAME = re.compile(rf"(?i)(?:{_NAMED}|(?:^|[.+])token)$")
_KEY = re.compile(r"[+~]*[\w.@/-]+")  # of an override
_ASSIGNED = re.compile(rf"(?i)((?:{_NAMED}|(?<![\w/-])token)=)(?!\$\{{|\*\*\*)('[^']*'|\"[^\"]*\"|[^\s'\"]+)")

# Keys by their shape, each at its full length, so that a path such as data/sk-telecom.jsonl is none.
_SHAPES = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        hf_[A-Za-z0-9]{34}                                              # Hugging Face
      | sk-(?:[A-Za-z0-9]{48}|(?:proj|svcacct|admin|ant-[a-z]+\d\d)-[A-Za-z0-9_-]{40,})  # OpenAI, Anthropic
      | wandb_v\d_[A-Za-z0-9_-]{40,}
      | gh[oprsu]_[A-Za-z0-9]{36}                                       # GitHub
      | github_pat_[A-Za-z0-9_]{60,}
      | glpat-[A-Za-z0-9_-]{20,}                                        # GitLab
      | (?:AKIA|ASIA)[A-Z0-9]{16}                                       # AWS
      | xox[abeoprs]-\d[A-Za-z0-9-]{20,}                                # Slack
    )(?![A-Za-z0-9])""",
    re.VERBOSE,
)
# W&B's older keys have the shape of a commit, and are none within a path or a sentence.
_WHOLE_VALUE = re.compile(r"(?:^|(?<=[='\",\[]))[0-9a-f]{40}(?=$|['\",\]])")
_PASSWORD = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s/:@'\"{]*):(?!\$\{)[^\s/?#'\"]+@")
_QUERY = re.compile(rf"(?i)([?&][\w.%-]*?(?:{_NAMED}|token|signature|\bsig)=)(?!\$\{{)[^\s&#'\":]+")


def without_secrets(text: str) -> str:
    """A text, or an argument of the command line, with *** in place of what looks like a credential."""
    key, equals, _ = text.partition("=")
    if equals and SECRET_NAME.search(key) and _KEY.fullmatch(key):
        return f"{key}={MASK}"
    for _, value in _of_environment():
        text = text.replace(value, MASK)
    return _without_forms(text)


def as_recorded_text(text: str) -> str:
    """A setting as a file may have it that is read back: ${oc.env:NAME} for what the environment has, else ***."""
    if without_secrets(text) == text:
        return text
    for name, value in variables().items():
        if value == text:
            return f"${{oc.env:{name}}}"
    for name, value in _of_environment():
        text = text.replace(value, f"${{oc.env:{name}}}")
    return _without_forms(text)


def secret_in(text: str) -> str | None:
    """What a text holds that must not be kept, in words; None if nothing."""
    for name, value in _of_environment():
        if value in text:
            return f"the value of the environment variable {name}"
    return "what looks like a credential" if _without_forms(text) != text else None


def _of_environment() -> list[tuple[str, str]]:
    """(name, value) of the variables that are named like credentials, the longest first; not of a file of them."""
    found = [
        (name, value)
        for name, value in variables().items()
        if len(value) >= LEAST_LENGTH
        and SECRET_NAME.search(name)
        and not (os.sep in value and os.path.exists(value))  # GOOGLE_APPLICATION_CREDENTIALS
    ]
    return sorted(found, key=lambda each: -len(each[1]))


def _without_forms(text: str) -> str:
    text = _PASSWORD.sub(rf"\1:{MASK}@", text)
    text = _QUERY.sub(rf"\1{MASK}", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    return _WHOLE_VALUE.sub(MASK, _SHAPES.sub(MASK, text))
