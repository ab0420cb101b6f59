"""The 80 object classes of COCO with words that captions use for them, and words that belong together.

The table is this package's own. Numbers that are to be compared with published ones need the published table: every
function of :mod:`paperhooks_hallucination.chair.metrics` takes another one.
"""

from __future__ import annotations

from typing import Final

__all__ = ["COCO_OBJECTS", "DOUBLE_WORDS"]


def _rows(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word.strip() for word in line.split(",")) for line in text.strip().splitlines())


#: One row a class, in COCO's order; the first word is COCO's name, the others mean the same in captions (lemmas).
COCO_OBJECTS: Final = _rows(
    """
    person, man, woman, child, boy, girl, kid, baby, toddler, infant, people, adult, teenager, lady, gentleman, guy, \
men, women, children, pedestrian, player, rider, surfer, skier, skater, snowboarder, skateboarder, cyclist, biker, \
swimmer, athlete, batter, pitcher, catcher, umpire, referee, passenger, driver, worker, chef, cook, waiter, waitress, \
policeman, policewoman, officer, firefighter, soldier, student, teacher, doctor, nurse, farmer, tourist, traveler, \
shopper, customer, bride, groom, mother, father, mom, dad, brother, sister, daughter, grandmother, grandfather, \
spectator, human, individual
    bicycle, bike, tricycle, tandem
    car, automobile, sedan, taxi, cab, suv, van, minivan, jeep, hatchback, convertible, limousine
    motorcycle, motorbike, scooter, moped, dirt bike, motor bike, motor cycle
    airplane, aeroplane, plane, aircraft, jet, airliner, jetliner, biplane, seaplane, air plane
    bus, minibus, trolleybus
    train, locomotive, tram, streetcar
    truck, lorry, pickup, firetruck
    boat, ship, sailboat, canoe, kayak, yacht, ferry, rowboat, dinghy, raft, gondola, speedboat, motorboat, barge
    traffic light, traffic signal, stoplight, stop light, streetlight, street light
    fire hydrant, hydrant
    stop sign
    parking meter
    bench, pew
    bird, duck, goose, seagull, gull, pigeon, parrot, owl, eagle, hawk, swan, sparrow, crow, robin, heron, pelican, \
peacock, penguin, flamingo, rooster, hen, ostrich, finch, hummingbird, parakeet, duckling
    cat, kitten, kitty, feline, tabby
    dog, puppy, pup, canine, poodle, terrier, bulldog, labrador, retriever, collie, dachshund, husky, hound, beagle, \
doggy, doggie, chihuahua, pug, corgi
    horse, pony, foal, colt, mare, stallion
    sheep, lamb, ram, ewe
    cow, cattle, bull, calf, ox, oxen, buffalo, bison, heifer
    elephant
    bear, panda, grizzly, polar bear
    zebra
    giraffe
    backpack, rucksack, knapsack
    umbrella, parasol
    handbag, purse, briefcase
    tie, necktie, bow tie, bowtie
    suitcase, suit case, luggage, baggage
    frisbee
    skis, ski
    snowboard
    sports ball, ball, soccer ball, tennis ball
    kite
    baseball bat
    baseball glove, mitt
    skateboard
    surfboard, longboard, bodyboard, paddleboard
    tennis racket, racket, racquet, tennis racquet
    bottle
    wine glass, goblet, wineglass
    cup, mug, teacup
    fork
    knife, butter knife, steak knife
    spoon, teaspoon, tablespoon, ladle
    bowl
    banana, plantain
    apple
    sandwich, burger, hamburger, cheeseburger, panini
    orange, tangerine, mandarin, clementine
    broccoli
    carrot
    hot dog, hotdog
    pizza
    donut, doughnut
    cake, cupcake, cheesecake
    chair, seat, stool, armchair
    couch, sofa, loveseat, futon, settee
    potted plant, houseplant, house plant
    bed
    dining table, table, desk
    toilet, urinal, commode
    tv, television, monitor, tv screen
    laptop, computer, notebook, laptop computer, macbook
    mouse
    remote, remote control
    keyboard
    cell phone, mobile phone, phone, cellphone, smartphone, telephone, iphone
    microwave
    oven, stove, stovetop
    toaster
    sink, washbasin
    refrigerator, fridge, freezer
    book, novel, textbook
    clock
    vase
    scissors
    teddy bear, teddy
    hair drier, hair dryer, hairdryer, blow dryer
    toothbrush
    """
)

_KEPT = (
    *("motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light"),
    *("fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
    *("potted plant", "laptop computer", "stove top oven", "home plate", "train track"),
)
_ANIMALS = (
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    *("animal", "cub"),
)

#: Adjacent lemmas that are one word, and the word they become (CHAIR's rules). "baby" and "adult" in front of an animal
#: and "passenger" in front of a vehicle would otherwise name a person, a bow alone no tie; "glas" is what a lemmatiser
#: makes of "glass". The entry of three words is the script's too, which looks at pairs and never finds it.
DOUBLE_WORDS: Final[dict[str, str]] = (
    {words: words for words in _KEPT}
    | {f"{age} {animal}": animal for animal in _ANIMALS for age in ("baby", "adult")}
    | {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
)
