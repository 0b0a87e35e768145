"""Personal data in text: what is found, by rules that a checksum or a register decides where there is one.

    <EMAIL>        an address whose domain ends in letters. Kept: domains reserved for examples (RFC 2606, RFC 6761),
                   file names such as icon@2x.png, units such as getty@tty1.service, git@host:path.
    <IP>           a global IPv4 or IPv6 address (RFC 6890). Kept: private, local, documentation and other reserved
                   ranges, and what stands behind a word such as "version".
    <CN_ID>        a Chinese identity number (GB 11643): province, date of birth from 1900 and check digit are valid.
                   The old 15 digits, which have no check digit, are kept.
    <CN_PHONE>     a Chinese mobile number, and a landline with its area code set apart or behind a word such as 电话.
                   Kept: 400 and 800 numbers, which are firms'.
    <PHONE>        +, a country's code and 7 to 12 more digits (ITU E.164); a North American number; 7 to 13 digits
                   behind a word such as "phone". Kept: 555-0100 to 555-0199, which are for fiction; 400, 800.
    <CREDIT_CARD>  13 to 19 digits of a card network, with the check digit of ISO/IEC 7812 (Luhn).
    <IBAN>         an account number of the length of its country, modulo 97 equal to 1 (ISO 13616).

Card and phone numbers behind a word such as "order" or 订单 are kept. Names and postal addresses are not looked for.
Where two kinds overlap, the one whose check is stronger wins. Text that was scrubbed is not changed by scrubbing it
again.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    start: int
    stop: int
    kind: str  # as in `kinds` of the stage


# No letter or digit of ASCII may stand right before or behind; Chinese characters may.
ALONE, END = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"

EMAIL = re.compile(
    r"(?<![A-Za-z0-9.!#$%&'*+/=?^_`{|}~@-])[A-Za-z0-9_](?:[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{0,62}[A-Za-z0-9_+-])?"
    r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+(?:[A-Za-z]{2,24}|xn--[A-Za-z0-9-]{2,59}))"
    r"(?![A-Za-z0-9@_-]|\.[A-Za-z0-9]|:[\w.~-]*/)"
)
EXAMPLES = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org|edu))?|test|invalid|localhost|local)$", re.IGNORECASE)
NO_DOMAINS = {  # last labels of names that hold an @ but are no address
    *("png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "ts", "tsx", "jsx", "json", "html", "md", "py"),
    *("service", "socket", "timer", "mount", "target", "slice", "scope", "device", "conf", "txt", "gz", "tgz", "whl"),
}

IPV4 = re.compile(r"(?<![A-Za-z0-9_.-])(?<!(?<!/)/)(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_]|\.\d|-[A-Za-z])")
IPV6 = re.compile(r"(?<![A-Za-z0-9_.:])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![A-Za-z0-9_:])")
VERSIONS = re.compile(
    r"(?:\b(?:version|versions|ver|v|release|rev|revision|build|section|sec|chapter|clause|table|figure|firmware|driver"
    r"|kernel|upgrade|oid)|版本|版|第|章|节|§)\s*(?:is|to|from|号|为|：|:|#|\.|=)*\s*$",
    re.IGNORECASE,
)

CN_ID = re.compile(rf"{ALONE}\d{{6}}([ -]?)\d{{8}}\1\d{{3}}[\dXx]{END}")
PROVINCES = {
    *(11, 12, 13, 14, 15, 21, 22, 23, 31, 32, 33, 34, 35, 36, 37, 41, 42, 43, 44, 45, 46),
    *(50, 51, 52, 53, 54, 61, 62, 63, 64, 65, 71, 81, 82, 83, 91),
}
CN_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
CN_CHECKS = "10X98765432"

CN_MOBILE = re.compile(
    r"(?<![A-Za-z0-9_.,$¥+-])(?:(?:\+|00)?86[ -]?|\(\+?86\)[ -]?|\+86\(0\))?"
    r"1(?:3\d|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])([ -]?)\d{4}\1\d{4}(?!\d|[A-Za-z_]|[.,]\d|-\d)"
)
CN_AREA = r"(?:10|2[0-57-9]|[3-9]\d{2})"
CN_LANDLINE = re.compile(
    r"(?<![A-Za-z0-9_.,$¥-])"
    rf"(?:(?:\+|00)86[ -]?\(?0?{CN_AREA}\)?[ -]?|\(0{CN_AREA}\)[ -]?|（0{CN_AREA}）[ -]?|0{CN_AREA}[ -])"
    r"[2-8]\d{2,3}[ -]?\d{4}(?:(?:-|转|ext\.? ?)\d{1,5})?(?!\d|[A-Za-z_]|[.,]\d|-\d)"
)

PLUS = re.compile(r"(?<![A-Za-z0-9_+.])\+([1-9](?:[ .\-]?\(?\d{1,4}\)?){2,7})(?!\d|[A-Za-z_]|[.,]\d)")
COUNTRIES = (  # country codes of ITU E.164: of one and two digits; those of three begin otherwise
    {"1", "7"}
    | {"20", "27", "30", "31", "32", "33", "34", "36", "39", "40", "41", "43", "44", "45", "46", "47", "48", "49"}
    | {"51", "52", "53", "54", "55", "56", "57", "58", "60", "61", "62", "63", "64", "65", "66", "81", "82", "84"}
    | {"86", "90", "91", "92", "93", "94", "95", "98"}
)
NATIONAL = {"1": (10,), "86": (9, 10, 11), None: range(7, 13)}  # digits behind a country's code
THREE_DIGITS = re.compile(
    r"21[1-368]|22\d|23\d|24\d|25[0-8]|26\d|29[017-9]|35\d|37\d|38[0-35-79]|42[013]|50\d|59\d|67[02-9]|68[0-35-9]|69[0-2]"
    r"|85[02356]|88[06]|96[0-8]|97\d|99[2-68]"
)
AMERICAN = re.compile(
    r"(?<![A-Za-z0-9_+.,$/-])(?:1[ .-])?(?:\(([2-9]\d\d)\) ?|([2-9]\d\d)[ .-])([2-9]\d\d)[ .-](\d{4})"
    rf"{END}(?![.,-]\d)"
)
FREE = ("400", "800")  # numbers of firms, in China and America
CALL = re.compile(
    r"(?:\b(?:tel|telephone|phone|phones|mobile|cell|fax|call|whatsapp|ph)|电话|手机|座机|传真|联系方式|热线|致电)"
    r"(?:\s*(?:number|no|号码|号|at|is|us|me|为|是))*\s*[.:：=#]*\s*"
    r"(\(?\d(?:[ .\-()/]{0,2}\d){6,13})(?![\dA-Za-z_]|[.,-]\d)",
    re.IGNORECASE,
)

CARD = re.compile(
    r"(?<![A-Za-z0-9_.,+-])[2-6]\d{3}(?:([ -]?)\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?|([ -])\d{6}\2\d{4,5})"
    r"(?![\dA-Za-z_]|[.,-]\d)"
)
NETWORKS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}"
)

IBAN = re.compile(rf"{ALONE}[A-Z]{{2}}\d{{2}}(?: ?[A-Z0-9]{{4}}){{2,7}}(?: ?[A-Z0-9]{{1,3}})?{END}")
IBAN_LENGTHS = {  # characters, of the countries in the register
    15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
IBAN_LENGTH = {country: length for length, countries in IBAN_LENGTHS.items() for country in countries.split()}

# Behind these a number is no phone's: orders, parts, books, amounts.
OTHER_NUMBERS = re.compile(
    r"(?:\b(?:order|invoice|tracking|ticket|case|serial|part|sku|model|isbn|issn|ref|reference|id|item|account|batch"
    r"|patent|grant|article|bug|issue|commit)|订单|单号|编号|流水|序列|货号|快递|运单|发票|账号|型号|专利|证书|案号)"
    r"(?:\s*(?:number|no|nr|id|号|号码))*\s*[.:：=#]*\s*$",
    re.IGNORECASE,
)
NUMBER = re.compile(r"\d(?:[ .()/（）-]{0,3}\d){6}")
BEFORE = 24  # characters that are looked at for such a word


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _behind(pattern: re.Pattern, text: str, start: int) -> bool:
    return pattern.search(text, max(0, start - BEFORE), start) is not None


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7812."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_cn_id(number: str) -> bool:
    """Whether 18 characters are an identity number of GB 11643-1999: province, date of birth, check digit."""
    if int(number[:2]) not in PROVINCES or not number[6:10].startswith(("19", "20")):
        return False
    try:
        datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(CN_WEIGHTS, number, strict=False))
    return CN_CHECKS[total % 11] == number[17].upper()


def is_iban(number: str) -> bool:
    """Whether an account number has its country's length and the remainder 1 (ISO 13616)."""
    if len(number) != IBAN_LENGTH.get(number[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in number[4:] + number[:4])) % 97 == 1


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in IBAN.finditer(text):
        number = match[0].replace(" ", "")
        length = IBAN_LENGTH.get(number[:2], 0)
        if length and len(number) >= length and is_iban(number[:length]):
            # A word in capitals behind the number may have been taken for its end.
            stop, seen = match.start(), 0
            while seen < length:
                seen += text[stop] != " "
                stop += 1
            if stop == match.end() or text[stop] == " ":
                yield match.start(), stop


def _cn_ids(text: str) -> Iterator[tuple[int, int]]:
    for match in CN_ID.finditer(text):
        if is_cn_id(re.sub("[ -]", "", match[0])):
            yield match.span()


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in CARD.finditer(text):
        digits = _digits(match[0])
        if NETWORKS.fullmatch(digits) and luhn(digits) and not _behind(OTHER_NUMBERS, text, match.start()):
            yield match.span()


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" not in text:
        return
    for match in EMAIL.finditer(text):
        domain = match[1].lower()
        if not EXAMPLES.search(domain) and domain.rpartition(".")[2] not in NO_DOMAINS and ".." not in match[0]:
            yield match.span()


def _ips(text: str) -> Iterator[tuple[int, int]]:
    for pattern in (IPV4, IPV6):
        for match in pattern.finditer(text):
            found = match[0].rstrip(":") if pattern is IPV6 and not match[0].endswith("::") else match[0]
            if _is_global(found) and not _behind(VERSIONS, text, match.start()):
                yield match.start(), match.start() + len(found)


def _is_global(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _cn_phones(text: str) -> Iterator[tuple[int, int]]:
    for pattern in (CN_MOBILE, CN_LANDLINE):
        for match in pattern.finditer(text):
            if not _behind(OTHER_NUMBERS, text, match.start()):
                yield match.span()
    for match in CALL.finditer(text):
        digits = _digits(match[1])
        if re.fullmatch(rf"0{CN_AREA}[2-8]\d{{6,7}}", digits) and _is_chinese(text, match.start(), match.end()):
            yield match.span(1)


def _is_chinese(text: str, start: int, stop: int) -> bool:
    return re.search(r"[\u4e00-\u9fff]", text[max(0, start - BEFORE) : stop + BEFORE]) is not None


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for match in PLUS.finditer(text):
        if stop := _end_of_number(match[0]):
            yield match.start(), match.start() + stop
    for match in AMERICAN.finditer(text):
        free = (match[1] or match[2]) in FREE or _fictional(match[3] + match[4])
        if not free and not _behind(OTHER_NUMBERS, text, match.start()):
            yield match.span()
    for match in CALL.finditer(text):
        digits = _digits(match[1])
        if not digits.startswith(FREE) and not _fictional(digits[-7:]):
            yield match.span(1)


def _end_of_number(text: str) -> int | None:
    """Where the longest international number that begins `text` ends, groups of digits taken whole."""
    for group in reversed(list(re.finditer(r"\(\d+\)|\d+", text))):
        digits = _digits(text[: group.end()])
        code = next((digits[:size] for size in (1, 2) if digits[:size] in COUNTRIES), None)
        code = code or (digits[:3] if THREE_DIGITS.fullmatch(digits[:3]) else None)
        if code and len(digits) - len(code) in NATIONAL.get(code, NATIONAL[None]):
            return None if code == "1" and _fictional(digits[-7:]) else group.end()
    return None


def _fictional(last_seven: str) -> bool:
    return last_seven.startswith("55501")


def _numbers(finder: Callable[[str], Iterable[tuple[int, int]]]) -> Callable[[str], Iterable[tuple[int, int]]]:
    """`finder`, spared texts without seven digits that stand close together, which are most."""
    return lambda text: finder(text) if NUMBER.search(text) else ()


# In the order in which a place that two kinds claim is given away.
FINDERS: dict[str, tuple[str, Callable[[str], Iterable[tuple[int, int]]]]] = {
    "iban": ("<IBAN>", _ibans),
    "cn_id": ("<CN_ID>", _numbers(_cn_ids)),
    "email": ("<EMAIL>", _emails),
    "credit_card": ("<CREDIT_CARD>", _numbers(_cards)),
    "ip": ("<IP>", _ips),
    "cn_phone": ("<CN_PHONE>", _numbers(_cn_phones)),
    "phone": ("<PHONE>", _numbers(_phones)),
}


def find(text: str, kinds: Sequence[str]) -> list[Span]:
    """The places of personal data of these kinds, in order, none overlapping another."""
    found: list[Span] = []
    for kind, (_, finder) in FINDERS.items():
        if kind in kinds:
            taken = []
            for start, stop in sorted(finder(text)):
                if not taken or start >= taken[-1].stop:
                    taken.append(Span(start, stop, kind))
            # For the kinds behind it such a place is as good as a placeholder.
            text = _joined(text, taken, lambda span: "<" * (span.stop - span.start))
            found += taken
    return sorted(found)


def replace(text: str, spans: Sequence[Span]) -> str:
    """`text` with the placeholder of its kind in each place."""
    return _joined(text, spans, lambda span: FINDERS[span.kind][0])


def _joined(text: str, spans: Sequence[Span], instead: Callable[[Span], str]) -> str:
    parts, place = [], 0
    for span in spans:
        parts += [text[place : span.start], instead(span)]
        place = span.stop
    return "".join([*parts, text[place:]])
