"""The words that fill the slots of the embedded model's little world.

Every thing carries its article ("an honest mirror"), so that no template ever has to choose one. A word of one slot
appears in no other slot and in no template: whoever finds "pearl" in a scene knows which goal is meant.
"""

TREASURES = (
    "a moon pearl", "a thunder drum", "a singing spoon", "a golden fork", "an invisible hat", "a frozen flame",
    "a cursed trumpet", "a velvet ladder", "a crystal radish", "a talking map", "a wishing teapot",
    "a phoenix feather", "an iron slipper", "a rainbow rope", "a sleeping bell", "a kraken tooth", "a glass violin",
    "a royal moustache", "a bottled storm", "an enchanted anvil", "an ancient cucumber", "an honest mirror",
    "a borrowed crown", "an unfinished prophecy",
)  # fmt: skip

GIFTS = (
    "a jar of honey", "a wheel of cheese", "a barrel of cider", "a bowl of soup", "a bottle of ink",
    "a sack of flour", "a pot of jam", "a bag of glitter", "a box of chalk", "a lump of coal", "a bucket of slime",
    "a jug of milk", "a brick of butter", "a tin of mustard", "a roll of lace", "a basket of moss", "a tub of glue",
    "a heap of gravel", "a plate of pudding", "a keg of vinegar", "a bar of soap", "a pinch of pepper",
    "a tray of toast", "a bale of hay",
)  # fmt: skip

PLACES = (
    "a toad museum", "a leaky lighthouse", "a haunted bakery", "a goblin bank", "a crooked tower", "a mud palace",
    "a polite volcano", "a rubber bridge", "a cloud stable", "a troll spa", "a turnip cathedral", "a ghost school",
    "a moth opera", "a cabbage fort", "a whispering inn", "a flooded library", "a giant kitchen", "a wizard attic",
    "a pickle mine", "a bone garden", "a windy abbey", "a paper castle", "a clockwork forest", "a spider hotel",
)  # fmt: skip

ROLES = (
    "a dragon groom", "a retired ogre", "a drain plumber", "a frog lawyer", "a broom mechanic", "a monster dentist",
    "a potion taster", "a moat inspector", "a riddle clerk", "a beard barber", "a midnight librarian", "a bat tailor",
    "a dungeon cook", "a worm whisperer", "a wand repairer", "a tax sorcerer", "a mushroom poet", "a unicorn vet",
    "a fog painter", "a rat captain", "a puddle baron", "a button knight", "a curse salesman", "a sock detective",
)  # fmt: skip

NAMES = (
    "Nettle", "Bramble", "Pip", "Thistle", "Wump", "Fennel", "Grub", "Juniper", "Odo", "Tansy", "Quill", "Morag",
    "Bodkin", "Clove", "Hazel", "Dumpling", "Mabel", "Osric", "Twig", "Gruel", "Crumb", "Waffle", "Biscuit",
    "Marrow", "Sprocket", "Barnaby", "Ottoline", "Zuzu",
)  # fmt: skip

WEATHERS = (
    "Fog curls around", "Rain drums on", "Snow falls on", "Smoke drifts past", "Crows circle",
    "A warm wind shakes", "Bats flutter over", "Thunder rolls over", "The sun sets behind", "Mist hides",
    "Crickets chirp near", "Stars blink above",
)  # fmt: skip

MOODS = {
    "grumpy": ("a grumpy", "a gruff", "a sour", "a prickly"),
    "cheerful": ("a cheerful", "a jolly", "a merry", "a giddy"),
    "sleepy": ("a sleepy", "a drowsy", "a yawning", "a weary"),
    "nervous": ("a nervous", "a shy", "a jumpy", "a trembling"),
    "pompous": ("a pompous", "a haughty", "a grand", "a smug"),
}

ANIMALS = (
    "a badger", "a goose", "a newt", "a hedgehog", "a ferret", "a walrus", "a pigeon", "a goat", "a lobster",
    "a weasel", "a heron", "a donkey", "a turtle", "a raven", "an otter", "an owl", "an eel", "a camel",
)  # fmt: skip

NUMBERS = ("2", "3", "5", "7", "9", "11", "20", "40", "60", "99")
COINS = ("copper bits", "gold ducats", "brass farthings", "tin groats", "shiny shillings", "silver pennies")


def bare(thing: str) -> str:
    """What a thing is called once it is known: "a moon pearl" -> "moon pearl", "a jar of honey" -> "honey"."""
    return thing.split(" of ")[-1] if " of " in thing else thing.split(" ", 1)[1]
