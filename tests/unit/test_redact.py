"""What must go and what must stay: personal data of many countries, and numbers that aren't any."""

# ruff: noqa: RUF001 (full-width forms and dashes are what is tested)

from __future__ import annotations

import random
import time

import pytest

from mmray.transforms.redact import Redactor

ALL = ("email", "phone", "card")

EMAILS = [
    ("jane.doe@example.com", "<email>"),
    ("Write to jane_doe+news@mail.example.co.uk.", "Write to <email>."),
    ("<jane@example.org>", "<<email>>"),
    ("mailto:j@example.de?subject=hi", "mailto:<email>?subject=hi"),
    ("'o'brien@example.ie'", "'<email>'"),
    ("jürgen.müller@bücher.example", "<email>"),
    ("почта@пример.рф", "<email>"),
    ("連絡はjohn@example.jpまで", "連絡は<email>まで"),
    ("ｊｏｈｎ＠ｅｘａｍｐｌｅ．ｃｏｍ", "<email>"),
    ("a@b.co,c@d.io;e@f.net", "<email>,<email>;<email>"),
    ("x@xn--bcher-kva.xn--p1ai now", "<email> now"),
]
PHONES = [
    ("+1 415-263-7485", "<phone>"),
    ("call (415) 263-7485 now", "call <phone> now"),
    ("415-263-7485", "<phone>"),
    ("415.263.7485", "<phone>"),
    ("1-800-555-0199", "<phone>"),
    ("1-800-463-3339", "<phone>"),
    ("Tel: 4152637485", "Tel: <phone>"),
    ("whatsapp 9876543210", "whatsapp <phone>"),
    ("+91 98765 43210", "<phone>"),
    ("98765 43210", "<phone>"),
    ("020 7946 0018", "<phone>"),
    ("+44 (0)20 7946 0018", "<phone>"),
    ("07911 123456", "<phone>"),
    ("030 12345678", "<phone>"),
    ("Tel. 030/123456-78", "Tel. <phone>"),
    ("+49 170 1234567", "<phone>"),
    ("0049 170 1234567", "<phone>"),
    ("06 12 34 56 78", "<phone>"),
    ("06.12.34.56.78", "<phone>"),
    ("0612345678", "<phone>"),
    ("+33612345678", "<phone>"),
    ("612 345 678", "<phone>"),
    ("tel:+34-612-345-678", "tel:<phone>"),
    ("347 123 4567", "<phone>"),
    ("06 6982 1234", "<phone>"),
    ("(11) 98765-4321", "<phone>"),
    ("+55 11 98765-4321", "<phone>"),
    ("(02) 9374 4000", "<phone>"),
    ("0412 345 678", "<phone>"),
    ("03-5155-4321", "<phone>"),
    ("電話：０３－５１５５－４３２１まで", "電話：<phone>まで"),
    ("+86 138 0013 8000", "<phone>"),
    ("+7 (495) 123-45-67", "<phone>"),
    ("+٩٧١ ٥٠ ١٢٣ ٤٥٦٧", "<phone>"),
    ("+31 20 123 4567 ext. 89", "<phone>"),
    ("room 101 020 7946 0018", "room 101 <phone>"),
    ("1) 020 7946 0018", "1) <phone>"),
    ("415-263-7485x89", "<phone>"),
    ("06 12 34 56 78 / 07 12 34 56 78", "<phone> / <phone>"),
    ("Tel 415-263-7485/415-263-7486", "Tel <phone>/<phone>"),
    ("from 1990 to +33 6 12 34 56 78.", "from 1990 to <phone>."),
]
CARDS = [
    ("4111 1111 1111 1111", "<card>"),
    ("4111111111111111", "<card>"),
    ("5500-0000-0000-0004", "<card>"),
    ("2223 0031 2200 3222", "<card>"),
    ("3782 822463 10005", "<card>"),
    ("6011 1111 1111 1117, 12/27, 123", "<card>, 12/27, 123"),
    ("3056 930902 5904", "<card>"),
    ("3530 1113 3330 0000", "<card>"),
    ("6200 0000 0000 0005", "<card>"),
    ("card:4012888888881881.", "card:<card>."),
    ("４１１１ １１１１ １１１１ １１１１", "<card>"),
    ("4111–1111–1111–1111", "<card>"),
    ("2024 4111 1111 1111 1111 12", "2024 <card> 12"),
    ("6759649826438453", "<card>"),
    ("5105105105105100 5555555555554444", "<card> <card>"),
]
STAYS = [
    "4006381330060",
    "0612345678.jpg",
    "415-263-7485.png",
    "00037597352",
    "2023-10-12",
    "2023-10-12 14:30",
    "12.10.2023 14:30:00",
    "03.04.2005",
    "06.12.2020",
    "12/05/2020",
    "2020:05:12 10:30:45",
    "20200512",
    "20200512 103000",
    "20200512T103000Z",
    "2020 05 12",
    "1939-1945",
    "2018 2019 2020",
    "$1,234,567.89",
    "1.234.567,89 €",
    "612 345 678 €",
    "USD 415 263 7485",
    "€ 612 345 678",
    "2.345.678.901",
    "12 345 678 901",
    "331 900 000 people",
    "978-3-16-148410-0",
    "0-306-40615-2",
    "ISBN 0306406152",
    "9783161484100",
    "4006381333931",
    "ISSN 0317-8471",
    "192.168.100.200",
    "212.155.101.234:8080",
    "10.0.0.1/24",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "550e8400-e29b-41d4-a716-446655440000",
    "DSC_0612345678.jpg",
    "IMG-0612345678",
    "IMG_20190304_123456.jpg",
    "order 0612345678",
    "invoice no. 415-263-7485",
    "1712345678",
    "1712345678901",
    "4152637485",
    "#123456789",
    "SKU-0612345678",
    "40.712776, -74.005974",
    "40.72277634",
    "3.14159265358979",
    "0.7123456789",
    "1920x1080",
    "6-4 7-5 6-3 6-7 7-6",
    "1 2 3 4 5 6 7 8 9 10",
    "20 24 26 28 30",
    "00012345678",
    "DE89 3704 0044 0532 0130 00",
    "GB29 NWBK 6016 1331 9268 19",
    "4111 1111 1111 1112",
    "4111111111111111_n.jpg",
    "1234 5678 9012 3456",
    "0.4111111111111111",
    "10.1145/3292500.3330701",
    "arXiv:2301.12345v2",
    "icon@2x.png",
    "@handle on twitter",
    "https://medium.com/@some.name",
    "foo@1.2.3",
    "a @ b . c",
    "root@localhost",
    "https://flickr.com/photos/52312345@N00/4152637485/",
    "v1.2.3.4567",
    "5551234",
    "911",
    "the years 1914-1918 and 1939-1945",
    "scores 100-98, 101-99",
    "352099001761481",
    "Boeing 737-800 and 747-8",
    "f/2.8 1/250 ISO 100 35mm",
    "12:30:45.123456",
    "sha 9c1185a5c5e9fc54612808977ee8f548b2258d31",
    "ISBN-10: 0306406152",
    "issue #0612345678",
    "hotel 2125550123",
    "5 000 000",
    "1 234 567 890",
    "sum 078",
]


@pytest.fixture(scope="module")
def redact() -> Redactor:
    return Redactor(ALL)


@pytest.mark.parametrize(("text", "masked"), EMAILS + PHONES + CARDS)
def test_personal_data_goes(redact: Redactor, text: str, masked: str) -> None:
    assert redact(text) == masked
    assert redact(f"Write, {text}\nor not") == f"Write, {masked}\nor not"
    assert redact(masked) == masked


@pytest.mark.parametrize("text", STAYS)
def test_other_numbers_stay(redact: Redactor, text: str) -> None:
    assert redact(text) == text
    assert redact(f"see {text} here") == f"see {text} here"


@pytest.mark.parametrize(
    ("kinds", "masked"),
    [
        ((), "jane@example.org 4111 1111 1111 1111 +33612345678"),
        (("email",), "<email> 4111 1111 1111 1111 +33612345678"),
        (("card",), "jane@example.org <card> +33612345678"),
        (("phone",), "jane@example.org 4111 1111 1111 1111 <phone>"),
        (ALL, "<email> <card> <phone>"),
    ],
)
def test_only_the_kinds_asked_for(kinds: tuple[str, ...], masked: str) -> None:
    assert Redactor(kinds)("jane@example.org 4111 1111 1111 1111 +33612345678") == masked


def test_a_cards_number_is_no_phones_number() -> None:
    # Without the card's check it would be a number of Toronto, with a prefix.
    assert Redactor(("phone",))("4532 0151 1283 0366") == "4532 0151 1283 0366"


def test_an_amount_is_a_phone_number_only_after_a_word_that_says_so(redact: Redactor) -> None:
    assert redact("415 2637485 and 4152637485") == "<phone> and 4152637485"
    for word in ("Tel.", "call", "WhatsApp:", "Téléphone :", "Telefon", "电话", "☎", "mob"):
        assert redact(f"{word} 4152637485") == f"{word} <phone>"


def test_twice_is_once(redact: Redactor) -> None:
    rng = random.Random(7)
    pieces = (
        [text for text, _ in EMAILS + PHONES + CARDS] + STAYS + list(" ,.-/()+@x0123456789") * 4
    )
    for _ in range(120):
        text = rng.choice(("", " ", ", ")).join(rng.choices(pieces, k=rng.randint(2, 8)))
        masked = redact(text)
        assert redact(masked) == masked
        for kind in ALL:
            alone = Redactor((kind,))
            assert alone(alone(text)) == alone(text)


def test_what_surrounds_personal_data_stays(redact: Redactor) -> None:
    rng = random.Random(8)
    words = ["a", "red", "disc", "on", "ÄÖ", "blå", "猫", "🐈", "½", "ー", "naïve"]
    for _ in range(100):
        before, after = (" ".join(rng.choices(words, k=4)) for _ in range(2))
        text, masked = rng.choice(EMAILS + PHONES + CARDS)
        assert redact(f"{before}; {text}\n{after}") == f"{before}; {masked}\n{after}"


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        "@" * 1_000_000,
        "a@" * 500_000,
        "a@" + "a." * 500_000,
        "a@" + "a-" * 500_000,
        ".a" * 500_000 + "@",
        "'" * 1_000_000 + "@a",
        "a@b.c1 " * 140_000,
        "9" * 1_000_000,
        "AA11" * 250_000,
        "a picture of a dog, 3 cats and 12 birds. " * 25_000,
    ],
    ids=lambda text: text[:8],
)
def test_a_hostile_megabyte_takes_no_time(redact: Redactor, text: str) -> None:
    start = time.process_time()
    assert "<" not in redact(text)
    assert time.process_time() - start < 1.0


def test_a_plain_text_costs_microseconds(redact: Redactor) -> None:
    text = "A man riding a wave on top of a surfboard in 2019, with 3 dogs watching from the beach."
    start = time.process_time()
    for _ in range(2_000):
        redact(text)
    assert time.process_time() - start < 0.2  # 100 microseconds each; about 1 is usual
