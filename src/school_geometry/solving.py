"""How a problem's values are drawn, and how it is solved: worked steps and exact answers.

`Draw` gives a family's values out of a seeded generator, `Solve` the steps and the answer (LaTeX) for values.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

Values = dict[str, int]
Solution = tuple[list[str], str]
Solve = Callable[[Values], Solution]
Draw = Callable[[random.Random], Values]


# Values. A factory where families differ in ranges alone.


def draw_angles(*names: str, total: int, step: int) -> Draw:
    """Angles, multiples of `step` and at least 2 * `step` each, that leave as much of `total`."""

    def draw(generator: random.Random) -> Values:
        # In units of `step`: every angle, and the one that is left over, has its two units already.
        rest = total // step - 2 * (len(names) + 1)
        angles = []
        for _ in names:
            extra = generator.randint(0, rest)
            angles.append(step * (2 + extra))
            rest -= extra
        # The first angle has the widest range. Shuffled, so that no name always has the largest.
        return dict(zip(names, generator.sample(angles, len(angles)), strict=True))

    return draw


def draw_integers(step: int = 1, **ranges: tuple[int, int]) -> Draw:
    """Whole numbers from `low` to `high` for each name, `step` apart."""

    def draw(generator: random.Random) -> Values:
        return {name: generator.randrange(low, high + 1, step) for name, (low, high) in ranges.items()}

    return draw


def draw_triangle(generator: random.Random) -> Values:
    """Base and height of a triangle with a whole-number area."""
    a = generator.randint(3, 12)
    b = generator.randint(3, 12)
    return {"a": a, "b": b + (a * b) % 2}


def draw_trapezoid(generator: random.Random) -> Values:
    """Parallel sides with an even sum, and the height."""
    a = generator.randint(2, 9)
    b = generator.randint(3, 10)
    return {"a": a, "b": b + (a + b) % 2, "h": generator.randint(2, 10)}


def draw_similar(generator: random.Random) -> Values:
    """Two sides of a figure, the scale `k`, and the side that corresponds to the first."""
    a, b = generator.sample(range(2, 13), 2)
    k = generator.randint(2, 6)
    return {"a": a, "b": b, "k": k, "big": a * k}


def draw_circle(generator: random.Random) -> Values:
    """Radius and diameter."""
    radius = generator.randint(2, 20)
    return {"a": radius, "d": 2 * radius}


# Arithmetic in steps that a small model can learn: tens and ones apart, as on paper.


def _plus(a: int, b: int) -> str:
    middle = ""
    if a > 9 and b > 9 and a % 10 and b % 10:
        tens = a // 10 * 10 + b // 10 * 10
        middle = f"{tens} + {a % 10 + b % 10} = "
    return f"{a} + {b} = {middle}{a + b}"


def _minus(a: int, b: int) -> str:
    middle = ""
    if b > 9 and b % 10:
        middle = f"{a - b // 10 * 10} - {b % 10} = "
    return f"{a} - {b} = {middle}{a - b}"


def _times(a: int, b: int) -> str:
    middle = ""
    if b > 10 and b % 10:
        middle = f"{a * (b // 10 * 10)} + {a * (b % 10)} = "
    return f"{a} * {b} = {middle}{a * b}"


def _half(n: int) -> str:
    middle = ""
    if n > 20 and n % 10:
        middle = f"{n // 10 * 5} + {n % 10 // 2} = "
    return f"{n} / 2 = {middle}{n // 2}"


# Solutions. A factory where families differ in the rule that they state and not in the arithmetic.


def rest_of(total: int, rule: str) -> Solve:
    """What is left of `total` after one, two or three angles."""

    def solve(values: Values) -> Solution:
        first, *others = values.values()
        steps = [rule]
        known = first
        for angle in others:
            steps.append(_plus(known, angle))
            known += angle
        steps.append(_minus(total, known))
        return steps, str(total - known)

    return solve


def product(rule: str) -> Solve:
    """The product of `a` and `b`."""

    def solve(values: Values) -> Solution:
        a, b = values["a"], values["b"]
        return [rule, _times(a, b)], str(a * b)

    return solve


def apex_angle(values: Values) -> Solution:
    a = values["a"]
    steps = ["The base angles are equal.", _times(2, a), _minus(180, 2 * a)]
    return steps, str(180 - 2 * a)


def exterior_angle(values: Values) -> Solution:
    a, b = values["a"], values["b"]
    return ["An exterior angle is the sum of the two opposite angles.", _plus(a, b)], str(a + b)


def central_angle(values: Values) -> Solution:
    a = values["a"]
    return ["The central angle is twice the inscribed angle.", _times(2, a)], str(2 * a)


def rectangle_perimeter(values: Values) -> Solution:
    a, b = values["a"], values["b"]
    steps = ["The perimeter is twice length plus width.", _plus(a, b), _times(2, a + b)]
    return steps, str(2 * (a + b))


def triangle_area(values: Values) -> Solution:
    a, b = values["a"], values["b"]
    steps = ["The area is half of base times height.", _times(a, b), _half(a * b)]
    return steps, str(a * b // 2)


def trapezoid_area(values: Values) -> Solution:
    a, b, height = values["a"], values["b"], values["h"]
    half = (a + b) // 2
    rule = "The area is half the sum of the parallel sides times the height."
    return [rule, _plus(a, b), _half(a + b), _times(height, half)], str(half * height)


def hypotenuse(values: Values) -> Solution:
    """A whole number where there is one, the root as it stands otherwise."""
    a, b = values["a"], values["b"]
    square = a**2 + b**2
    root = math.isqrt(square)
    answer = f"\\sqrt{{{square}}}"
    if root**2 == square:
        answer = str(root)
    steps = [f"{a}^2 = {a**2}", f"{b}^2 = {b**2}", _plus(a**2, b**2), f"The side is {answer}."]
    return steps, answer


def corresponding_side(values: Values) -> Solution:
    a, b, k, big = values["a"], values["b"], values["k"], values["big"]
    steps = ["Corresponding sides have the same ratio.", f"{big} / {a} = {k}", _times(k, b)]
    return steps, str(k * b)


def circle_area(values: Values) -> Solution:
    r = values["a"]
    answer = f"{r * r}\\pi"
    return [f"The radius is {2 * r} / 2 = {r}.", f"{r}^2 = {r * r}", f"The area is {answer}."], answer


def cuboid_volume(values: Values) -> Solution:
    a, b, c = values["a"], values["b"], values["c"]
    return ["The three edges are multiplied.", _times(a, b), _times(c, a * b)], str(a * b * c)


def isosceles_perimeter(values: Values) -> Solution:
    a, b = values["a"], values["b"]
    return ["The equal sides count twice.", _times(2, a), _plus(2 * a, b)], str(2 * a + b)
