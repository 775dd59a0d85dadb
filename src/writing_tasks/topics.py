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


# Written by hand, for what a model hardly ever does by itself and so cannot learn from its own answers.
WRITTEN = {
    "actors": ("Actors learn their lines by heart.", "They play other people on a stage."),
    "ants": ("Ants live in large groups.", "They carry food back to the nest."),
    "apples": ("Apples grow on trees.", "Some of them are sweet and some are sour."),
    "bees": ("Bees fly from flower to flower.", "They make honey for the winter."),
    "bells": ("Bells ring when something hits them.", "They call people together."),
    "bicycles": ("Bicycles have two wheels.", "They take us through the city without fuel."),
    "chocolate": ("Chocolate is made of cocoa and sugar.", "It melts on the tongue."),
    "dinosaurs": ("Dinosaurs died out long ago.", "We still find their bones in the ground."),
    "doctors": ("Doctors help sick people.", "They tell us how to stay well."),
    "dogs": ("Dogs are loyal animals.", "They have lived with people for ages."),
    "elephants": ("Elephants are the largest animals on land.", "They drink with their trunks."),
    "fire": ("Fire gives light and heat.", "It can also burn down a house."),
    "frogs": ("Frogs hatch in water.", "They jump on land when they are grown."),
    "gardens": ("Gardens are full of flowers.", "Many insects live there too."),
    "glass": ("Glass is made of sand that was melted.", "Light passes through it."),
    "gold": ("Gold is a soft yellow metal.", "It never rusts."),
    "horses": ("Horses run fast.", "They have carried people for thousands of years."),
    "ice": ("Ice is frozen water.", "It floats in a glass."),
    "libraries": ("Libraries lend books to everyone.", "Reading there costs nothing."),
    "mountains": ("Mountains are high and cold.", "The view from the top is wide."),
    "mushrooms": ("Mushrooms grow in dark and wet places.", "Some of them are poisonous."),
    "paper": ("Paper is made of wood.", "We write and print on it."),
    "penguins": ("Penguins cannot fly.", "They swim very well."),
    "rain": ("Rain falls from clouds.", "It lets the plants grow."),
    "schools": ("Schools are places to learn.", "Children read and count there."),
    "spiders": ("Spiders have eight legs.", "They catch flies in their webs."),
    "stars": ("Stars are very far away.", "We see them at night."),
    "whales": ("Whales live in the sea.", "They breathe air as we do."),
    "wheels": ("Wheels turn round an axle.", "They make heavy loads easy to move."),
    "wool": ("Wool grows on sheep.", "It keeps us warm in winter."),
}
"""Two plain sentences about a topic of the split `sft`."""
