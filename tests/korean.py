"""Small Korean text made here, the same at every call, and the tokenizers of conf/ trained on it."""

import random
from pathlib import Path
from typing import Any

import yaml

from llm.config.tokenizer import Alphabet, Morphemes, TokenizerConfig
from llm.tokenizer.folder import save
from llm.tokenizer.training import train

_WHO = [
    "나는", "우리는", "친구가", "선생님은", "아이들이", "할머니께서", "이웃이", "학생들은", "주인공은", "손님이",
    "동생이", "그", "사람은",
]  # fmt: skip
_WHEN = [
    "오늘", "어제", "내일", "아침에", "저녁마다", "지난주에", "방학", "동안", "비가", "오면", "눈이", "그치자", "해가",
    "지기", "전에",
]  # fmt: skip
_WHERE = [
    "학교에서", "도서관에서", "시장에서", "바닷가에서", "부엌에서", "마당에서", "서울에서", "부산에서", "버스에서",
    "극장에서",
]  # fmt: skip
_WHAT = [
    "책을", "편지를", "노래를", "사진을", "밥을", "이야기를", "그림을", "숙제를", "연필을", "꽃을", "약속을", "옷을",
]  # fmt: skip
_DID = [
    "읽었다", "썼다", "불렀다", "찍었다", "먹었다", "나누었다", "그렸다", "끝냈다", "찾았다", "심었다", "지켰다",
    "샀다",
]  # fmt: skip
_WHY = ["날씨가 맑아서", "기분이 좋아서", "시간이 남아서", "배가 고파서", "갑자기 생각나서", "약속했기 때문에"]

# What tokenizers stumble over: white space, characters that no training text has, look-alikes of their own marks.
HARD_TEXTS = {
    "empty": "",
    "leading spaces": "   앞에 공백이 셋",
    "trailing spaces": "뒤에 공백이 둘  ",
    "line feeds": "첫 줄\n\n셋째 줄\n",
    "tabs": "\t탭\t사이",
    "carriage return": "한 줄\r\n또 한 줄",
    "emoji": "웃음 🙂 가족 👨‍👩‍👧 국기 🇰🇷",
    "hanja": "大韓民國 支援",
    "rare syllables": "뷁 펲 쀍 햏 똠방각하",
    "old hangul": "나랏말ᄊᆞ미 듕귁에 ᄃᆞᆯ아",
    "jamo": "ㅋㅋㅋ ㅠㅠ ㄱㄴㄷ",
    "greek and latin": "λ ≠ λόγος, café naïve",
    "special token": "글 <|endoftext|> 끝 <|pad|> <unk> [UNK]",
    "byte token": "<0x41><0xEA> 0x41",
    "prefix of the blog": "## 제목 ##가",
    "no-break space": "사이\u00a0공백\u3000전각\u200b너비 없음",
    "punctuation": "“따옴표” ‘작은’ 「낫표」 … — ·",
}


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """Sentences of one to three clauses, with numbers and punctuation here and there."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        clauses = [" ".join(draw.choice(words) for words in (_WHO, _WHEN, _WHERE, _WHAT, _DID))]
        if draw.random() < 0.4:
            clauses.insert(0, draw.choice(_WHY))
        if draw.random() < 0.3:
            clauses.append(f"그날은 {number % 12 + 1}월 {draw.randint(1, 28)}일이었다")
        made.append(", ".join(clauses) + draw.choice([".", ".", "!", " (끝)."]))
    return made


def documents(count: int, *, seed: int = 0) -> list[str]:
    """Documents of one to six lines."""
    draw = random.Random(seed)
    lines = sentences(count * 6, seed=seed)
    return ["\n".join(lines[6 * i : 6 * i + draw.randint(1, 6)]) for i in range(count)]


def preset(name: str, **changes: Any) -> TokenizerConfig:
    """A tokenizer of conf/, with changes."""
    path = Path("conf/tokenizer") / f"{name}.yaml"
    settings = {"name": name, **yaml.safe_load(path.read_text(encoding="utf-8")), **changes}
    for key, kind in (("initial_alphabet", Alphabet), ("morphemes", Morphemes)):
        if isinstance(settings.get(key), str):
            settings[key] = kind[settings[key]]
    return TokenizerConfig(**settings)


def save_preset(name: str, folder: Path, **changes: Any) -> Path:
    """The folder with a tokenizer of conf/, trained on `documents`."""
    config = preset(name, **changes)
    save(train(config, documents(200)), config.roles, folder)
    return folder
