"""Where phone numbers are in a text: libphonenumber knows which are valid, this which are meant.

Every number of nine digits is valid somewhere, so that national forms are looked for in `REGIONS`
only, and what reads as a date, a price, an amount, an id, a file's name or an address of a network
is none. The text has ASCII digits only, and NULs where it is not to be looked at.
"""

import re
from collections.abc import Iterator

from phonenumbers import Leniency, PhoneNumberMatcher

Span = tuple[int, int]

REGIONS = ("US", "ES", "IT", "IN", "BR", "GB", "DE", "FR", "AU", "JP")
"""Where national forms are from; US covers all countries of +1."""
# Written with a 0 in front, so that other digits needn't be tried there.
_TRUNK_ZERO = frozenset({"GB", "DE", "FR", "AU", "JP"})

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_YEAR, _MONTH, _DAY = "(?:1[0-9]|20)[0-9]{2}", "(?:0?[1-9]|1[0-2])", "(?:0?[1-9]|[12][0-9]|3[01])"
_ENDS = r"(?![0-9]|[-./][0-9])"
_NOT_CALLED = re.compile(
    "|".join(
        (
            # 192.168.0.1
            rf"(?<![0-9.])(?:{_OCTET}\.){{3}}{_OCTET}{_ENDS}",
            # 2024-05-31
            rf"(?<![0-9])(?<![0-9][-./]){_YEAR}(?P<a>[-./: ]){_MONTH}(?P=a){_DAY}{_ENDS}",
            # 31.05.2024
            rf"(?<![0-9])(?<![0-9][-./]){_DAY}(?P<b>[-./ ]){_MONTH}(?P=b){_YEAR}{_ENDS}",
            # 5/31/2024
            rf"(?<![0-9])(?<![0-9][-./]){_MONTH}(?P<c>[-./ ]){_DAY}(?P=c){_YEAR}{_ENDS}",
            # 20240531 143000
            (
                r"(?<![0-9])(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
                r"(?:[ T_-]?[0-9]{4,6})?(?![0-9])"
            ),
            # 3.14159265
            rf"(?<![0-9.+])(?<![0-9]-)(?:0|(?<![0-9] )[1-9][0-9]*)\.[0-9]+{_ENDS}",
        )
    )
)

# Signs within phone numbers, as in phonenumbers.phonenumberutil; no line breaks and no commas.
_SIGNS = r"-\u00ad\u200b\u2060 ()\[\]./~\u2053\u223c\u30fc"
_MANY_DIGITS = re.compile(rf"[0-9](?:[{_SIGNS}]{{0,4}}[0-9]){{6}}")
_RUN = re.compile(rf"(?:[+(\[] ?){{0,3}}[0-9](?:[{_SIGNS}]{{0,4}}[0-9])*+")
_LEAST_DIGITS = 8
_EXTENSION = re.compile(
    r"(?i)[ ,;]{0,2}(?:ext(?:ension|n)?|x|доб|anexo|#)[.:= ]{0,2}[0-9]{1,7}(?![0-9])"
)
# Where a number may begin in a run: behind `1) `, and at the 0 or the bracket of an area code.
_BEGINS = re.compile(r"\) (?=[0-9])| (?=0[1-9]|\()")
_LONGEST = 40
# Characters in which words beside a number are looked for.
_CONTEXT = 32
_CURRENCY = r"(?:[$€£¥₹₩₽₺₫฿]|R\$|Rs\.?|kr\.?|zł|円|元|(?:USD|EUR|GBP|CHF|INR|JPY|AUD|CAD|BRL)\b)"
_PRICED_BEFORE = re.compile(_CURRENCY + r" ?$")
_PRICED_AFTER = re.compile(rf" ?{_CURRENCY}|,[0-9]{{1,2}}(?![0-9])")
_JOINED_BEFORE = re.compile(r"(?:[_#]|[A-Za-z0-9][-/=&])$")
_JOINED_AFTER = re.compile(r"[A-Za-z0-9_]|[-/=][A-Za-z]|\.[A-Za-z0-9]{2,4}\b")
# A mask (`<phone>`) is no word that says so.
_CALLED = re.compile(
    r"(?i)(?:(?<![^\W\d_])(?<!<)(?:tel|t[eé]l[eé](?:ph|f)on[eoi]?|telefone?|phone|ph|mobile?|m[oó]vil|mob"
    r"|cell|celular|handy|fax|whatsapp|sms|call|dial|ring|ruf|appele[rz]|ll[aá]m[ae]|contact)"
    r"(?![^\W\d_])|телефон|тел|電話|电话|手机|携帯|फ़ोन|☎|📞|wa\.me/)[^0-9]{0,16}$"
)
_NUMBERED = re.compile(
    r"(?i)(?<![^\W\d_])(?:ids?|order|invoice|sku|upc|ean|isbn(?:-1[03])?|issn|imei|doi|serial|ref|reference"
    r"|ticket|tracking|part|item|article|art|account|patent)\W{0,3}(?:(?:no|nr|number)\W{0,3})?$"
)
_LIKE_AN_AMOUNT = re.compile(
    r"[0-9]+|[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}|[1-9][0-9]?(?: [0-9]{3}){2,}|[1-9][0-9 ]+ 000"
)


def has_many_digits(plain: str) -> bool:
    """Whether seven digits stand close together, as in any number that could be masked."""
    return _MANY_DIGITS.search(plain) is not None


def blank(pattern: re.Pattern[str], plain: str) -> str:
    """`plain` with NULs for what the pattern matches: nothing is found there, places stay."""
    return pattern.sub(lambda match: "\0" * len(match[0]), plain)


def phones(plain: str) -> Iterator[Span]:
    """Where phone numbers are, in order and apart from each other."""
    plain = blank(_NOT_CALLED, plain)
    for run in _RUN.finditer(plain):
        groups = re.findall("[0-9]+", run[0])
        international = "+" in run[0]
        if not international and sum(map(len, groups)) < _LEAST_DIGITS:
            continue
        trunk = any(group.startswith("0") for group in groups)
        if len(groups) > 1 or international or trunk or _called(plain, run.start()):
            yield from _phones_in(plain, run.span(), trunk)


def _phones_in(plain: str, run: Span, trunk: bool) -> Iterator[Span]:
    extension = _EXTENSION.match(plain, run[1])
    # With the signs around, by which the matcher sees that a number is part of a word.
    first = max(0, run[0] - 1)
    last = (extension.end() if extension else run[1]) + 1
    found: list[Span] = []
    for region in REGIONS:
        if region in _TRUNK_ZERO and not trunk:
            continue
        found += _valid(plain, (first, last), region)
        for match in _BEGINS.finditer(plain, *run):
            begin = match.end()
            near = (begin, min(last, begin + _LONGEST))
            found += [span for span in _valid(plain, near, region) if span[0] == begin]
    end = 0
    for start, stop in sorted(found):
        # What is a whole number in one region may be the end of a longer one in another.
        if stop > end:
            yield max(start, end), stop
            end = stop


def _valid(plain: str, span: Span, region: str) -> Iterator[Span]:
    near = plain[span[0] : span[1]]
    # The matcher's own limit on tries would leave the rest of a text unread.
    for match in PhoneNumberMatcher(near, region, Leniency.VALID, max_tries=len(near) + 1):
        start, stop = span[0] + match.start, span[0] + match.end
        if _is_phone(plain, start, stop, region):
            yield start, stop


def _called(plain: str, start: int) -> bool:
    return _CALLED.search(plain[max(0, start - _CONTEXT) : start]) is not None


def _is_phone(plain: str, start: int, stop: int, region: str) -> bool:
    """Whether a valid number is meant to be called, and is no price, id or amount."""
    raw = plain[start:stop]
    if "+" in raw:
        return True
    before, after = plain[max(0, start - _CONTEXT) : start], plain[stop : stop + _CONTEXT]
    if _PRICED_BEFORE.search(before) or _PRICED_AFTER.match(after) or _JOINED_AFTER.match(after):
        return False
    if _called(plain, start):
        return True
    if _NUMBERED.search(before) or _JOINED_BEFORE.search(before):
        return False
    if raw.startswith("0"):
        return not raw.startswith("000")
    if _LIKE_AN_AMOUNT.fullmatch(raw):
        return False
    return PhoneNumberMatcher(raw, region, Leniency.STRICT_GROUPING).has_next()
