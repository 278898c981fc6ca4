"""The situations that some engine once got wrong, each a function that adds its steps to a sequence.

Each goes on from the steps so far, and ends with the request that would show the bug it is about.
"""

from .scenario_builder import Choices, ScenarioBuilder

SIDE_BY_SIDE = 4  # tokens that one adapter and the base produce in the same steps: engines may take them for it alone


def in_place(builder: ScenarioBuilder, choices: Choices) -> None:
    """A name gets other weights while it is in use: the same prompt again must show them."""
    name, prompt = builder.name(choices), builder.prompt(choices)
    builder.run(builder.request(name, prompt))
    builder.load(name, choices)
    builder.run(builder.request(name, prompt, SIDE_BY_SIDE), builder.request(None, prompt, SIDE_BY_SIDE))


def name_reused(builder: ScenarioBuilder, choices: Choices) -> None:
    """A name is forgotten, and is used again for other weights."""
    name, prompt = builder.name(choices), builder.prompt(choices)
    builder.run(builder.request(name, prompt))
    builder.unload(name)
    if choices.below(2):
        builder.run(builder.request(None, prompt))
    builder.load(name, choices)
    builder.run(builder.request(name, prompt, SIDE_BY_SIDE), builder.request(None, prompt, SIDE_BY_SIDE))


def exchanged(builder: ScenarioBuilder, choices: Choices) -> None:
    """Two names exchange their weights: what goes by the name, or by the order of loading, is wrong now."""
    names = [x for x in builder.names(choices, 2) if x is not None]
    prompt = builder.prompt(choices)
    builder.run(*(builder.request(name, prompt) for name in names))
    meant = {name: builder.loaded[name] for name in names}
    same = len(set(meant.values())) < len(names)  # to load what is there already is no exchange
    if same or "reload" not in builder.can or choices.below(2):
        for name in names:
            builder.unload(name)
    for name, other in zip(names, names[::-1], strict=True):
        builder.load_key(name, meant[other])
    builder.run(*(builder.request(name, prompt) for name in names[::-1]))


def leaves(builder: ScenarioBuilder, choices: Choices) -> None:
    """One adapter leaves, another comes under a new name: it gets the id, the slot, the blocks of the first."""
    name, prompt = builder.name(choices), builder.prompt(choices)
    builder.run(builder.request(name, prompt))
    builder.unload(name)
    new = builder.free_name(name)
    if new is not None:
        builder.load(new, choices)
        builder.run(builder.request(new, prompt))
    if new is None or builder.free_name() is not None:
        builder.load(name, choices)
        builder.run(builder.request(name, prompt), builder.request(new, prompt))


def more_than_slots(builder: ScenarioBuilder, choices: Choices) -> None:
    """More adapters than there is room for, asked in turn, and the first again, which was evicted by then."""
    builder.fill(choices)
    names = [list(builder.loaded)[i] for i in choices.order(len(builder.loaded))]
    prompt = builder.prompt(choices)
    for name in names:
        builder.run(builder.request(name, prompt))
    builder.run(builder.request(names[0], prompt, SIDE_BY_SIDE), builder.request(None, prompt, SIDE_BY_SIDE))


def all_at_once(builder: ScenarioBuilder, choices: Choices) -> None:
    """More adapters in one batch than there is room for: some must wait, and nobody may lose the slot that it uses."""
    builder.fill(choices)
    prompt, names = builder.prompt(choices), builder.names(choices, len(builder.loaded))
    builder.run(
        *(builder.request(name, prompt, 2 + choices.below(4), **_arrival(builder, i)) for i, name in enumerate(names))
    )


def same_prompt(builder: ScenarioBuilder, choices: Choices) -> None:
    """The same long prompt for several adapters and the base, one after another, then for the first again. Where
    prefixes are kept, the text that it has by then comes as a prompt: all of it is known, and no token is left."""
    prompt, names = builder.prompt(choices), builder.names(choices, 2)
    new = 1 + choices.below(3)
    for name in (*names, names[0]):
        builder.run(builder.request(name, prompt, new))
    if builder.settings.prefix_caching:
        builder.run(builder.request(names[0], builder.continued(builder.request(names[0], prompt, new))))


def weights(builder: ScenarioBuilder, choices: Choices) -> None:
    """The same prompt for one adapter at several weights, and for a sum in both orders."""
    names, prompt = builder.summable(), builder.prompt(choices)
    if not names:
        return
    name, other = ([names[i] for i in choices.order(len(names))] * 2)[:2]
    mixes: list[tuple[tuple[str, float], ...]] = [((name, 0.5),), ((name, -1.5),), ((name, 1.0),)]
    if name != other:
        mixes += [((name, 0.5), (other, 0.75)), ((other, 0.5), (name, 0.75))]
    for i in choices.order(len(mixes))[: 3 + choices.below(3)]:
        builder.run(builder.request(None, prompt, 1, adapter_weights=mixes[i]))


def fork(builder: ScenarioBuilder, choices: Choices) -> None:
    """Prompts that part at the last token of a block, within one, or after their first tokens, and then agree again,
    or end."""
    name, prompt = builder.name(choices), builder.prompt(choices)
    builder.run(builder.request(name, prompt))
    blocks = len(prompt) // builder.block
    last = builder.block * (1 + choices.below(blocks)) - 1
    within = [builder.block // 2 - 1, builder.block // 2 + 1, 0, 1][choices.below(4)]
    cut = builder.block * (1 + choices.below(blocks)) + within if choices.below(4) else 3
    other = builder.end(choices)
    builder.run(
        builder.request(name, prompt[:last] + other[:1] + prompt[last + 1 :]),
        builder.request(name, prompt[:cut] + other + prompt[cut + len(other) :], 2),
        builder.request(name, prompt[:cut]),
    )
    builder.run(builder.request(name, prompt + other))


def depth(builder: ScenarioBuilder, choices: Choices) -> None:
    """The same tokens at another depth, or after others: their keys and values differ."""
    name, end = builder.name(choices), builder.end(choices)
    adapter, second, third = builder.pieces
    prompts = [second + adapter + end, adapter + adapter + end, adapter + second + end, third + adapter + second + end]
    for i in choices.order(len(prompts))[: 2 + choices.below(2)]:
        builder.run(builder.request(name, prompts[i], 1 + choices.below(2)))


def crowd(builder: ScenarioBuilder, choices: Choices) -> None:
    """Several requests, in any order of arrival; neighbours ask the same, or something that begins alike."""
    names = builder.names(choices, builder.settings.max_adapters)
    prompts = [builder.prompt(choices), builder.prompt(choices), builder.pieces[0][:1]]
    requests = []
    for i in range(3 + choices.below(3)):
        prompt = prompts[choices.below(3)]
        requests.append(
            builder.request(
                names[(i + choices.below(2)) % len(names)],
                prompt,
                1 + choices.below(5),
                **_arrival(builder, choices.below(6)),
            )
        )
    builder.run(*requests)


def cancelled(builder: ScenarioBuilder, choices: Choices) -> None:
    """One is cancelled while others run; whoever comes then gets what it held, and another one asks the same again."""
    names, prompt = builder.names(choices, builder.settings.max_adapters), builder.prompt(choices)
    other = builder.prompt(choices)
    who, neighbour = names[0], names[-1]
    # In chunks a request can be cancelled before its first token: what was begun of it must not be found again.
    after = choices.below(3) * choices.below(2) if builder.settings.chunk else 1 + choices.below(3)
    requests = [
        builder.request(who, prompt, after + 4, cancel_after=after),
        builder.request(neighbour, other, 3 + choices.below(5)),
        builder.request(neighbour, other[::-1], 4 + choices.below(4), **_arrival(builder, after + choices.below(2))),
    ]
    builder.run(*(requests[i] for i in (choices.order(3) if choices.below(2) else range(3))))
    builder.run(builder.request(who, prompt, 2))


def short_of_room(builder: ScenarioBuilder, choices: Choices) -> None:
    """Long responses to many long prompts: some are preempted, and computed again."""
    names = builder.names(choices, builder.settings.max_adapters)
    requests = []
    for i in range(4 + choices.below(2)):
        requests.append(
            builder.request(
                names[i % len(names)],
                builder.prompt(choices)[choices.below(3) :],
                8 + choices.below(5),
                **_arrival(builder, choices.below(3)),
            )
        )
    builder.run(*requests)


def _arrival(builder: ScenarioBuilder, steps: int) -> dict[str, int]:
    return {"arrival_step": steps} if "arrivals" in builder.can else {}
