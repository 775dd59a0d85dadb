"""School geometry problems: a seeded generator with exact answers and worked steps.

A problem is data first (`Problem`: family, values, names) and text second (`question`, `solution`), so the
same problem can be worded in several ways, drawn as a figure, and recognised whatever its wording. Whether a
problem belongs to train, val or test follows from a hash of its values: the splits cannot share one, whatever
their sizes. Whole families and whole wordings are kept out of training, so that a test can tell learning from
memorising.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

Values = dict[str, int]
Solution = tuple[list[str], str]
Solve = Callable[[Values], Solution]
Draw = Callable[[random.Random], Values]
NAMES = ("ABCD", "PQRS", "WXYZ", "EFGH", "KLMN", "RSTU")
SLICES = ("same families", "new wordings", "new families")
TRAINED = (0, 1, 2)
"""The wordings of each family that training shows; the next one is held out."""


@dataclass(frozen=True)
class Family:
    """One kind of problem. `draw` gives its values, `solve` the worked steps and the exact answer (LaTeX)."""

    draw: Draw
    solve: Solve
    wordings: tuple[str, ...]
    """Templates over the values and {A} {B} {C} {D}; the last one is held out of training."""
    held_out: bool = False
    """The whole family appears in the test slice `new families` only."""


@dataclass(frozen=True)
class Problem:
    """One problem as data. `wording` and `names` change how it reads, never what it is."""

    family: str
    values: tuple[tuple[str, int], ...]
    wording: int
    names: str

    @property
    def id(self) -> str:
        """The same for every wording of the same problem."""
        return self.family + "/" + "-".join(str(v) for _, v in self.values)

    @property
    def split(self) -> str:
        """`train`, `val` or `test`, by a hash of family and values (the order of sides does not matter)."""
        key = f"{self.family}/{sorted(v for _, v in self.values)}"
        bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
        if bucket == 8:
            return "val"
        return "test" if bucket == 9 or FAMILIES[self.family].held_out else "train"

    @property
    def slice(self) -> str:
        """Which of `SLICES` the problem belongs to when a model trained on the `train` split is tested on it."""
        family = FAMILIES[self.family]
        return SLICES[2] if family.held_out else SLICES[self.wording == len(family.wordings) - 1]

    @property
    def question(self) -> str:
        template = FAMILIES[self.family].wordings[self.wording]
        return template.format(**dict(self.values), **dict(zip("ABCD", self.names, strict=True)))

    @property
    def answer(self) -> str:
        return FAMILIES[self.family].solve(dict(self.values))[1]

    @property
    def steps(self) -> list[str]:
        return FAMILIES[self.family].solve(dict(self.values))[0]

    @property
    def difficulty(self) -> str:
        """By the number of worked steps: `easy` (1-2), `medium` (3), `hard` (4 and more)."""
        return {1: "easy", 2: "easy", 3: "medium"}.get(len(self.steps), "hard")

    @property
    def solution(self) -> str:
        """The worked steps and the boxed answer in the house format."""
        steps = "\n".join(f"{i}. {step}" for i, step in enumerate(self.steps, 1))
        return f"### Solution\n{steps}\n### Final Answer\n\\boxed{{{self.answer}}}"


def _angles(*names: str, total: int, step: int) -> Draw:
    """Draw angles, multiples of `step` and at least 2 * `step` each, that leave as much of `total`."""

    def draw(r: random.Random) -> Values:
        rest, out = total // step - 2 * (len(names) + 1), []
        for _ in names:
            extra = r.randint(0, rest)
            out.append(step * (2 + extra))
            rest -= extra
        return dict(zip(names, r.sample(out, len(out)), strict=True))

    return draw


def _ints(step: int = 1, **ranges: tuple[int, int]) -> Draw:
    return lambda r: {name: r.randrange(low, high + 1, step) for name, (low, high) in ranges.items()}


def _draw_triangle(r: random.Random) -> Values:
    """Base and height of a triangle with a whole-number area."""
    a, b = r.randint(3, 12), r.randint(3, 12)
    return {"a": a, "b": b + (a * b) % 2}


def _draw_trapezoid(r: random.Random) -> Values:
    a, b = r.randint(2, 9), r.randint(3, 10)
    return {"a": a, "b": b + (a + b) % 2, "h": r.randint(2, 10)}


def _draw_similar(r: random.Random) -> Values:
    a, b = r.sample(range(2, 13), 2)
    k = r.randint(2, 6)
    return {"a": a, "b": b, "k": k, "big": a * k}


# Arithmetic in steps that a small model can learn: tens and ones apart, as on paper.


def _plus(a: int, b: int) -> str:
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    middle = f"{tens} + {ones} = " if a > 9 and b > 9 and a % 10 and b % 10 else ""
    return f"{a} + {b} = {middle}{a + b}"


def _minus(a: int, b: int) -> str:
    middle = f"{a - b // 10 * 10} - {b % 10} = " if b > 9 and b % 10 else ""
    return f"{a} - {b} = {middle}{a - b}"


def _times(a: int, b: int) -> str:
    middle = f"{a * (b // 10 * 10)} + {a * (b % 10)} = " if b > 10 and b % 10 else ""
    return f"{a} * {b} = {middle}{a * b}"


def _half(n: int) -> str:
    middle = f"{n // 10 * 5} + {n % 10 // 2} = " if n > 20 and n % 10 else ""
    return f"{n} / 2 = {middle}{n // 2}"


# Solutions. A factory where families differ in the rule they state and not in the arithmetic.


def _rest(total: int, rule: str) -> Solve:
    """What is left of `total` after one, two or three angles."""

    def solve(v: Values) -> Solution:
        parts, steps = list(v.values()), [rule]
        known = parts[0]
        for part in parts[1:]:
            steps.append(_plus(known, part))
            known += part
        return [*steps, _minus(total, known)], str(total - known)

    return solve


def _product(rule: str) -> Solve:
    return lambda v: ([rule, _times(v["a"], v["b"])], str(v["a"] * v["b"]))


def _apex(v: Values) -> Solution:
    d = 2 * v["a"]
    return ["The base angles are equal.", _times(2, v["a"]), _minus(180, d)], str(180 - d)


def _exterior(v: Values) -> Solution:
    return ["An exterior angle is the sum of the two opposite angles.", _plus(v["a"], v["b"])], str(
        v["a"] + v["b"]
    )


def _central(v: Values) -> Solution:
    return ["The central angle is twice the inscribed angle.", _times(2, v["a"])], str(2 * v["a"])


def _perimeter(v: Values) -> Solution:
    s = v["a"] + v["b"]
    return ["The perimeter is twice length plus width.", _plus(v["a"], v["b"]), _times(2, s)], str(2 * s)


def _triangle_area(v: Values) -> Solution:
    p = v["a"] * v["b"]
    return ["The area is half of base times height.", _times(v["a"], v["b"]), _half(p)], str(p // 2)


def _trapezoid_area(v: Values) -> Solution:
    s = v["a"] + v["b"]
    steps = [_plus(v["a"], v["b"]), _half(s), _times(v["h"], s // 2)]
    return ["The area is half the sum of the parallel sides times the height.", *steps], str(s // 2 * v["h"])


def _hypotenuse(v: Values) -> Solution:
    a, b = v["a"] ** 2, v["b"] ** 2
    root = math.isqrt(a + b)
    answer = str(root) if root**2 == a + b else f"\\sqrt{{{a + b}}}"
    return [f"{v['a']}^2 = {a}", f"{v['b']}^2 = {b}", _plus(a, b), f"The side is {answer}."], answer


def _scale(v: Values) -> Solution:
    return [
        "Corresponding sides have the same ratio.",
        f"{v['big']} / {v['a']} = {v['k']}",
        _times(v["k"], v["b"]),
    ], str(v["k"] * v["b"])


def _circle_area(v: Values) -> Solution:
    r = v["a"]
    return [
        f"The radius is {2 * r} / 2 = {r}.",
        f"{r}^2 = {r * r}",
        f"The area is {r * r}\\pi.",
    ], f"{r * r}\\pi"


def _cuboid(v: Values) -> Solution:
    base = v["a"] * v["b"]
    return ["The three edges are multiplied.", _times(v["a"], v["b"]), _times(v["c"], base)], str(
        base * v["c"]
    )


def _two_sides(v: Values) -> Solution:
    return ["The equal sides count twice.", _times(2, v["a"]), _plus(2 * v["a"], v["b"])], str(
        2 * v["a"] + v["b"]
    )


FAMILIES: dict[str, Family] = {
    "third_angle": Family(
        _angles("a", "b", total=180, step=5),
        _rest(180, "The angles of a triangle add up to 180."),
        (
            "In triangle {A}{B}{C}, angle {A} is {a}° and angle {B} is {b}°. Find angle {C}.",
            "Two angles of a triangle measure {a}° and {b}°. What is the third angle in degrees?",
            "Triangle {A}{B}{C} has angles of {b}° at {B} and {a}° at {A}. How many degrees is the angle at {C}?",
            "A triangle has one angle of {a}° and another of {b}°. Work out the remaining angle.",
        ),
    ),
    "line_three": Family(
        _angles("a", "b", total=180, step=5),
        _rest(180, "Angles on a straight line add up to 180."),
        (
            "Three angles lie on a straight line. Two of them are {a}° and {b}°. Find the third.",
            "Rays from point {C} on line {A}{B} make three angles on one side of it: {a}°, {b}° and x. Find x in degrees.",
            "The angles {b}°, {a}° and x together form a straight line. What is x?",
            "A straight line is divided at a point into angles of {a}°, {b}° and x°. Calculate x.",
        ),
    ),
    "round_point": Family(
        _angles("a", "b", "c", total=360, step=10),
        _rest(360, "Angles round a point add up to 360."),
        (
            "Four angles meet at point {A}. Three of them are {a}°, {b}° and {c}°. Find the fourth.",
            "Angles of {a}°, {b}°, {c}° and x fill the full turn round a point. What is x in degrees?",
            "Round point {B} there are angles of {a}°, {b}° and {c}° and one more. How large is that angle?",
            "A full turn at {A} is split into {a}°, {b}°, {c}° and one unknown angle. Calculate the unknown angle.",
        ),
    ),
    "isosceles_apex": Family(
        _ints(a=(15, 85)),
        _apex,
        (
            "Triangle {A}{B}{C} is isosceles with {A}{B} = {A}{C}. Angle {B} is {a}°. Find angle {A}.",
            "Each base angle of an isosceles triangle is {a}°. What is the angle at the top?",
            "An isosceles triangle has two equal angles of {a}°. How many degrees is its other angle?",
            "In an isosceles triangle the angles at the base measure {a}° each. Calculate the apex angle.",
        ),
    ),
    "exterior_angle": Family(
        _angles("a", "b", total=180, step=5),
        _exterior,
        (
            "In triangle {A}{B}{C}, angle {A} is {a}° and angle {B} is {b}°. Side {B}{C} is extended beyond {C}. Find the exterior angle at {C}.",
            "The interior angles opposite to an exterior angle of a triangle are {a}° and {b}°. How large is the exterior angle?",
            "A triangle has interior angles of {b}° and {a}°. What is the exterior angle at the third corner?",
            "Work out the exterior angle of a triangle whose two remote interior angles are {a}° and {b}°.",
        ),
    ),
    "cointerior": Family(
        _ints(a=(20, 160)),
        _rest(180, "Co-interior angles at parallel lines add up to 180."),
        (
            "Two parallel lines are cut by a line. One co-interior angle is {a}°. Find the other.",
            "Lines {A}{B} and {C}{D} are parallel. A line crosses both, and one interior angle is {a}°. What is the interior angle on the same side?",
            "Between two parallel lines, on the same side of a transversal, lie angles of {a}° and x. Find x in degrees.",
            "A transversal meets two parallel lines. Calculate the co-interior partner of an angle of {a}°.",
        ),
    ),
    "semicircle": Family(
        _ints(a=(5, 85)),
        _rest(90, "The angle in a semicircle is 90, so the others add up to 90."),
        (
            "{A}{B} is a diameter of a circle and {C} is on the circle. Angle {C}{A}{B} is {a}°. Find angle {C}{B}{A}.",
            "A triangle is drawn in a semicircle on its diameter. One angle at the diameter is {a}°. What is the other one?",
            "Point {C} lies on the circle with diameter {A}{B}, and angle {A} of triangle {A}{B}{C} is {a}°. How many degrees is angle {B}?",
            "In a semicircle with diameter {A}{B}, point {C} is on the arc. Angle {A} measures {a}°. Calculate angle {B}.",
        ),
    ),
    "central_angle": Family(
        _ints(a=(10, 89)),
        _central,
        (
            "An inscribed angle of a circle is {a}°. Find the central angle on the same arc.",
            "Points {A}, {B} and {C} lie on a circle with centre O. Angle {A}{C}{B} is {a}°. What is angle {A}O{B}?",
            "The angle at the circumference over a chord is {a}°. How large is the angle at the centre over that chord?",
            "Calculate the angle at the centre of a circle when the angle at the circumference on the same arc is {a}°.",
        ),
    ),
    "rectangle_perimeter": Family(
        _ints(5, a=(5, 75), b=(5, 75)),
        _perimeter,
        (
            "A rectangle is {a} cm long and {b} cm wide. Find its perimeter in cm.",
            "What is the perimeter of a rectangle with sides {a} cm and {b} cm?",
            "A garden in the shape of a rectangle measures {a} m by {b} m. How many metres of fence go round it?",
            "Calculate the distance round a rectangle of length {a} cm and width {b} cm.",
        ),
    ),
    "rectangle_area": Family(
        _ints(a=(3, 12), b=(3, 15)),
        _product("The area is length times width."),
        (
            "A rectangle is {a} cm long and {b} cm wide. Find its area in square cm.",
            "What is the area of a rectangle with sides {a} cm and {b} cm?",
            "A floor in the shape of a rectangle measures {a} m by {b} m. How many square metres of carpet cover it?",
            "Calculate how many square cm a rectangle of length {a} cm and width {b} cm covers.",
        ),
    ),
    "triangle_area": Family(
        _draw_triangle,
        _triangle_area,
        (
            "A triangle has a base of {a} cm and a height of {b} cm. Find its area in square cm.",
            "What is the area of a triangle whose base is {a} cm and whose height is {b} cm?",
            "In triangle {A}{B}{C}, {A}{B} = {a} cm and the height on {A}{B} is {b} cm. Find the area of the triangle.",
            "Calculate the area of a triangle of height {b} cm on a base of {a} cm.",
        ),
    ),
    "trapezoid_area": Family(
        _draw_trapezoid,
        _trapezoid_area,
        (
            "A trapezoid has parallel sides of {a} cm and {b} cm and a height of {h} cm. Find its area in square cm.",
            "The parallel sides of a trapezoid are {a} cm and {b} cm long and {h} cm apart. What is its area?",
            "In trapezoid {A}{B}{C}{D}, the bases are {b} cm and {a} cm and the height is {h} cm. How large is its area?",
            "Calculate the area of a trapezoid of height {h} cm with bases of {a} cm and {b} cm.",
        ),
    ),
    "hypotenuse": Family(
        _ints(a=(2, 10), b=(2, 10)),
        _hypotenuse,
        (
            "A right triangle has legs of {a} cm and {b} cm. Find its hypotenuse in cm.",
            "In triangle {A}{B}{C} the angle at {C} is 90°, {B}{C} = {a} and {A}{C} = {b}. Find {A}{B}.",
            "The two shorter sides of a right triangle are {a} m and {b} m long. How long is the longest side?",
            "Calculate the side opposite the right angle of a triangle whose other sides are {a} cm and {b} cm.",
        ),
    ),
    "similar": Family(
        _draw_similar,
        _scale,
        (
            "Two similar triangles have corresponding sides of {a} cm and {big} cm. Another side of the first is {b} cm. "
            "Find the corresponding side of the second.",
            "Triangle {A}{B}{C} is enlarged so that a side of {a} cm becomes {big} cm. What becomes of a side of {b} cm?",
            "A photo {a} cm wide and {b} cm high is enlarged to a width of {big} cm. How high is it then?",
            "In two similar figures {a} cm corresponds to {big} cm. Calculate what {b} cm corresponds to.",
        ),
    ),
    "circle_area": Family(
        lambda r: {"a": (a := r.randint(2, 20)), "d": 2 * a},
        _circle_area,
        (
            "A circle has a diameter of {d} cm. Find its area in square cm, in terms of π.",
            "What is the area of a circle of diameter {d}? Leave π in the answer.",
            "A round table is {d} dm across. Give the area of its top in terms of π.",
            "Calculate, as a multiple of π, the area of a circle that is {d} cm wide.",
        ),
    ),
    # Held out as whole families. Each question states its rule, so that what is asked for is to apply it.
    "quadrilateral": Family(
        _angles("a", "b", "c", total=360, step=10),
        _rest(360, "The angles of a quadrilateral add up to 360."),
        (
            "The angles of a quadrilateral add up to 360°. Three of them are {a}°, {b}° and {c}°. Find the fourth.",
            "Quadrilateral {A}{B}{C}{D} has angles of {a}°, {b}° and {c}° at {A}, {B} and {C}. Its angles total 360°. What is the angle at {D}?",
        ),
        held_out=True,
    ),
    "right_triangle_angle": Family(
        _ints(a=(5, 85)),
        _rest(90, "The acute angles of a right triangle add up to 90."),
        (
            "The acute angles of a right triangle add up to 90°. One of them is {a}°. Find the other.",
            "Triangle {A}{B}{C} has a right angle at {C}, so angles {A} and {B} total 90°. Angle {A} is {a}°. What is angle {B}?",
        ),
        held_out=True,
    ),
    "cyclic_quadrilateral": Family(
        _ints(a=(20, 160)),
        _rest(180, "Opposite angles of a cyclic quadrilateral add up to 180."),
        (
            "Opposite angles of a cyclic quadrilateral add up to 180°. One angle is {a}°. Find the opposite one.",
            "Quadrilateral {A}{B}{C}{D} is inscribed in a circle, so angles {A} and {C} total 180°. Angle {A} is {a}°. What is angle {C}?",
        ),
        held_out=True,
    ),
    "parallelogram_area": Family(
        _ints(a=(3, 12), b=(3, 15)),
        _product("The area is base times height."),
        (
            "The area of a parallelogram is base times height. The base is {a} cm and the height is {b} cm. Find the area.",
            "A parallelogram is {b} cm high on a base of {a} cm. Multiply them to find its area in square cm.",
        ),
        held_out=True,
    ),
    "isosceles_perimeter": Family(
        _ints(5, a=(10, 60), b=(5, 55)),
        _two_sides,
        (
            "An isosceles triangle has two sides of {a} cm and a base of {b} cm. Add the three sides to find its perimeter.",
            "The base of an isosceles triangle is {b} cm and each equal side is {a} cm. What is the sum of its three sides?",
        ),
        held_out=True,
    ),
    "cuboid_volume": Family(
        _ints(a=(2, 6), b=(2, 6), c=(2, 9)),
        _cuboid,
        (
            "A box is {a} cm long, {b} cm wide and {c} cm high. Multiply the three to find its volume in cubic cm.",
            "The volume of a cuboid is the product of its edges {a} cm, {b} cm and {c} cm. What is it?",
        ),
        held_out=True,
    ),
}


def problems(
    split: str, n: int, seed: int = 0, slices: tuple[str, ...] = SLICES, wordings: Collection[int] = TRAINED
) -> Iterator[Problem]:
    """Draw `n` different problems of a split, the families in turn; the same for the same arguments everywhere.

    `train` holds the slice `same families` only, in these `wordings`. A problem may come in two wordings, never twice in one.

    Raises ValueError when the split has fewer than `n` problems.
    """
    if split == "train":
        slices = SLICES[:1]
    chosen = "" if split != "train" or set(wordings) == set(TRAINED) else f"/{sorted(wordings)}"
    rngs = {name: random.Random(f"{seed}/{split}/{name}{chosen}") for name in FAMILIES}
    seen: set[tuple[str, int]] = set()

    def wanted(p: Problem) -> bool:
        return (
            p.split == split
            and p.slice in slices
            and (split != "train" or p.wording in wordings)
            and (p.id, p.wording) not in seen
        )

    while rngs and len(seen) < n:
        for name in list(rngs):
            problem = _draw_new(name, rngs[name], wanted)
            if problem is None:
                del rngs[name]
            elif len(seen) < n:
                seen.add((problem.id, problem.wording))
                yield problem
    if len(seen) < n:
        raise ValueError(
            f"geometry: the {split} split has {len(seen)} different problems, {n} were asked for"
        )


def _draw_new(name: str, rng: random.Random, wanted: Callable[[Problem], bool]) -> Problem | None:
    """The next problem of a family that is wanted; None when 3,000 draws find none."""
    family = FAMILIES[name]
    for _ in range(3000):
        values = tuple(family.draw(rng).items())
        problem = Problem(name, values, rng.randrange(len(family.wordings)), rng.choice(NAMES))
        if wanted(problem):
            return problem
    return None
