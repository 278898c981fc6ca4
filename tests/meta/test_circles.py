"""No module of the package stands in a circle of imports: one that is hidden in a function is still one."""

from support.imports import ENTRY, import_graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that can reach each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for name in sorted(graph[module]):
            if name not in index:
                visit(name)
                low[module] = min(low[module], low[name])
            elif name in stack:
                low[module] = min(low[module], index[name])
        if low[module] == index[module]:
            start = stack.index(module)
            groups.append(stack[start:])
            del stack[start:]

    for module in graph:
        if module not in index:
            visit(module)
    return [group for group in groups if len(group) > 1]


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_module_stands_in_a_circle() -> None:
    below_entry = {module: names - {*ENTRY} for module, names in import_graph().items() if module not in ENTRY}
    assert circles(below_entry) == []
