"""Units of measurement: how they are written, and how large they are."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

# Prefixes of symbols and of words, and the power of ten that they are.
_PREFIXES = (
    *(("p", "pico", -12), ("n", "nano", -9), ("\u03bc", "micro", -6), ("\\mu ", "micro", -6)),
    *(("u", "micro", -6), ("m", "milli", -3), ("c", "centi", -2), ("d", "deci", -1), ("", "", 0)),
    *(("k", "kilo", 3), ("M", "mega", 6), ("G", "giga", 9)),
)
# By powers of base units: symbols and words that take prefixes, each with its size.
_PREFIXED = {
    "m": "m, metre meter: 1",
    "g": "g, gram gramme: 1",
    "s": "s, second: 1",
    "A": "A, ampere amp: 1",
    "K": "K, kelvin: 1",
    "mol": "mol, mole: 1",
    "m3": "L l, litre liter: 1/1000",
    "g m s-2": "N, newton: 1000",
    "g m2 s-2": "J, joule: 1000; cal, calorie: 4184; eV, electronvolt: 1.602176634e-16; Wh, : 3600000",
    "g m2 s-3": "W, watt: 1000",
    "g m-1 s-2": "Pa, pascal: 1000",
    "s-1": "Hz, hertz: 1",
    "A s": "C, coulomb: 1",
    "g m2 s-3 A-1": "V, volt: 1000",
    "g-1 m-2 s4 A2": "F, farad: 1/1000",
    "g m2 s-3 A-2": "\u03a9 \\Omega, ohm: 1000",
    "g s-2 A-1": "T, tesla: 1000",
    "g m2 s-2 A-2": ", henry: 1000",
    "g m2 s-2 A-1": "Wb, weber: 1000",
}
# The same for names that take none; "_" is a blank.
_OTHERS = {
    "m": "in inch inches: 0.0254; ft foot feet: 0.3048; yd yard yards: 0.9144; mi mile miles: 1609.344; "
    "\u00c5 angstrom angstroms: 1e-10; \u5398\u7c73: 1/100; \u7c73: 1; \u5343\u7c73 \u516c\u91cc: 1000",
    "g": "t tonne tonnes: 1000000; lb lbs pound pounds: 453.59237; oz ounce ounces: 28.349523125; "
    "\u514b: 1; \u5343\u514b \u516c\u65a4: 1000",
    "s": "sec secs: 1; min mins minute minutes: 60; h hr hrs hour hours: 3600; d day days: 86400; "
    "week weeks: 604800; \u79d2: 1; \u5206\u949f: 60; \u5c0f\u65f6: 3600",
    "month": "month months: 1; yr yrs year years: 12",
    "m2": "ha hectare hectares: 10000; acre acres: 4046.8564224",
    "m3": "cc: 1e-6",
    "m s-1": "mph: 0.44704; kmh kph kmph: 5/18",
    "g m-1 s-2": "bar bars: 1e8; atm: 101325000",
    "degree": "\u00b0 deg degree degrees \u5ea6: 1; "
    "rad rads radian radians: 57.295779513082320876798154814105170332405",
    "celsius": "\u00b0C degC celsius degrees_C degrees_Celsius: 1",
    "fahrenheit": "\u00b0F degF fahrenheit degrees_F degrees_Fahrenheit: 1",
    "dollar": "USD dollar dollars: 1; \u00a2 cent cents: 1/100",
    "euro": "\u20ac EUR euro euros: 1",
    "sterling": "\u00a3 GBP: 1",
    "rupee": "\u20b9 INR Rs rupee rupees: 1",
    "yuan": "CNY RMB yuan \u5143: 1",
    "yen": "JPY yen \u5186: 1",
    "byte": "KB kB: 1e3; MB: 1e6; GB: 1e9; TB: 1e12",
    "pixel": "px pixel pixels: 1",
    "point": "pt: 1",
}


@dataclass(frozen=True)
class Unit:
    """A unit: its size in base units, and their powers, such as (("m", 1), ("s", -1))."""

    size: Fraction
    dimension: tuple[tuple[str, int], ...]

    @property
    def is_angle(self) -> bool:
        """Whether this is a degree, a radian or the like."""
        return self.dimension == (("degree", 1),)

    def times(self, other: "Unit", power: int = 1) -> "Unit":
        """This unit multiplied by a power of another."""
        powers = dict(self.dimension)
        for name, exponent in other.dimension:
            powers[name] = powers.get(name, 0) + power * exponent
        return Unit(
            self.size * other.size**power, tuple(sorted((name, n) for name, n in powers.items() if n))
        )


ONE = Unit(Fraction(1), ())


def _named() -> Iterator[tuple[str, Unit]]:
    for base, names, size in _table(_PREFIXED):
        symbols, _, words = names.partition(",")
        for symbol, word, exponent in _PREFIXES:
            unit = Unit(size * Fraction(10) ** exponent, base)
            yield from ((symbol + name, unit) for name in symbols.split())
            yield from ((word + name + s, unit) for name in words.split() for s in ("", "s"))
    for base, names, size in _table(_OTHERS):
        yield from ((name.replace("_", " "), Unit(size, base)) for name in names.split())


def _table(rows: Mapping[str, str]) -> Iterator[tuple[tuple[tuple[str, int], ...], str, Fraction]]:
    for base, units in rows.items():
        powers = (re.fullmatch(r"([A-Za-z]+)(-?\d*)", part) for part in base.split())
        dimension = tuple(sorted((match[1], int(match[2] or 1)) for match in powers if match))
        for names, _, size in (unit.partition(":") for unit in units.split(";")):
            yield dimension, names, Fraction(size.strip())


_LOWER = dict(_named())
UNITS = {name.capitalize(): unit for name, unit in _LOWER.items() if len(name) > 3} | _LOWER
RADIAN = UNITS["rad"]
_NAMES = "|".join(map(re.escape, sorted(UNITS, key=len, reverse=True)))
_POWER = r"\s?\^\s?(?:\{\s?-?\s?\d\s?\}|\d)|[23](?!\d)|\s(?:squared|cubed)"
_FACTOR = rf"(?:(?:square|sq\.?|cubic|cu\.?)\s)?(?:{_NAMES})(?![A-Za-z])(?:{_POWER})?"
_BETWEEN = r"\s?(?:/|\\cdot(?![a-z])|\*|\.|-)\s?\(?|\sper\s|\s"
# A unit as in text, such as "km/h", "m s^{-2}", "kg \cdot m^2/s^2", "square metres", "N/(m s)".
UNIT = rf"{_FACTOR}(?:(?:{_BETWEEN}){_FACTOR}){{0,4}}\)?"
_PART = re.compile(
    rf"(?P<between>{_BETWEEN})?(?:(?P<before>square|sq\.?|cubic|cu\.?)\s)?(?P<name>{_NAMES})(?![A-Za-z])(?P<power>{_POWER})?"
)
_WORD_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}


@lru_cache(maxsize=1024)
def read_unit(text: str) -> Unit:
    """The unit that ``text`` writes in the manner of `UNIT`. What stands behind a stroke is divided by."""
    unit, sign = ONE, 1
    for part in _PART.finditer(text):
        if "/" in (part["between"] or "") or "per" in (part["between"] or ""):
            sign = -1
        written = (part["power"] or part["before"] or "1").strip()
        number = re.search(r"-?\s?\d", written)
        power = int(number[0].replace(" ", "")) if number else _WORD_POWERS[written.rstrip(".")]
        unit = unit.times(UNITS[part["name"]], sign * power)
    return unit
