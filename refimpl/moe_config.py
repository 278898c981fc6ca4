"""What a layer of experts is: how many, which of them a token goes through, and what their modules are called."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mlp:
    """A gated MLP, by the names of its modules below the layer: a layer's own, one expert, or what all tokens share."""

    gate_up: tuple[str, ...]  # two modules, or one for both
    down: str
    width: int  # d_mlp
    scope: str = ""  # of its activation in a trace: "mlp.experts.7."

    @property
    def modules(self) -> tuple[str, ...]:
        """Its linear layers, in the order of the forward pass."""
        return (*self.gate_up, self.down)

    def shape(self, name: str, d_model: int) -> tuple[int, int]:
        """(d_out, d_in) of one of its modules."""
        return (d_model, self.width) if name == self.down else (2 * self.width // len(self.gate_up), d_model)


@dataclass(frozen=True)
class ClampedGate:
    """An activation: (up + 1) gate sigmoid(alpha gate), with gate at most `limit`, and up between -limit and limit
    (gpt-oss)."""

    alpha: float = 1.702
    limit: float = 7.0

    def __str__(self) -> str:
        return f"a gate that is clamped at {self.limit:g}"


@dataclass(frozen=True)
class Groups:
    """Experts in groups, of which each token takes only the best (DeepSeek-V2, section 2.2.2)."""

    number: int
    kept: int
    best: int  # a group is as good as the sum of its so many best scores: 1 in DeepSeek V2, 2 in V3


@dataclass(frozen=True)
class Stacked:
    """A tensor of the checkpoint that holds modules of all experts: [experts, d_out, d_in], one behind the other on
    the axis d_out. Where experts have biases, NAME_bias holds those, [experts, d_out]. Its name ends as the parameter's
    does; of one Python module's parameters they are in its order."""

    name: str  # below the layer: mlp.experts.gate_up_proj
    modules: tuple[str, ...]  # of one expert: gate_proj, up_proj
    interleaved: bool = False  # not behind each other: the rows of the modules take turns (gpt-oss)
    transposed: bool = False  # it is [experts, d_in, d_out] (gpt-oss)

    def rows(self, number: int, d_out: int) -> slice:
        """Where the rows of one of its modules are, among those of all."""
        if self.interleaved:
            return slice(number, None, len(self.modules))
        width = d_out // len(self.modules)
        return slice(number * width, (number + 1) * width)


@dataclass(frozen=True)
class Moe:
    """A mixture of experts (moe.py). Expert 7 of it is the modules mlp.experts.7.gate_proj, .up_proj and .down_proj."""

    experts: int
    top_k: int
    width: int  # d_mlp of each expert
    scores: str = "softmax"  # of all logits; or softmax_of_chosen, or sigmoid of each
    renormalise: bool = False  # the weights of the chosen experts are divided by their sum
    scale: float = 1.0  # and then multiplied by this
    groups: Groups | None = None
    bias: bool = False  # of the router and of every expert
    router: str = "mlp.gate"
    correction: str | None = None  # a vector that is added to the scores for the choice alone (DeepSeek-V3)
    expert: str = "mlp.experts"
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")  # of one expert
    down: str = "down_proj"
    shared: Mlp | None = None  # an MLP for every token beside them
    shared_gate: str | None = None  # whose output is multiplied by the sigmoid of this one
    stacked: tuple[Stacked, ...] = ()
    in_stacks: bool = False  # files hold these and no tensors of one expert
    spellings: tuple[tuple[str, str], ...] = ()  # what a tensor is also called below a layer, and its name here

    def mlp(self, expert: int) -> Mlp:
        """One expert."""
        scope = f"{self.expert}.{expert}."
        return Mlp(tuple(scope + name for name in self.gate_up), scope + self.down, self.width, scope)

    @property
    def modules(self) -> tuple[str, ...]:
        """The linear layers of one layer of experts, in the order of the forward pass."""
        experts = (name for expert in range(self.experts) for name in self.mlp(expert).modules)
        gate = () if self.shared_gate is None else (self.shared_gate,)
        return (self.router, *experts, *(self.shared.modules if self.shared else ()), *gate)

    def shape(self, name: str, d_model: int) -> tuple[int, int] | None:
        """(d_out, d_in) of one of these modules; None for a name that is none of them."""
        if name in (self.router, self.shared_gate):
            return (self.experts if name == self.router else 1), d_model
        if self.shared and name in self.shared.modules:
            return self.shared.shape(name, d_model)
        return self.mlp(0).shape(self._of_first(name), d_model) if name.startswith(f"{self.expert}.") else None

    def expert_of(self, name: str) -> int | None:
        """Which expert a module is of; None for the router, and for what all tokens go through."""
        inside = name.removeprefix(f"{self.expert}.")
        return None if inside == name else int(inside.partition(".")[0])

    def has_bias(self, name: str) -> bool:
        """Whether the checkpoint holds a bias for one of these modules."""
        return self.bias and (name == self.router or name.startswith(f"{self.expert}."))

    def _of_first(self, name: str) -> str:
        """The same module of expert 0: experts are alike."""
        return f"{self.expert}.0.{name.rpartition('.')[2]}"
