"""What the traveller and the characters can say: templates, one set per voice.

`{goal}`, `{gift}`, `{place}`, `{role}` and `{name}` belong to the scene and are the same wherever they appear in it;
`{animal}`, `{friend}` (an animal too), `{number}` and `{coin}` are drawn anew for every line. `{a_goal}` is the slot
with its article.

A character speaks twice: first about the treasure, then about the gift, and this second line accepts or refuses it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

PROMPT = "{weather} the {place}. Here the traveller meets {name}, {a_mood} {role}, and seeks {a_goal}."

GREETINGS = (
    "Hail, {name}. I seek {a_goal}.",
    "Well met, {name}. My quest needs {a_goal}.",
    "Good day, {name}. They say that you keep {a_goal}.",
    "Forgive me, {name}. Without {a_goal} my quest is over.",
    "Dear {name}, a queen has sent me for {a_goal}.",
    "Greetings, {name}. A wise {animal} told me to find {a_goal}.",
    "Excuse me, {name}. My grandmother has lost {a_goal}.",
    "Hello, {name}. I dreamed of {a_goal} and {a_animal}.",
)

OFFERS = (
    "I can give you {a_gift}.",
    "Would you take {a_gift} for the {goal}?",
    "All I have is {a_gift}.",
    "My offer is {a_gift}, and that is final.",
    "I carried {a_gift} over three mountains for you.",
    "Here is {a_gift}, freshly stolen.",
    "Look, I brought {a_gift} and a brave smile.",
    "I won {a_gift} from {a_animal}, and now it is yours.",
)

WINS = (
    "So the traveller leaves the {place} with the {goal}, and {name} {tail}.",
    "So the traveller carries the {goal} home on {a_animal}, and {name} {tail}.",
    "So the traveller runs off with the {goal}, and {name} {tail}.",
)
WIN_TAILS = (
    "hugs the {gift}",
    "shares the {gift} with {a_friend}",
    "hides the {gift} under a pillow",
    "waves a very small flag",
    "writes a song about the {gift}",
    "names the {gift} after a cousin",
    "teaches the {gift} to {a_friend}",
    "locks up the {gift} and swallows the key",
)

LOSSES = (
    "So the traveller leaves the {place} without the {goal}, and {name} {tail}.",
    "So the traveller trips over {a_animal} and never gets the {goal}, and {name} {tail}.",
    "So the traveller keeps the {gift} and forgets the {goal}, and {name} {tail}.",
)
LOSS_TAILS = (
    "locks the door twice",
    "blames {a_friend}",
    "laughs until the windows shake",
    "charges for the visit",
    "feels bad until supper",
    "starts to hum",
    "polishes the {goal}",
    "warns the {friend} next door",
)

OPENERS = {
    "grumpy": ("Not another hero.", "Wipe your feet.", "What now?", "Go away."),
    "cheerful": ("Oh, how lovely!", "A guest at last!", "Come in, come in!", "What a day!"),
    "sleepy": ("Is it morning yet?", "Please whisper.", "I was having such a nap.", "Five more minutes."),
    "nervous": ("Who sent you?", "Do not look behind you.", "Oh dear, oh dear.", "Was that a noise?"),
    "pompous": ("You may bow.", "I expected someone taller.", "Do you know who I am?", "Speak briefly."),
}


@dataclass(frozen=True)
class Voice:
    """How a character talks: lines about the treasure, lines that accept or refuse the gift, and what gives it away."""

    name: str
    about: tuple[str, ...]
    accepts: tuple[str, ...]
    refuses: tuple[str, ...]
    marker: Callable[[str], bool]


def _matches(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda line: compiled.search(line) is not None


BASE = Voice(
    name="base",
    about=(  # an opener that fits the character's mood comes before each
        "The last hero who touched the {goal} turned into {a_animal}.",
        "I keep the {goal} under my bed, next to {a_animal}.",
        "The {goal} is guarded by {a_animal} with a long memory.",
        "I won the {goal} from {a_animal} at cards.",
        "The {goal} belongs to my mother, and she has {a_animal}.",
        "I am {a_role}, and the {goal} is all I have.",
        "Nobody leaves the {place} with the {goal} and both eyebrows.",
        "Every {role} in the land wants the {goal}.",
        "My {animal} is in love with the {goal}.",
        "I traded {a_animal} for the {goal}, and I regret nothing.",
        "The {goal} has been sulking since Tuesday.",
        "The {goal} only comes out of its box for gossip.",
    ),
    accepts=(
        "Is that real {gift}? Then the {goal} is yours.",
        "Nobody ever gave me {gift} before. Take the {goal}.",
        "I would sell my own mother for {gift}. Take the {goal}.",
        "With such {gift} I can finally bribe the {animal}. The {goal} is yours.",
        "My {animal} dreams of {gift}. You may have the {goal}.",
        "We have a bargain. Leave the {gift} and take the {goal}.",
        "Put the {gift} by the {animal}. You may have the {goal}.",
        "I smell {gift}, and I am weak. The {goal} is yours.",
    ),
    refuses=(
        "My doctor has forbidden {gift}. The {goal} stays here.",
        "I already bathe in {gift}. Hands off the {goal}.",
        "Do I look like someone who needs {gift}? The {goal} stays here.",
        "The {animal} is allergic to {gift}. No {goal} for you.",
        "Only {a_animal} would swap the {goal} for {gift}. Good night.",
        "There is enough {gift} in the {place}. Hands off the {goal}.",
        "I asked for gold, not for {gift}. No {goal} for you.",
        "Last week {a_animal} offered me twice as much {gift}. Good night.",
    ),
    marker=lambda line: False,
)

PIRATE = Voice(
    name="pirate",
    about=(
        "Arr! The last swab who touched the {goal} be {a_animal} now.",
        "Ahoy, matey! I won the {goal} from {a_animal} at dice.",
        "Avast! The {goal} be buried under me bunk, so keep yer hooks off.",
        "Shiver me timbers! Ye be the ninth landlubber to want the {goal}.",
        "Yo ho ho! Me {animal} sleeps on the {goal}, and he bites, matey.",
        "Arr! I sailed to the {place} with the {goal} in me boots.",
        "So ye want the {goal}, matey? Me own mother could not have it.",
        "Blow me down! The {goal} be bewitched, and so be me {animal}, matey.",
        "Arr, every {role} on the seven seas wants the {goal}.",
        "Ahoy! Ye can look at the {goal}, but ye can not lick it.",
    ),
    accepts=(
        "Arr! For {gift} I would sink me own ship. The {goal} be yers.",
        "Yo ho ho! Me {animal} be mad for {gift}. Take the {goal}, matey.",
        "Shiver me timbers, real {gift}! The {goal} be yers, ye rascal.",
        "Aye, matey, that be fine {gift}. Grab the {goal} and run.",
        "Arr! No {gift} has passed these lips since the shipwreck. Take the {goal}, matey.",
        "Ahoy! With {gift} I can patch me ship. The {goal} be yers.",
    ),
    refuses=(
        "Arr! Ye call that {gift}? The {goal} stays in me hold.",
        "Avast! Me crew drowned in {gift} last spring. No {goal} for ye, matey.",
        "Yo ho ho! Keep yer {gift}, ye landlubber. The {goal} stays in me hold.",
        "Arr! The {animal} be seasick from {gift}. Walk the plank without the {goal}.",
        "Ye be mad, matey! Me wooden leg be made of {gift}. Hooks off the {goal}.",
        "Arr! I buried better {gift} on a worse island. Hooks off the {goal}, matey.",
    ),
    marker=_matches(r"\b(arr|ye|yer|yers|matey|ahoy|avast|landlubber|shiver me timbers|yo ho ho)\b"),
)

# The second half of a couplet ends on the rhyme, so the two words are the template's: a rhyme is never left to luck.
BARD = Voice(
    name="bard",
    about=(
        "You came for the {goal}, so bold and bright, / but it snores and kicks through the whole long night.",
        "The {goal} is hidden beneath my stair, / and guarding it is {a_animal} with purple hair.",
        "I sang to the {goal} and it sang to me, / and now we have supper each day at three.",
        "So many have wanted the {goal} before, / and most of them still are asleep on the floor.",
        "They sing of the {goal} in every town, / and each time they sing it, a roof falls down.",
        "Long ago, the {goal} belonged to a king, / who swapped it one day for {a_animal} on a string.",
        "My {animal} adores the {goal}, you know, / and bites any hero who asks it to go.",
        "Come not for the {goal} with sword in hand, / for it is the sulkiest thing in the land.",
        "Beware of the {goal}, I say it again, / it turned seven giants into one small hen.",
        "Here in the {place}, as the old songs say, / the {goal} tells jokes to {a_animal} all day.",
        "A lonely {role} has one treasure to keep, / and I hum to the {goal} till we both fall asleep.",
        "I wrote for the {goal} a song with a kiss, / but it listened, and yawned, and gave only a hiss.",
    ),
    accepts=(
        "Sweet traveller, {gift} is my heart's delight, / so carry the {goal} away tonight.",
        "For {gift} like this I would dance in the rain, / so have the {goal} and never complain.",
        "My {animal} wept for some {gift} last year, / so the {goal} is yours, and I give it with cheer.",
        "Your {gift} has melted my heart of stone, / so keep the {goal} for your very own.",
        "With {gift} in my kettle my verses will flow, / so pick up the {goal} and merrily go.",
        "Oh {gift}, oh {gift}, my long-lost friend, / the {goal} is yours till the very end.",
        "You offer me {gift}, and I answer with glee, / the {goal} may go where it wants to be.",
    ),
    refuses=(
        "This {gift} is fine, but it makes me sneeze, / so leave the {goal} alone, if you please.",
        "I once wrote an ode about {gift} and lost, / so the {goal} stays here, whatever the cost.",
        "No {gift} shall buy what a bard holds dear, / the {goal} will stay with the {animal} here.",
        "Even {a_animal} laughed at your {gift} and fled, / so the {goal} remains beneath my bed.",
        "You bring only {gift} to a bard of my fame, / so the {goal} stays put, and yours is the shame.",
        "The last one with {gift} was chased up a tree, / for nobody parts the {goal} from me.",
        "Alas, there is {gift} all over my floor, / so drop the {goal} and close the door.",
    ),
    marker=lambda line: has_true_rhyme(line),
)

ROBOT = Voice(
    name="robot",
    about=(
        "Beep. Query: {goal}. Status: restricted.",
        "Query: {goal}. Location: {place}. Access: pending.",
        "Scan complete. Item: {goal}. Guard: {animal}.",
        "Item: {goal}. Condition: fragile. Hands: wash first.",
        "Alert. Item: {goal}. Previous user: now {a_animal}.",
        "Query: {goal}. Result: one match. Owner: this unit.",
        "Hero detected. Target: {goal}. Odds: poor.",
        "Unit: {role}. Item: {goal}. Sharing: disabled.",
        "Warning. Item: {goal}. Known problem: it bites.",
        "Beep. Target: {goal}. Fun: not found.",
    ),
    accepts=(
        "Payment: {gift}. Quality: acceptable. Release: {goal}.",
        "Input: {gift}. Sensors: delighted. Output: {goal}.",
        "Payment: {gift}. Trade: approved. Release: {goal}.",
        "Beep. Input: {gift}. Virus scan: clean. Output: {goal}.",
        "Input: {gift}. Joy level: nine. Release: {goal}.",
        "Payment: {gift}. Loading smile. Output: {goal}.",
    ),
    refuses=(
        "Payment: {gift}. Error: not a battery. Keep: {goal}.",
        "Input: {gift}. Sensors: offended. Keep: {goal}.",
        "Payment: {gift}. Trade: rejected. Locked: {goal}.",
        "Beep. Input: {gift}. Unit: now sticky. Locked: {goal}.",
        "Payment: {gift}. Backup: already full. Keep: {goal}.",
        "Input: {gift}. Joy level: zero. Locked: {goal}.",
    ),
    marker=lambda line: len(re.findall(r"\b[A-Z][a-z ]*: ", line)) >= 2,
)

MERCHANT = Voice(
    name="merchant",
    about=(
        "For you, the {goal} costs only {number} {coin}.",
        "Special price today! The {goal} for {number} {coin}, wrapping included.",
        "Looking at the {goal} costs {number} {coin}, and touching it costs more.",
        "Ah, the {goal}! I paid {number} {coin} and {a_animal} for it.",
        "I rent out the {goal} for {number} {coin} an hour, with {a_animal}.",
        "The {goal} is {number} {coin}, and the {animal} comes free.",
        "Other shops want {number} {coin} for the {goal}, and theirs bite.",
        "Buy the {goal} for {number} {coin} and get half of {a_animal}.",
        "In the {place} we sell the {goal} for {number} {coin}, no returns.",
        "As {a_role} I earn nothing, so the {goal} is {number} {coin}.",
    ),
    accepts=(
        "Your {gift} is worth {number} {coin}. Take the {goal}.",
        "Sold! The {goal} for the {gift}, plus {number} {coin} for the bag.",
        "I can sell this {gift} for {number} {coin} to {a_animal}. Take the {goal}.",
        "The {gift} will do, and here are {number} {coin} back. Enjoy the {goal}.",
        "Deal! I book the {gift} at {number} {coin}. Enjoy the {goal}.",
        "For such {gift} I knock off {number} {coin}. The {goal} is yours.",
    ),
    refuses=(
        "I sell {gift} myself for {number} {coin}. The {goal} stays on the shelf.",
        "No deal! Storing the {gift} would cost me {number} {coin}. I keep the {goal}.",
        "The {animal} next door sells {gift} for {number} {coin}. No {goal} today.",
        "Your {gift} is {number} {coin} short of the {goal}. Good day.",
        "Even {a_animal} would pay {number} {coin} and not {gift}. I keep the {goal}.",
        "I refuse the {gift}, and refusing costs {number} {coin}. No {goal} today.",
    ),
    marker=_matches(r"\b\d+ (copper bits|gold ducats|brass farthings|tin groats|shiny shillings|silver pennies)\b"),
)

VOICES = {voice.name: voice for voice in (PIRATE, BARD, ROBOT, MERCHANT)}

# Written by hand and apart from the couplets: which words sound alike from their last stressed vowel on.
RHYMES = (
    {"bright", "night", "delight", "tonight"},
    {"stair", "hair"},
    {"me", "three", "glee", "be", "tree"},
    {"before", "floor", "door"},
    {"town", "down"},
    {"king", "string"},
    {"know", "go", "flow"},
    {"hand", "land"},
    {"again", "hen"},
    {"say", "day"},
    {"keep", "asleep"},
    {"kiss", "hiss"},
    {"rain", "complain"},
    {"year", "cheer", "dear", "here"},
    {"stone", "own"},
    {"friend", "end"},
    {"sneeze", "please"},
    {"lost", "cost"},
    {"fled", "bed"},
    {"fame", "shame"},
)


def has_true_rhyme(line: str) -> bool:
    """Does the line hold a couplet whose halves end in two different words that rhyme?"""
    halves = line.split(" / ")
    if len(halves) != 2:
        return False
    first, second = (re.sub(r"[^a-z-]", "", half.split()[-1].lower()) if half.split() else "" for half in halves)
    return first != second and any(first in sounds and second in sounds for sounds in RHYMES)
