"""Text of web pages without tags and entities, and without the lines that a site puts on every page."""

import re
from html import unescape

_BLOCK = re.compile(r"<(script|style)\b[^>]{0,500}>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_BREAK = re.compile(r"<(?:br|/p|/div|/li|/tr|/h[1-6])\b[^<>]{0,100}>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,15}(?:\s[^<>]{0,500})?/?>|<!--.{0,2000}?-->", re.DOTALL)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]{2,10});")
_BOILERPLATE = re.compile(
    r"""
    .{0,60}(?:무단\s?(?:전재|복제|배포)|재배포\s?(?:금지|를\s?금|시)|All\s?rights\s?reserved).{0,60}
    | \W{0,3}(?:ⓒ|©|copyright|저작권자).{0,80}
    | \W{0,3}(?:로그인|회원가입|공유하기|목록(?:으로)?|맨\s?위로|top|인쇄(?:하기)?|스크랩
        |댓글(?:\s?\d+개?)?|좋아요(?:\s?\d+)?
        |이전\s?글|다음\s?글|관련\s?기사|기사\s?제보|구독(?:하기)?|더\s?보기|닫기|메뉴|검색|홈|본문\s?바로\s?가기|글자\s?크기.{0,20}
        |페이스북|트위터|카카오(?:톡|스토리)|네이버\s?(?:블로그|밴드)|url\s?복사)
      (?:[\s|/>·,]+(?:로그인|회원가입|공유하기|목록|인쇄|스크랩|댓글|좋아요|페이스북|트위터|카카오(?:톡|스토리)|메뉴|검색|홈))*\W{0,3}
    | (?:https?://|www\.)\S+
    | .{0,30}(?:javascript|자바스크립트|쿠키|cookie).{0,20}(?:활성화|사용할\s?수\s?없|enable|동의).{0,40}
    """,
    re.VERBOSE | re.IGNORECASE,
)
LONGEST = 160  # characters of a line that can be boilerplate


def remove_markup(text: str) -> str:
    """The text without tags, with entities as their characters, and without boilerplate lines."""
    if "<" in text:
        text = _TAG.sub("", _BREAK.sub("\n", _BLOCK.sub("", text)))
    if "&" in text and _ENTITY.search(text):
        text = unescape(text)
    lines = text.split("\n")
    kept = [line for line in lines if len(line) > LONGEST or not _BOILERPLATE.fullmatch(line.strip())]
    return text if len(kept) == len(lines) else "\n".join(kept)
