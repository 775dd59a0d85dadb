"""What each family is called in MM_Math's columns, how its figure is drawn and what is asked about it."""

from __future__ import annotations

from dataclasses import dataclass

from school_geometry import sketches


@dataclass(frozen=True)
class Kind:
    """How the problems of a family look in a picture."""

    sketch: sketches.Sketch
    year: str
    """The school year, as MM_Math names it."""
    knowledge: str
    """The chapter and the section of a school book."""
    questions: tuple[str, ...]
    """Templates over {A} {B} {C} {D}, without a number."""


MARKED = "Find the size of the angle marked ? in the figure, in degrees."
AREA = "Use the measurements in the figure to find the area, in square centimetres."
KINDS: dict[str, Kind] = {
    # Angles that fill a triangle, a line or a full turn.
    "third_angle": Kind(
        sketches.third_angle,
        year="seven",
        knowledge="Triangles>Angle sum of a triangle",
        questions=("In triangle {A}{B}{C} in the figure, find angle {C} in degrees.", MARKED),
    ),
    "line_three": Kind(
        sketches.line_three,
        year="seven",
        knowledge="Lines and angles>Angles on a straight line",
        questions=("In the figure, {A}, {C} and {B} lie on a straight line. " + MARKED, MARKED),
    ),
    "round_point": Kind(
        sketches.round_point,
        year="seven",
        knowledge="Lines and angles>Angles round a point",
        questions=(
            "Four rays start from one point, as shown. " + MARKED,
            "How many degrees is the angle marked ? in the figure?",
        ),
    ),
    # What is marked on a triangle, at parallels and in circles.
    "isosceles_apex": Kind(
        sketches.isosceles_apex,
        year="eight",
        knowledge="Triangles>Isosceles triangles",
        questions=(
            "In the figure, {A}{B} = {A}{C}. Find angle {A} in degrees.",
            "The marked sides of the triangle in the figure are equal. " + MARKED,
        ),
    ),
    "exterior_angle": Kind(
        sketches.exterior_angle,
        year="eight",
        knowledge="Triangles>Exterior angles",
        questions=(
            "In the figure, {D} lies on the extension of {B}{C}. Find angle {A}{C}{D} in degrees.",
            MARKED,
        ),
    ),
    "cointerior": Kind(
        sketches.cointerior,
        year="seven",
        knowledge="Lines and angles>Parallel lines",
        questions=(
            "In the figure, {A}{B} is parallel to {C}{D}. " + MARKED,
            "The lines with arrows in the figure are parallel. " + MARKED,
        ),
    ),
    "semicircle": Kind(
        sketches.semicircle,
        year="nine",
        knowledge="Circles>Angle in a semicircle",
        questions=(
            (
                "In the figure, {A}{B} is a diameter of the circle with centre O. "
                "Find angle {B} of triangle {A}{B}{C} in degrees."
            ),
        ),
    ),
    "central_angle": Kind(
        sketches.central_angle,
        year="nine",
        knowledge="Circles>Inscribed and central angles",
        questions=(
            "In the figure, {A}, {B} and {C} lie on the circle with centre O. Find angle {A}O{B} in degrees.",
        ),
    ),
    # Lengths and areas. A caption in the figure says what is asked for.
    "rectangle_perimeter": Kind(
        sketches.rectangle_perimeter,
        year="seven",
        knowledge="Quadrilaterals>Perimeter of a rectangle",
        questions=(
            "Find the perimeter of rectangle {A}{B}{C}{D} in the figure, in centimetres.",
            "How many centimetres is it round the rectangle in the figure?",
        ),
    ),
    "rectangle_area": Kind(
        sketches.rectangle_area,
        year="seven",
        knowledge="Quadrilaterals>Area of a rectangle",
        questions=("What is the area of the rectangle in the figure, in square centimetres?", AREA),
    ),
    "triangle_area": Kind(
        sketches.triangle_area,
        year="seven",
        knowledge="Triangles>Area of a triangle",
        questions=("What is the area of triangle {A}{B}{C} in the figure, in square centimetres?", AREA),
    ),
    "trapezoid_area": Kind(
        sketches.trapezoid_area,
        year="eight",
        knowledge="Quadrilaterals>Area of a trapezoid",
        questions=(
            (
                "In trapezoid {A}{B}{C}{D} in the figure, {A}{B} is parallel to {C}{D}. "
                "Find its area in square centimetres."
            ),
            AREA,
        ),
    ),
    "hypotenuse": Kind(
        sketches.hypotenuse,
        year="eight",
        knowledge="Triangles>Pythagorean theorem",
        questions=(
            (
                "In the figure, find {A}{B} in centimetres. "
                "Give the exact value, as a root where it is not a whole number."
            ),
        ),
    ),
    "similar": Kind(
        sketches.similar,
        year="nine",
        knowledge="Triangles>Similar triangles",
        questions=(
            "Triangles {A}{B}{C} and {A}'{B}'{C}' in the figure are similar. Find {B}'{C}' in centimetres.",
            "The two triangles in the figure are similar. Find the side marked ?, in centimetres.",
        ),
    ),
    "circle_area": Kind(
        sketches.circle_area,
        year="nine",
        knowledge="Circles>Area of a circle",
        questions=(
            (
                "In the figure, {A}{B} is a diameter of the circle. "
                "Find the area of the circle in square centimetres, as a multiple of π."
            ),
        ),
    ),
    # Held out of training.
    "quadrilateral": Kind(
        sketches.quadrilateral_angle,
        year="eight",
        knowledge="Quadrilaterals>Angle sum of a quadrilateral",
        questions=("Find the interior angle of quadrilateral {A}{B}{C}{D} at {D}, in degrees.", MARKED),
    ),
    "right_triangle_angle": Kind(
        sketches.right_triangle_angle,
        year="seven",
        knowledge="Triangles>Right triangles",
        questions=("In right triangle {A}{B}{C} in the figure, find angle {B} in degrees.", MARKED),
    ),
    "cyclic_quadrilateral": Kind(
        sketches.cyclic_quadrilateral,
        year="nine",
        knowledge="Circles>Cyclic quadrilaterals",
        questions=(
            (
                "In the figure, {A}, {B}, {C} and {D} lie on a circle. "
                "Find angle {C} of quadrilateral {A}{B}{C}{D} in degrees."
            ),
        ),
    ),
    "parallelogram_area": Kind(
        sketches.parallelogram_area,
        year="eight",
        knowledge="Quadrilaterals>Area of a parallelogram",
        questions=(
            "What is the area of parallelogram {A}{B}{C}{D} in the figure, in square centimetres?",
            AREA,
        ),
    ),
    "isosceles_perimeter": Kind(
        sketches.isosceles_perimeter,
        year="eight",
        knowledge="Triangles>Isosceles triangles",
        questions=(
            "The marked sides of the triangle in the figure are equal. Find its perimeter in centimetres.",
        ),
    ),
    "cuboid_volume": Kind(
        sketches.cuboid_volume,
        year="nine",
        knowledge="Solids>Volume of a cuboid",
        questions=("What is the volume of the cuboid in the figure, in cubic centimetres?",),
    ),
}
