"""E-mail addresses, card numbers and phone numbers in a text become `<email>`, `<card>`, `<phone>`.

What is masked: addresses as they are written (not `jane at example dot com`); card numbers of 13 to
19 digits with an issuer's prefix and a right check digit; phone numbers that libphonenumber holds
valid, in international form with `+` from anywhere, in national form from `phones.REGIONS`. A
number that may as well be something else (digits in a row without a leading 0, thousands) is a
phone number only after a word such as `call` or `tel`. Digits and signs of other scripts and
full-width forms count as their ASCII ones.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from stdnum import ean, iban, isbn, luhn

from mmray.transforms.phones import Span, blank, has_many_digits, phones

# Scripts that put no space between words: there an address begins and ends amid a sentence.
_SPACELESS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_LETTER = rf"[^\W_{_SPACELESS}]"
_LOCAL = rf"(?:{_LETTER}|[_.+%'-])"
# Possessive, and begun only where no part of a name stands before: each character is read once.
_EMAIL = re.compile(
    rf"(?<!{_LOCAL})[.'-]*+(?P<address>{_LOCAL}++@(?![0-9]x\.)(?:(?:{_LETTER}|-)++\.)+"
    rf"(?:xn--[a-z0-9-]+|[^\W\d_{_SPACELESS}]{{2,63}}))"
)

_CARD = re.compile(r"(?<![0-9A-Za-z_])(?<![0-9][.,])[0-9]{4,19}(?:[ -][0-9]{1,6})*(?![0-9A-Za-z_])")
# Prefixes from and to, and how long numbers are: ISO/IEC 7812, as the issuers publish them.
_ISSUERS = (
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("300", "305", range(14, 20)),  # Diners Club
    ("3095", "3095", range(14, 20)),
    ("36", "36", range(14, 20)),
    ("38", "39", range(14, 20)),
    ("3528", "3589", range(16, 20)),  # JCB
    ("6011", "6011", range(16, 20)),  # Discover
    ("644", "659", range(16, 20)),
    ("62", "62", range(16, 20)),  # UnionPay
    ("5018", "5018", range(13, 20)),  # Maestro
    ("5020", "5020", range(13, 20)),
    ("5038", "5038", range(13, 20)),
    ("5893", "5893", range(13, 20)),
    ("6304", "6304", range(13, 20)),
    ("6759", "6763", range(13, 20)),
    ("2200", "2204", range(16, 20)),  # Mir
)

# What digits are that no one calls, each with a check of what was found.
_IDS = (
    (re.compile(r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?"), iban),
    (re.compile(r"(?<![0-9-])(?:97[89][- ])?[0-9]{1,5}(?:[- ][0-9]{1,7}){2}[- ][0-9Xx]\b"), isbn),
)
_UUID = re.compile(r"(?i)(?<![0-9a-f])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


class Redactor:
    """Masks personal data of some kinds (`email`, `phone`, `card`). A masked text stays as it is
    when masked again. Takes microseconds where a text has neither an `@` nor seven digits."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._kinds = frozenset(kinds)

    def __call__(self, text: str) -> str:
        """`text` with `<email>`, `<phone>` and `<card>` for what was found."""
        while (masked := self._masked(text)) != text:
            # What stood beside a number may read as another one now.
            text = masked
        return text

    def _masked(self, text: str) -> str:
        plain = text if text.isascii() else text.translate(_ASCII)
        found: list[tuple[Span, str]] = []
        # An address may hold a number, and a card's number reads as a phone's.
        if "@" in plain:
            plain = self._found(plain, _emails(plain), "email", found)
        if has_many_digits(plain):
            plain = _without_ids(plain)
            plain = self._found(plain, _cards(plain), "card", found)
            if "phone" in self._kinds:
                self._found(plain, phones(plain), "phone", found)
        parts, end = [], 0
        for (start, stop), kind in sorted(found):
            parts += [text[end:start], f"<{kind}>"]
            end = stop
        return "".join((*parts, text[end:]))

    def _found(
        self, plain: str, spans: Iterable[Span], kind: str, found: list[tuple[Span, str]]
    ) -> str:
        """Note the spans, where the kind is asked for, and return `plain` without them."""
        spans = list(spans)
        if kind in self._kinds:
            found += [(span, kind) for span in spans]
        return _blanked(plain, spans)


class _Ascii(dict[int, int]):
    """Character to the one of ASCII that it is read as, one for one; filled as it is asked."""

    def __missing__(self, code: int) -> int:
        char = chr(code)
        kind = unicodedata.category(char)
        plain = code
        if kind == "Nd":
            plain = ord(str(unicodedata.decimal(char)))
        elif 0xFF01 <= code <= 0xFF5E:
            plain = code - 0xFEE0  # the full-width forms stand in the order of ASCII
        elif kind == "Zs":
            plain = ord(" ")
        elif kind == "Pd" or char == "\u2212":
            plain = ord("-")
        self[code] = plain
        return plain


_ASCII = _Ascii()


def _blanked(plain: str, spans: Iterable[Span]) -> str:
    """`plain` without the spans, so that nothing else is found in them; places stay the same."""
    parts, end = [], 0
    for start, stop in spans:
        parts += [plain[end:start], "\0" * (stop - start)]
        end = stop
    return "".join((*parts, plain[end:]))


def _without_ids(plain: str) -> str:
    plain = blank(_UUID, plain)
    for pattern, kind in _IDS:
        found = [match for match in pattern.finditer(plain) if kind.is_valid(match[0])]
        plain = _blanked(plain, [match.span() for match in found])
    return plain


def _emails(plain: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(plain):
        yield match.span("address")


def _cards(plain: str) -> Iterator[Span]:
    for run in _CARD.finditer(plain):
        groups = [match.span() for match in re.finditer("[0-9]+", run[0])]
        first = 0
        while first < len(groups):
            last = _card_end(run[0], groups, first)
            if last is not None:
                yield run.start() + groups[first][0], run.start() + groups[last][1]
            first = (first if last is None else last) + 1


def _card_end(run: str, groups: list[Span], first: int) -> int | None:
    """The last group of the longest card number that begins with the group `first`."""
    if groups[first][1] - groups[first][0] < 4:
        return None
    digits, end = "", None
    for last in range(first, len(groups)):
        digits += run[groups[last][0] : groups[last][1]]
        if len(digits) > 19:
            break
        if len(digits) >= 13 and _is_card(digits):
            end = last
    return end


def _is_card(digits: str) -> bool:
    issued = any(
        low <= digits[: len(low)] <= high and len(digits) in lengths
        for low, high, lengths in _ISSUERS
    )
    # Articles are numbered with 13 digits too; cards of 13 digits are no longer issued.
    return issued and luhn.is_valid(digits) and not (len(digits) == 13 and ean.is_valid(digits))
