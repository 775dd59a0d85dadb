"""The families of problems: how each is drawn and solved, and the wordings that its question comes in."""

from __future__ import annotations

from dataclasses import dataclass

from school_geometry import solving


@dataclass(frozen=True)
class Family:
    """One kind of problem. `draw` gives its values, `solve` the worked steps and the exact answer (LaTeX)."""

    draw: solving.Draw
    solve: solving.Solve
    wordings: tuple[str, ...]
    """Templates over the values and {A} {B} {C} {D}; the last one is held out of training."""
    held_out: bool = False
    """The whole family appears in the test slice `new families` only."""


FAMILIES: dict[str, Family] = {
    # Angles that fill a triangle, a line or a full turn.
    "third_angle": Family(
        solving.draw_angles("a", "b", total=180, step=5),
        solving.rest_of(180, "The angles of a triangle add up to 180."),
        (
            "In triangle {A}{B}{C}, angle {A} is {a}° and angle {B} is {b}°. Find angle {C}.",
            "Two angles of a triangle measure {a}° and {b}°. What is the third angle in degrees?",
            (
                "Triangle {A}{B}{C} has angles of {b}° at {B} and {a}° at {A}. "
                "How many degrees is the angle at {C}?"
            ),
            "A triangle has one angle of {a}° and another of {b}°. Work out the remaining angle.",
        ),
    ),
    "line_three": Family(
        solving.draw_angles("a", "b", total=180, step=5),
        solving.rest_of(180, "Angles on a straight line add up to 180."),
        (
            "Three angles lie on a straight line. Two of them are {a}° and {b}°. Find the third.",
            (
                "Rays from point {C} on line {A}{B} make three angles on one side of it: {a}°, {b}° and x. "
                "Find x in degrees."
            ),
            "The angles {b}°, {a}° and x together form a straight line. What is x?",
            "A straight line is divided at a point into angles of {a}°, {b}° and x°. Calculate x.",
        ),
    ),
    "round_point": Family(
        solving.draw_angles("a", "b", "c", total=360, step=10),
        solving.rest_of(360, "Angles round a point add up to 360."),
        (
            "Four angles meet at point {A}. Three of them are {a}°, {b}° and {c}°. Find the fourth.",
            "Angles of {a}°, {b}°, {c}° and x fill the full turn round a point. What is x in degrees?",
            "Round point {B} there are angles of {a}°, {b}° and {c}° and one more. How large is that angle?",
            (
                "A full turn at {A} is split into {a}°, {b}°, {c}° and one unknown angle. "
                "Calculate the unknown angle."
            ),
        ),
    ),
    # Angles of special triangles, at parallels and in circles.
    "isosceles_apex": Family(
        solving.draw_integers(a=(15, 85)),
        solving.apex_angle,
        (
            "Triangle {A}{B}{C} is isosceles with {A}{B} = {A}{C}. Angle {B} is {a}°. Find angle {A}.",
            "Each base angle of an isosceles triangle is {a}°. What is the angle at the top?",
            "An isosceles triangle has two equal angles of {a}°. How many degrees is its other angle?",
            "In an isosceles triangle the angles at the base measure {a}° each. Calculate the apex angle.",
        ),
    ),
    "exterior_angle": Family(
        solving.draw_angles("a", "b", total=180, step=5),
        solving.exterior_angle,
        (
            (
                "In triangle {A}{B}{C}, angle {A} is {a}° and angle {B} is {b}°. "
                "Side {B}{C} is extended beyond {C}. Find the exterior angle at {C}."
            ),
            (
                "The interior angles opposite to an exterior angle of a triangle are {a}° and {b}°. "
                "How large is the exterior angle?"
            ),
            (
                "A triangle has interior angles of {b}° and {a}°. "
                "What is the exterior angle at the third corner?"
            ),
            "Work out the exterior angle of a triangle whose two remote interior angles are {a}° and {b}°.",
        ),
    ),
    "cointerior": Family(
        solving.draw_integers(a=(20, 160)),
        solving.rest_of(180, "Co-interior angles at parallel lines add up to 180."),
        (
            "Two parallel lines are cut by a line. One co-interior angle is {a}°. Find the other.",
            (
                "Lines {A}{B} and {C}{D} are parallel. A line crosses both, and one interior angle is {a}°. "
                "What is the interior angle on the same side?"
            ),
            (
                "Between two parallel lines, on the same side of a transversal, lie angles of {a}° and x. "
                "Find x in degrees."
            ),
            "A transversal meets two parallel lines. Calculate the co-interior partner of an angle of {a}°.",
        ),
    ),
    "semicircle": Family(
        solving.draw_integers(a=(5, 85)),
        solving.rest_of(90, "The angle in a semicircle is 90, so the others add up to 90."),
        (
            (
                "{A}{B} is a diameter of a circle and {C} is on the circle. Angle {C}{A}{B} is {a}°. "
                "Find angle {C}{B}{A}."
            ),
            (
                "A triangle is drawn in a semicircle on its diameter. One angle at the diameter is {a}°. "
                "What is the other one?"
            ),
            (
                "Point {C} lies on the circle with diameter {A}{B}, "
                "and angle {A} of triangle {A}{B}{C} is {a}°. How many degrees is angle {B}?"
            ),
            (
                "In a semicircle with diameter {A}{B}, point {C} is on the arc. Angle {A} measures {a}°. "
                "Calculate angle {B}."
            ),
        ),
    ),
    "central_angle": Family(
        solving.draw_integers(a=(10, 89)),
        solving.central_angle,
        (
            "An inscribed angle of a circle is {a}°. Find the central angle on the same arc.",
            (
                "Points {A}, {B} and {C} lie on a circle with centre O. Angle {A}{C}{B} is {a}°. "
                "What is angle {A}O{B}?"
            ),
            (
                "The angle at the circumference over a chord is {a}°. "
                "How large is the angle at the centre over that chord?"
            ),
            (
                "Calculate the angle at the centre of a circle when the angle at "
                "the circumference on the same arc is {a}°."
            ),
        ),
    ),
    # Lengths and areas. Values are small enough that each product is learnt in tens and ones.
    "rectangle_perimeter": Family(
        solving.draw_integers(5, a=(5, 75), b=(5, 75)),
        solving.rectangle_perimeter,
        (
            "A rectangle is {a} cm long and {b} cm wide. Find its perimeter in cm.",
            "What is the perimeter of a rectangle with sides {a} cm and {b} cm?",
            (
                "A garden in the shape of a rectangle measures {a} m by {b} m. "
                "How many metres of fence go round it?"
            ),
            "Calculate the distance round a rectangle of length {a} cm and width {b} cm.",
        ),
    ),
    "rectangle_area": Family(
        solving.draw_integers(a=(3, 12), b=(3, 15)),
        solving.product("The area is length times width."),
        (
            "A rectangle is {a} cm long and {b} cm wide. Find its area in square cm.",
            "What is the area of a rectangle with sides {a} cm and {b} cm?",
            (
                "A floor in the shape of a rectangle measures {a} m by {b} m. "
                "How many square metres of carpet cover it?"
            ),
            "Calculate how many square cm a rectangle of length {a} cm and width {b} cm covers.",
        ),
    ),
    "triangle_area": Family(
        solving.draw_triangle,
        solving.triangle_area,
        (
            "A triangle has a base of {a} cm and a height of {b} cm. Find its area in square cm.",
            "What is the area of a triangle whose base is {a} cm and whose height is {b} cm?",
            (
                "In triangle {A}{B}{C}, {A}{B} = {a} cm and the height on {A}{B} is {b} cm. "
                "Find the area of the triangle."
            ),
            "Calculate the area of a triangle of height {b} cm on a base of {a} cm.",
        ),
    ),
    "trapezoid_area": Family(
        solving.draw_trapezoid,
        solving.trapezoid_area,
        (
            (
                "A trapezoid has parallel sides of {a} cm and {b} cm and a height of {h} cm. "
                "Find its area in square cm."
            ),
            (
                "The parallel sides of a trapezoid are {a} cm and {b} cm long and {h} cm apart. "
                "What is its area?"
            ),
            (
                "In trapezoid {A}{B}{C}{D}, the bases are {b} cm and {a} cm and the height is {h} cm. "
                "How large is its area?"
            ),
            "Calculate the area of a trapezoid of height {h} cm with bases of {a} cm and {b} cm.",
        ),
    ),
    "hypotenuse": Family(
        solving.draw_integers(a=(2, 10), b=(2, 10)),
        solving.hypotenuse,
        (
            "A right triangle has legs of {a} cm and {b} cm. Find its hypotenuse in cm.",
            "In triangle {A}{B}{C} the angle at {C} is 90°, {B}{C} = {a} and {A}{C} = {b}. Find {A}{B}.",
            (
                "The two shorter sides of a right triangle are {a} m and {b} m long. "
                "How long is the longest side?"
            ),
            (
                "Calculate the side opposite the right angle of a triangle "
                "whose other sides are {a} cm and {b} cm."
            ),
        ),
    ),
    "similar": Family(
        solving.draw_similar,
        solving.corresponding_side,
        (
            (
                "Two similar triangles have corresponding sides of {a} cm and {big} cm. "
                "Another side of the first is {b} cm. Find the corresponding side of the second."
            ),
            (
                "Triangle {A}{B}{C} is enlarged so that a side of {a} cm becomes {big} cm. "
                "What becomes of a side of {b} cm?"
            ),
            "A photo {a} cm wide and {b} cm high is enlarged to a width of {big} cm. How high is it then?",
            "In two similar figures {a} cm corresponds to {big} cm. Calculate what {b} cm corresponds to.",
        ),
    ),
    "circle_area": Family(
        solving.draw_circle,
        solving.circle_area,
        (
            "A circle has a diameter of {d} cm. Find its area in square cm, in terms of π.",
            "What is the area of a circle of diameter {d}? Leave π in the answer.",
            "A round table is {d} dm across. Give the area of its top in terms of π.",
            "Calculate, as a multiple of π, the area of a circle that is {d} cm wide.",
        ),
    ),
    # Held out as whole families. Each question states its rule, so that what is asked for is to apply it.
    "quadrilateral": Family(
        solving.draw_angles("a", "b", "c", total=360, step=10),
        solving.rest_of(360, "The angles of a quadrilateral add up to 360."),
        (
            (
                "The angles of a quadrilateral add up to 360°. Three of them are {a}°, {b}° and {c}°. "
                "Find the fourth."
            ),
            (
                "Quadrilateral {A}{B}{C}{D} has angles of {a}°, {b}° and {c}° at {A}, {B} and {C}. "
                "Its angles total 360°. What is the angle at {D}?"
            ),
        ),
        held_out=True,
    ),
    "right_triangle_angle": Family(
        solving.draw_integers(a=(5, 85)),
        solving.rest_of(90, "The acute angles of a right triangle add up to 90."),
        (
            "The acute angles of a right triangle add up to 90°. One of them is {a}°. Find the other.",
            (
                "Triangle {A}{B}{C} has a right angle at {C}, so angles {A} and {B} total 90°. "
                "Angle {A} is {a}°. What is angle {B}?"
            ),
        ),
        held_out=True,
    ),
    "cyclic_quadrilateral": Family(
        solving.draw_integers(a=(20, 160)),
        solving.rest_of(180, "Opposite angles of a cyclic quadrilateral add up to 180."),
        (
            (
                "Opposite angles of a cyclic quadrilateral add up to 180°. One angle is {a}°. "
                "Find the opposite one."
            ),
            (
                "Quadrilateral {A}{B}{C}{D} is inscribed in a circle, so angles {A} and {C} total 180°. "
                "Angle {A} is {a}°. What is angle {C}?"
            ),
        ),
        held_out=True,
    ),
    "parallelogram_area": Family(
        solving.draw_integers(a=(3, 12), b=(3, 15)),
        solving.product("The area is base times height."),
        (
            (
                "The area of a parallelogram is base times height. "
                "The base is {a} cm and the height is {b} cm. Find the area."
            ),
            (
                "A parallelogram is {b} cm high on a base of {a} cm. "
                "Multiply them to find its area in square cm."
            ),
        ),
        held_out=True,
    ),
    "isosceles_perimeter": Family(
        solving.draw_integers(5, a=(10, 60), b=(5, 55)),
        solving.isosceles_perimeter,
        (
            (
                "An isosceles triangle has two sides of {a} cm and a base of {b} cm. "
                "Add the three sides to find its perimeter."
            ),
            (
                "The base of an isosceles triangle is {b} cm and each equal side is {a} cm. "
                "What is the sum of its three sides?"
            ),
        ),
        held_out=True,
    ),
    "cuboid_volume": Family(
        solving.draw_integers(a=(2, 6), b=(2, 6), c=(2, 9)),
        solving.cuboid_volume,
        (
            (
                "A box is {a} cm long, {b} cm wide and {c} cm high. "
                "Multiply the three to find its volume in cubic cm."
            ),
            "The volume of a cuboid is the product of its edges {a} cm, {b} cm and {c} cm. What is it?",
        ),
        held_out=True,
    ),
}
