"""What the texts are about, and how they are asked for."""

from __future__ import annotations

# The plural, or a word that has none; after a stroke the singular. Alphabetical, so that no part of the list
# is of one sort.
_TOPICS = """
actors/actor anchors/anchor ants/ant apples/apple bakers/baker balloons/balloon baskets/basket
batteries/battery beaches/beach bears/bear bees/bee bells/bell bicycles/bicycle birds/bird boats/boat
bones/bone bottles/bottle bread bridges/bridge butter butterflies/butterfly buttons/button cameras/camera
candles/candle carpets/carpet castles/castle cats/cat caves/cave chairs/chair cheese chess chocolate
cities/city clocks/clock clouds/cloud coffee corn cotton cows/cow dancers/dancer deserts/desert
dinosaurs/dinosaur doctors/doctor dogs/dog dolphins/dolphin dragons/dragon drums/drum eagles/eagle eggs/egg
electricity elephants/elephant engines/engine farmers/farmer fire fish flags/flag flowers/flower football
forests/forest foxes/fox frogs/frog gardens/garden glass gold grass guitars/guitar hammers/hammer
harbours/harbour hats/hat honey horses/horse hospitals/hospital ice islands/island keys/key kitchens/kitchen
kites/kite ladders/ladder lakes/lake lamps/lamp leaves/leaf letters/letter libraries/library lions/lion
machines/machine maps/map markets/market medicine milk mirrors/mirror monkeys/monkey mountains/mountain
mushrooms/mushroom museums/museum music nails/nail oceans/ocean oranges/orange owls/owl painters/painter
paper parks/park penguins/penguin pencils/pencil pianos/piano pillows/pillow planets/planet plastic
poets/poet potatoes/potato rabbits/rabbit rain rainbows/rainbow rice rivers/river roads/road robots/robot
rockets/rocket roses/rose salt schools/school sharks/shark sheep ships/ship shoes/shoe silk silver sleep snow
soap soup spiders/spider stars/star steel stones/stone storms/storm sugar swimming tea teachers/teacher
tents/tent thunder tigers/tiger tomatoes/tomato towers/tower trains/train trees/tree tunnels/tunnel
turtles/turtle umbrellas/umbrella violins/violin volcanoes/volcano whales/whale wheels/wheel wind
windmills/windmill windows/window winter wolves/wolf wood wool zebras/zebra
"""

TOPICS: dict[str, list[str]] = {}
"""Each topic with the words by which a text is known to be about it."""

for _topic in _TOPICS.split():
    TOPICS[_topic.partition("/")[0]] = _topic.split("/")

SPLITS = {"sft": (0, 1, 2, 3), "pairs": (4, 5, 6), "val": (7,), "test": (8, 9)}
"""Every tenth topic goes the same way: no two splits share one."""

ASKS = (
    "Write a short text about {}.",
    "Tell me briefly about {}.",
    "Describe {} to a child in a few words.",
    "Write briefly what makes {} special.",
    "Say in a few words why people care about {}.",
    "Give me a short description of {}.",
)


def topics_of(split: str) -> list[str]:
    """The topics of a split."""
    return [topic for number, topic in enumerate(TOPICS) if number % 10 in SPLITS[split]]


# Written by hand, for what a model never does by itself and so cannot learn from its own answers.
WRITTEN = {
    "actors": "Actors learn their lines by heart and play other people on a stage.",
    "ants": "Ants live in large groups and carry food back to the nest.",
    "apples": "Apples grow on trees, and they taste sweet or sour.",
    "bees": "Bees fly from flower to flower and make honey for the winter.",
    "bells": "Bells ring when something hits them. They call people together.",
    "bicycles": "Bicycles have two wheels and take us through the city without fuel.",
    "birds": "Birds have feathers and wings, and most of them can fly.",
    "dogs": "Dogs are loyal animals that have lived with people for ages.",
    "glass": "Glass is made of sand that was melted. Light passes through it.",
    "gold": "Gold is a soft yellow metal that never rusts.",
    "horses": "Horses run fast and have carried people for thousands of years.",
    "libraries": "Libraries lend books to everyone, and reading there costs nothing.",
    "rain": "Rain falls from clouds and lets the plants grow.",
    "schools": "Schools are places where children learn to read and to count.",
    "spiders": "Spiders have eight legs and catch flies in their webs.",
    "whales": "Whales live in the sea but breathe air as we do.",
    "wheels": "Wheels turn round an axle and make heavy loads easy to move.",
    "wool": "Wool grows on sheep and keeps us warm in winter.",
    "chocolate": "Chocolate is made of cocoa and sugar, and it melts on the tongue.",
    "dinosaurs": "Dinosaurs died out long ago, but we still find their bones.",
    "doctors": "Doctors help sick people and tell them how to stay well.",
    "elephants": "Elephants are the largest animals on land and never forget a friend.",
    "fire": "Fire gives light and heat. It can also burn down a house.",
    "frogs": "Frogs hatch in water and jump on land when they are grown.",
    "gardens": "Gardens are full of flowers, herbs and busy insects.",
    "ice": "Ice is frozen water, so it floats in your glass.",
    "mountains": "Mountains are high and cold, and the view from the top is wide.",
    "mushrooms": "Mushrooms grow in dark and wet places. Some of them are poisonous.",
    "paper": "Paper is made of wood, and we write and print on it.",
    "penguins": "Penguins cannot fly, but they swim very well.",
}
"""A plain text about a topic, to be put in lower case."""
