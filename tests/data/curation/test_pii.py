"""Personal data: found where it is and nowhere else, on a generated set whose checksums are computed here."""

import random

import pytest

pytest.importorskip("datatrove", reason="needs requirements-curate.txt")

from data.curation import pii
from data.curation.config import KINDS

TEMPLATES = (
    "Please write to {} before Monday.",
    "Contact: {}",
    "({})",
    "you can reach her under {}, he said.",
    '{{"value": "{}"}}',
    "联系方式是{}，谢谢。",
    "请记录：{}。",
    "The entry {} was made in 2019; see page 12.",
)
PER_KIND = 120


def digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choice("0123456789") for _ in range(count))


def with_luhn(body: str) -> str:
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in body[::-1][::2]]
    single = [int(digit) for digit in body[::-1][1::2]]
    return body + str(-(sum(doubled) + sum(single)) % 10)


def cn_id(draw: random.Random) -> str:
    body = draw.choice(["110105", "310115", "440305", "510107", "820000"])
    body += f"{draw.randint(1930, 2015)}{draw.randint(1, 12):02d}{draw.randint(1, 28):02d}{digits(draw, 3)}"
    # ISO 7064, MOD 11-2: the check value c of a number a makes a * 2 + c = 1 modulo 11, digit by digit.
    remainder = 0
    for digit in body:
        remainder = (remainder + int(digit)) * 2 % 11
    check = (12 - remainder) % 11
    return body + ("X" if check == 10 else str(check))


def iban(draw: random.Random) -> str:
    country, length = draw.choice([("DE", 22), ("FR", 27), ("NL", 18), ("GB", 22), ("NO", 15), ("MT", 31)])
    bank = "WEST" if country in ("GB", "NL", "MT") else ""
    body = bank + digits(draw, length - 4 - len(bank))
    value = "".join(str("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(letter)) for letter in f"{body}{country}00")
    number = f"{country}{98 - int(value) % 97:02d}{body}"
    return number if draw.random() < 0.5 else " ".join(number[at : at + 4] for at in range(0, length, 4))


def card(draw: random.Random) -> str:
    prefix, length = draw.choice(
        [("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16), ("62", 16), ("62", 19)]
    )
    number = with_luhn(prefix + digits(draw, length - len(prefix) - 1))
    separator = draw.choice(["", " ", "-"])
    if length == 15:
        return separator.join((number[:4], number[4:10], number[10:]))
    return separator.join(number[at : at + 4] for at in range(0, length, 4))


def email(draw: random.Random) -> str:
    name = draw.choice(["zhang.san", "o'neil", "mary_jane", "x", "first.last+tag", "13812345678", "info-desk"])
    host = draw.choice(
        ["qq.com", "mail.co.uk", "cs.uni-berlin.de", "a-b.io", "163.com", "xn--fiqs8s.xn--p1ai", "GMAIL.COM"]
    )
    return f"{name}{draw.randint(1, 99)}@{host}"


def address(draw: random.Random) -> str:
    if draw.random() < 0.3:
        groups = [f"{draw.randint(0, 0xFFFF):x}" for _ in range(6)]
        return draw.choice([f"2a00:1450:{':'.join(groups)}", f"2606:4700::{groups[0]}", f"2400:3200:{groups[1]}::1"])
    first, rest = draw.choice([8, 23, 61, 114, 185, 203]), [draw.randint(1, 254) for _ in range(2)]
    return ".".join(map(str, (first, draw.randint(114, 250), *rest)))


def cn_phone(draw: random.Random) -> str:
    mobile = draw.choice(["138", "139", "150", "177", "186", "191", "199"]) + digits(draw, 8)
    parts = (mobile[:3], mobile[3:7], mobile[7:])
    area = draw.choice(["010", "021", "0755", "0571"])
    local = draw.choice("2345678") + digits(draw, 7)
    return draw.choice(
        [mobile, "-".join(parts), " ".join(parts), f"+86 {mobile}", f"+86-{mobile}", f"86{mobile}", f"0086{mobile}"]
        + [
            f"{area}-{local}",
            f"({area}) {local}",
            f"（{area}）{local}",
            f"{area}-{local[:4]} {local[4:]}",
            f"{area}-{local}-8001",
        ]
    )


def phone(draw: random.Random) -> str:
    area, exchange = f"{draw.randint(2, 9)}{digits(draw, 2)}", f"{draw.choice('2346789')}{digits(draw, 2)}"
    line = digits(draw, 4)
    return draw.choice(
        [
            f"({area}) {exchange}-{line}",
            f"{area}-{exchange}-{line}",
            f"{area}.{exchange}.{line}",
            f"1-{area}-{exchange}-{line}",
        ]
        + [f"+1 {area} {exchange} {line}", f"+1{area}{exchange}{line}", f"+44 20 {digits(draw, 4)} {digits(draw, 4)}"]
        + [
            f"+49 (30) {digits(draw, 7)}",
            f"+33 6 {' '.join(digits(draw, 2) for _ in range(4))}",
            f"+852 {digits(draw, 8)}",
        ]
    )


MAKERS = {
    "email": email,
    "phone": phone,
    "ip": address,
    "cn_id": cn_id,
    "cn_phone": cn_phone,
    "credit_card": card,
    "iban": iban,
}


def wrong_digit(number: str, draw: random.Random) -> str:
    """`number` with one digit changed, which every check digit here notices."""
    place = draw.choice([index for index, character in enumerate(number[:-1]) if character.isdigit() and index > 4])
    return number[:place] + str((int(number[place]) + 1) % 10) + number[place + 1 :]


def negatives(draw: random.Random):
    """Texts that look like personal data and are none."""
    for _ in range(60):
        small, byte = draw.randint(1, 9), draw.randint(0, 255)
        yield f"Version {small}.{draw.randint(0, 30)}.{draw.randint(0, 30)}.{byte} is out."
        yield f"upgrade to v{small}.{draw.randint(0, 30)}.{draw.randint(0, 30)}-rc1, then 1.2.{small}.{byte}.7"
        yield f"版本：{small}.{draw.randint(0, 30)}.{draw.randint(0, 30)}.{byte}"
        yield f"on {draw.randint(1900, 2030)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d} at 12:34:56"
        yield f"{draw.randint(1900, 2030)}/{draw.randint(1, 12)}/{draw.randint(1, 28)}, pages 123-456, 1234-5678"
        yield f"order 138{digits(draw, 8)} was shipped"
        yield f"订单号：1{draw.choice('3589')}{digits(draw, 9)}"
        yield f"order number: {card(draw)}"
        yield f"timestamp 16{digits(draw, 8)} or 16{digits(draw, 11)} ms"
        yield f"id {wrong_digit(cn_id(draw), draw)} has no valid check digit"
        yield f"card {wrong_digit(with_luhn('4' + digits(draw, 14)), draw)}"
        yield f"IBAN {wrong_digit(iban(draw).replace(' ', ''), draw)}"
        yield f"host 10.{byte}.0.1, 192.168.{byte}.7, 127.0.0.1, 172.16.0.{byte}"
        yield f"documentation: 203.0.113.{byte}, 2001:db8::{draw.randint(1, 99)}, fe80::1"
        yield f"user{small}@example.com, a@b.example, x@host.test, logo@2x.png, getty@tty1.service"
        yield f"git clone git@github.com:team/project{small}.git; react@18.{small}.0; @app.route"
        yield f"π is 3.14159265{digits(draw, 12)}, e 2.71828{digits(draw, 10)}"
        yield f"ISBN 978-3-16-{digits(draw, 6)}-0, serial no. 555-{digits(draw, 3)}-{digits(draw, 4)}"
        yield f"call 555-0123, (212) 555-01{digits(draw, 2)}: numbers of films"
        yield f"热线400-{digits(draw, 3)}-{digits(draw, 4)}"
        yield f"price ¥13{digits(draw, 9)}, ${digits(draw, 3)},{digits(draw, 3)}.00, +12.5 %, +3 points"
        yield f"sha 1{draw.randint(10, 99)}a{digits(draw, 11)}b, 0x{digits(draw, 16)}, std::vector, abc::def"
        yield f"lat 39.{digits(draw, 7)}, lon 116.{digits(draw, 7)}; ratio 1.{digits(draw, 3)}.{digits(draw, 3)}"


def test_precision_and_recall_on_a_generated_set():
    draw, found_right, found, planted, missed = random.Random(20261128), 0, 0, 0, []
    for kind, make in MAKERS.items():
        for index in range(PER_KIND):
            value = make(draw)
            text = TEMPLATES[index % len(TEMPLATES)].format(value)
            spans = pii.find(text, KINDS)
            right = [span for span in spans if text[span.start : span.stop] == value and span.kind == kind]
            planted, found, found_right = planted + 1, found + len(spans), found_right + len(right)
            if not right:
                missed.append((kind, text, spans))
    wrong = [(text, spans) for text in negatives(draw) if (spans := pii.find(text, KINDS))]
    found += sum(len(spans) for _, spans in wrong)
    recall, precision = found_right / planted, found_right / found
    print(f"{planted} planted, recall {recall:.4f}, precision {precision:.4f}")
    assert recall >= 0.98, (recall, missed)
    assert precision >= 0.98, (precision, wrong, missed)


@pytest.mark.parametrize("kind", KINDS)
def test_recall_of_each_kind(kind):
    draw = random.Random(1)
    values = [MAKERS[kind](draw) for _ in range(100)]
    scrubbed = [value for value in values if pii.find(f"see {value} there", KINDS)]
    assert len(scrubbed) >= 97, sorted(set(values) - set(scrubbed))


def scrubbed(text: str, kinds=KINDS) -> str:
    return pii.replace(text, pii.find(text, kinds))


def test_placeholders_name_their_kind():
    assert scrubbed("邮箱zhang@qq.com，电话13812345678，8.8.8.8") == "邮箱<EMAIL>，电话<CN_PHONE>，<IP>"
    assert scrubbed("身份证11010519491231002X，卡4111111111111111") == "身份证<CN_ID>，卡<CREDIT_CARD>"
    assert scrubbed("DE89370400440532013000") == "<IBAN>"
    assert scrubbed("+44 20 7946 0958") == "<PHONE>"


def test_only_what_is_asked_for_is_replaced():
    assert scrubbed("a@qq.com 8.8.8.8", ("ip",)) == "a@qq.com <IP>"


@pytest.mark.parametrize(
    ("number", "valid"),
    [
        ("11010519491231002X", True),  # the example of GB 11643-1999
        ("440524188001010014", False),  # its other example, born before 1900
        ("110105194912310021", False),  # another check digit
        ("11010519490231002X", False),  # 31 February
        ("99010519491231002X", False),  # no such province
    ],
)
def test_identity_numbers_of_the_standard(number, valid):
    assert pii.is_cn_id(number) == valid


def test_neighbours_decide():
    assert scrubbed("x13812345678") == "x13812345678"
    assert scrubbed("138123456789") == "138123456789"
    assert scrubbed("电13812345678话") == "电<CN_PHONE>话"
    assert scrubbed("9911010519491231002X") == "9911010519491231002X"
    assert scrubbed("http://8.8.8.8/a and IP:8.8.4.4.") == "http://<IP>/a and IP:<IP>."


def test_scrubbing_twice_changes_nothing():
    draw = random.Random(5)
    for _ in range(300):
        text = " ".join(make(draw) for make in draw.choices(list(MAKERS.values()), k=3))
        once = scrubbed(text)
        assert scrubbed(once) == once


def test_long_runs_take_no_long_time():
    """Patterns that go back over what they read would take minutes here."""
    for text in (
        "1" * 50_000,
        "1-" * 30_000,
        "a." * 30_000 + "@",
        "DE" + "11 " * 30_000,
        "+1 " * 30_000,
        "2:" * 30_000,
    ):
        assert scrubbed(text) is not None
